"What the published implementations compute: losses and magnifiers, through the public API and the checkpoint loaders."
import csv
import json
import csv
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmag_nb.loss import color_loss, magnification_loss
from flowmag_nb.magnifiers import load_magnifier
from flowmag_nb.magnifiers.unet import blend_encodings, encode_alpha
from flowmag_nb.warp import warp

MIRROR = Path(os.environ.get("FLOWMAG_NB_MIRROR") or Path(__file__).parents[2]/"shared"/"assets")
PARITY = MIRROR.parent/"parity"


def fixture(name):
    if not (PARITY/f"{name}.npz").is_file(): pytest.skip(f"needs the parity fixture {name}.npz, none at {PARITY}")
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(PARITY/f"{name}.npz").items()}


def fill(shapes):
    "The pseudo-random state dict that both sides use, by the rule of the fixtures' README."
    return {key: filled(key, tuple(shape)) for key, shape in shapes.items()}


def filled(key, shape):
    if key.endswith("num_batches_tracked"): return torch.zeros(shape, dtype=torch.int64)
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"): n = 0.1 * n
    elif key.endswith("running_var"): n = 1 + 0.2 * abs(n)
    elif key.endswith("bias"): n = 0.05 * n
    elif len(shape) <= 1: n = 1 + 0.1 * n
    else: n = n * np.float32(math.sqrt(2 / math.prod(shape[1:])))
    return torch.from_numpy(np.asarray(n, dtype=np.float32))


def frames(data):
    return [data[key].permute(2, 0, 1)[None] / 255 for key in ("frame_a", "frame_b")]


def test_losses():
    data = fixture("losses_metrics")
    flows = data["flow_pred"], data["flow_src"]
    assert abs(magnification_loss(*flows, data["alphas"]) - data["magnification_loss"]) < 1e-5
    assert abs(color_loss(data["pred"], flows[0], data["frame_b"], flows[1]) - data["color_loss"]) < 1e-6
    assert (warp(data["pred"], flows[0]) - data["warped_pred"]).abs().max() < 1e-4


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    data = fixture("flowmag_unet")
    state = fill(json.loads((PARITY/"flowmag_unet.keys.json").read_text()))
    path = tmp_path_factory.mktemp("unet")/"raft_chkpt.pth"
    passenger = {"module.mm_loss_fn.flow_net.flowNet.fnet.conv1.weight": torch.zeros(3)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()} | passenger, "epoch": 140}, path)
    return data, load_magnifier("flowmag", weights=path).requires_grad_(False)


def test_unet(unet):
    data, net = unet
    assert sum(p.numel() for p in net.parameters()) == 17_287_683
    out = net(*frames(data), data["alpha"])
    assert (out - data["pred"]).abs().max() < 1e-4


def test_unet_mask(unet):
    data, net = unet
    encoding = blend_encodings(data["alpha"][None], data["mask"])
    assert (net.synthesize(*frames(data), encoding) - data["pred_masked"]).abs().max() < 1e-4


def test_alpha_encoding():
    data = fixture("flowmag_unet")
    assert (encode_alpha(data["alphas"].float())[..., 0, 0] - data["alpha_encoding"]).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(33, 47), (48, 64)])
def test_unet_batch(unet, size):
    reference, frame = torch.rand(2, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    alpha = torch.tensor([2., 16., 30.])
    together = unet[1](reference, frame, alpha)
    for k in range(3):
        alone = unet[1](reference[k:k+1], frame[k:k+1], alpha[k:k+1])
        assert (together[k:k+1] - alone).abs().max() < 1e-5


def test_oh2018_postech(tmp_path):
    keys = MIRROR.parent/"state_dict_keys"/"oh_pytorch_postech.csv"
    if not keys.is_file(): pytest.skip(f"needs the published key list, none at {keys}")
    shapes = {row["key"]: [int(n) for n in row["shape"].split("x")] for row in csv.DictReader(keys.open())}
    state = fill(shapes)
    torch.save({"model_state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 50}, tmp_path/"epoch50.tar")
    net = load_magnifier("oh2018", weights=tmp_path/"epoch50.tar")
    assert sum(p.numel() for p in net.parameters()) == 966_979
    assert torch.equal(net.decoder.up.weight, state["decoder.res_decoder.conv_up_sample.weight"])


def test_oh2018_port():
    path = MIRROR/"magnifiers"/"oh2018_zhengpeng7_epoch12.pth"
    if not path.is_file(): pytest.skip(f"needs the port's weights, none at {path}")
    net = load_magnifier("oh2018", weights=path).requires_grad_(False)
    assert sum(p.numel() for p in net.parameters()) == 877_968
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 48, 64)
    assert (net(ramp, ramp, 9.) - ramp).abs().mean() < 0.05
