"What the published implementations compute: losses and magnifiers, through the public API and the checkpoint loaders."
import csv

import numpy as np
import pytest
import torch
from test_parity_flow import PARITY, fill, frames_of, published

from flowmag_nb.loss import color_loss, magnification_loss
from flowmag_nb.magnifiers import load_magnifier
from flowmag_nb.magnifiers.unet import blend_encodings, encode_alpha
from flowmag_nb.warp import warp


def fixture(name):
    if PARITY is None: pytest.skip(f"needs the parity fixture {name}.npz beside the mirror (FLOWMAG_NB_MIRROR/../parity)")
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(PARITY/f"{name}.npz").items()}


def test_losses():
    data = fixture("losses_metrics")
    flows = data["flow_pred"], data["flow_src"]
    assert abs(magnification_loss(*flows, data["alphas"]) - data["magnification_loss"]) < 1e-5
    assert abs(color_loss(data["pred"], flows[0], data["frame_b"], flows[1]) - data["color_loss"]) < 1e-6
    assert (warp(data["pred"], flows[0]) - data["warped_pred"]).abs().max() < 1e-4


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    data = fixture("flowmag_unet")
    state = published("flowmag_unet")
    path = tmp_path_factory.mktemp("unet")/"raft_chkpt.pth"
    passenger = {"module.mm_loss_fn.flow_net.flowNet.fnet.conv1.weight": torch.zeros(3)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()} | passenger, "epoch": 140}, path)
    net = load_magnifier("flowmag", weights=path).requires_grad_(False)
    return net, data, frames_of(np.load(PARITY/"flowmag_unet.npz"))


def test_unet(unet):
    net, data, frames = unet
    assert sum(p.numel() for p in net.parameters()) == 17_287_683
    out = net(*frames, data["alpha"])
    assert (out - data["pred"]).abs().max() < 1e-4


def test_unet_mask(unet):
    net, data, frames = unet
    encoding = blend_encodings(data["alpha"][None], data["mask"])
    assert (net.synthesize(*frames, encoding) - data["pred_masked"]).abs().max() < 1e-4


def test_alpha_encoding():
    data = fixture("flowmag_unet")
    assert (encode_alpha(data["alphas"].float())[..., 0, 0] - data["alpha_encoding"]).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(33, 47), (48, 64)])
def test_unet_batch(unet, size):
    reference, frame = torch.rand(2, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    alpha = torch.tensor([2., 16., 30.])
    together = unet[0](reference, frame, alpha)
    for k in range(3):
        alone = unet[0](reference[k:k+1], frame[k:k+1], alpha[k:k+1])
        assert (together[k:k+1] - alone).abs().max() < 1e-5


def test_oh2018_postech(mirror, tmp_path):
    keys = mirror.parent/"state_dict_keys"/"oh_pytorch_postech.csv"
    if not keys.is_file(): pytest.skip(f"needs the published key list, none at {keys}")
    state = {row["key"]: fill(row["key"], [int(n) for n in row["shape"].split("x")]) for row in csv.DictReader(keys.open())}
    torch.save({"model_state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 50}, tmp_path/"epoch50.tar")
    net = load_magnifier("oh2018", weights=tmp_path/"epoch50.tar")
    assert sum(p.numel() for p in net.parameters()) == 966_979
    assert torch.equal(net.decoder.up.weight, state["decoder.res_decoder.conv_up_sample.weight"])


def test_oh2018_port(mirror):
    path = mirror/"magnifiers"/"oh2018_zhengpeng7_epoch12.pth"
    if not path.is_file(): pytest.skip(f"needs the port's weights, none at {path}")
    net = load_magnifier("oh2018", weights=path).requires_grad_(False)
    assert sum(p.numel() for p in net.parameters()) == 877_968
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 48, 64)
    assert (net(ramp, ramp, 9.) - ramp).abs().mean() < 0.05
