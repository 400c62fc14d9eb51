"""The flow networks compute what the published implementations compute, from files in the published layouts."""
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowmag_nb.flow import load_flow

SHARED = Path(__file__).resolve().parents[1].parent/"shared"
ASSETS = Path(os.environ.get("FLOWMAG_NB_MIRROR") or SHARED/"assets")
PARITY = next((p for p in (ASSETS.parent/"parity", SHARED/"parity") if p.is_dir()), None)

needs_parity = pytest.mark.skipif(PARITY is None, reason="no parity fixtures beside the mirror (FLOWMAG_NB_MIRROR/../parity)")
needs_mirror = pytest.mark.skipif(not (ASSETS/"flow").is_dir(), reason="no mirror of the assets (FLOWMAG_NB_MIRROR)")

# fixture, name in load_flow, prefix of the published file's keys, options, output, tolerance in px
CASES = [("raft_small", "raft-small", "module.", dict(iterations=5), "flow_iters5", 1e-3),
         ("raft_small", "raft-small", "", dict(iterations=20), "flow_iters20", 1e-2),
         ("raft_large", "raft-large", "module.", dict(iterations=5), "flow_iters5", 1e-3),
         ("raft_large", "raft-large", "", dict(iterations=20), "flow_iters20", 1e-2),
         ("arflow_pwclite", "arflow", "", dict(), "flow", 1e-3),
         ("pwcnet", "pwcnet", "", dict(), "flow", 1e-3)]
NETS = [("raft_small", "raft-small"), ("raft_large", "raft-large"), ("arflow_pwclite", "arflow"), ("pwcnet", "pwcnet"), ("gmflow", "gmflow")]


def fill(key, shape):
    "The fixtures' pseudo-random weights: a function of the key alone"
    if key.endswith("num_batches_tracked"): return torch.zeros(shape, dtype=torch.long)
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"): n = 0.1*n
    elif key.endswith("running_var"): n = 1 + 0.2*abs(n)
    elif key.endswith("bias"): n = 0.05*n
    elif len(shape) <= 1: n = 1 + 0.1*n
    else: n = n * math.sqrt(2 / math.prod(shape[1:])) * (0.02 if "flow_head.conv2" in key else 1)
    return torch.from_numpy(np.asarray(n, np.float32))


def published(fixture):
    return {key: fill(key, shape) for key, shape in json.loads((PARITY/f"{fixture}.keys.json").read_text()).items()}


def frames_of(fixture):
    return [torch.from_numpy(fixture[k]).permute(2, 0, 1)[None].float() / 255 for k in ("frame_a", "frame_b")]


def photos(count, size, shift):
    "Windows of photographs and the same windows `shift` (dx, dy) px further on, each (count, 3, *size)"
    h, w = size
    files = sorted((ASSETS/"photos"/"test").glob("*.jpg"))[:count]
    pictures = [torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) / 255 for f in files]
    window = lambda p, dx, dy: p[:, 20+dy:20+dy+h, 20+dx:20+dx+w]
    return torch.stack([window(p, 0, 0) for p in pictures]), torch.stack([window(p, *shift) for p in pictures])


@needs_parity
@pytest.mark.parametrize("name, net, prefix, options, output, tolerance", CASES, ids=lambda v: str(v))
def test_published_output(name, net, prefix, options, output, tolerance, tmp_path):
    torch.save({"state_dict": {prefix + key: value for key, value in published(name).items()}}, tmp_path/"published.pth")
    fixture = np.load(PARITY/f"{name}.npz")
    with torch.inference_mode(): flow = load_flow(net, weights=tmp_path/"published.pth", **options)(*frames_of(fixture))
    assert (flow - torch.from_numpy(fixture[output])).abs().max() <= tolerance


@needs_parity
def test_gmflows_published_output(tmp_path):
    """Filled at random its softmaxes are so sharp that 1e-7 of the input moves the flow by 0.03 px, on average by 0.001; that, and no more, may differ.

    The file is no closer to the truth: in double precision the mean difference from it is 0.0014 px.
    """
    torch.save({"model": published("gmflow")}, tmp_path/"published.pth")
    fixture, net = np.load(PARITY/"gmflow.npz"), load_flow("gmflow", weights=tmp_path/"published.pth")
    first, second = frames_of(fixture)
    torch.manual_seed(0)
    with torch.inference_mode():
        flow, nudged = net(first, second), [net(first * (1 + 1e-7*torch.randn_like(first)), second) for _ in range(3)]
    miss, moved = (flow - torch.from_numpy(fixture["flow"])).abs(), (flow - torch.stack(nudged)).abs()
    assert miss.mean() <= 2 * moved.mean() <= 0.006 and miss.max() <= 2 * moved.max() <= 0.2


@needs_parity
@needs_mirror
@pytest.mark.parametrize("fixture, name", NETS)
@pytest.mark.parametrize("size", [(101, 139), (64, 200), (32, 33)])
def test_batches_and_sizes(fixture, name, size, tmp_path):
    halved = {key: value if value.ndim < 2 else value/2 for key, value in published(fixture).items()}  # rounding is not amplified
    torch.save(halved, tmp_path/"published.pth")
    net = load_flow(name, weights=tmp_path/"published.pth", **(dict(iterations=3) if "raft" in name else {}))
    first, second = photos(3, size, (2, 1))
    with torch.inference_mode():
        together, alone = net(first, second), torch.cat([net(first[i:i+1], second[i:i+1]) for i in range(3)])
    assert together.shape == (3, 2, *size) and together.isfinite().all() and together.std() > 1e-3
    assert (together - alone).abs().max() <= 1e-3


@needs_parity
@pytest.mark.parametrize("fixture, name", NETS)
def test_half_precision_and_gradients(fixture, name, tmp_path):
    torch.save(published(fixture), tmp_path/"published.pth")
    net = load_flow(name, weights=tmp_path/"published.pth", **(dict(iterations=2) if "raft" in name else {})).requires_grad_(False)
    frames = torch.rand(2, 1, 3, 64, 96).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16): flow = net(*frames)
    flow.abs().mean().backward()
    assert flow.dtype == torch.float32 and flow.isfinite().all()
    assert net.differentiable == (name != "gmflow") and (frames.grad.abs().amax((1, 2, 3, 4)) > 0).all() and frames.grad.isfinite().all()


@needs_parity
def test_pwcnets_stored_names(tmp_path):
    torch.save({key.replace("net", "module"): value for key, value in published("pwcnet").items()}, tmp_path/"network-default.pytorch")
    frames = torch.rand(2, 1, 3, 64, 64)
    torch.save(published("pwcnet"), tmp_path/"net.pth")
    rgb, bgr = load_flow("pwcnet", weights=tmp_path/"net.pth"), load_flow("pwcnet", weights=tmp_path/"network-default.pytorch", bgr=True)
    assert torch.equal(rgb(*frames), bgr(*frames.flip(2)))


@pytest.mark.parametrize("size", ["small", "large"])
def test_torchvision_files(size, tmp_path):
    models = pytest.importorskip("torchvision.models.optical_flow")
    torch.manual_seed(0)
    theirs = getattr(models, f"raft_{size}")().eval()
    theirs.load_state_dict({key: fill(key, value.shape) for key, value in theirs.state_dict().items()})
    torch.save(theirs.state_dict(), tmp_path/"torchvision.pth")
    ours = load_flow(f"raft-{size}", weights=tmp_path/"torchvision.pth", iterations=4)
    frames = torch.rand(2, 1, 3, 136, 160)
    with torch.inference_mode():
        assert (ours(*frames) - theirs(*(2*frames - 1), num_flow_updates=4)[-1]).abs().max() <= 1e-3


@needs_mirror
def test_shifts_of_photographs_are_recovered():
    first, second = photos(12, (256, 256), (8, 0))
    with torch.inference_mode(): flow = load_flow("raft-small", weights=ASSETS/"flow"/"raft-small.pth")(first, second)
    error = (flow - torch.tensor([-8., 0.])[:, None, None]).norm(dim=1)
    assert error.mean((1, 2)).max() <= 0.3


@needs_mirror
@pytest.mark.parametrize("net", ["raft-large", "arflow", "pwcnet", "gmflow"])
def test_another_networks_file_is_refused(net):
    with pytest.raises(ValueError, match="keys missing"): load_flow(net, weights=ASSETS/"flow"/"raft-small.pth")
