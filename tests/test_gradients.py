"""Autograd against finite differences, through the whole loss and a published flow network."""
import pytest
import torch

from flowmag_nb.flow import load_flow
from flowmag_nb.loss import MagnificationLoss
from flowmag_nb.warp import blur, warp


@pytest.fixture
def pictures():
    "A smooth reference, a frame moved by less than a pixel, a prediction that moved 2.6 times as far; double precision"
    g = torch.Generator().manual_seed(0)
    reference = blur(torch.rand(1, 3, 64, 64, generator=g, dtype=torch.float64), 2).sub(0.5).mul(3).add(0.5)
    shift = torch.tensor([0.7, -0.4], dtype=torch.float64)[:, None, None].expand(1, 2, 64, 64)
    return reference, warp(reference, shift), warp(reference, 2.6 * shift)


@pytest.mark.parametrize("iterations", [1, 5])
def test_loss_through_raft_small(mirror, pictures, iterations, monkeypatch):
    """RAFT cuts the gradient of its own flow between corrections. What it cut is recorded, and held constant in the finite
    differences too. Its coordinates are single precision under autocast; here everything stays double."""
    if not (mirror/"flow"/"raft-small.pth").is_file(): pytest.skip(f"needs the official RAFT-small weights below {mirror}")
    single, cut, detach = torch.Tensor.float, [], torch.Tensor.detach
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else single(t))
    monkeypatch.setattr(torch.Tensor, "detach", lambda t: cut.append(detach(t)) or cut[-1])
    loss = MagnificationLoss(load_flow("raft-small", weights=mirror/"flow"/"raft-small.pth", iterations=iterations).double())
    reference, frame, prediction = pictures
    cut.clear()
    prediction.requires_grad_()
    loss(reference, frame, prediction, 3.).total.backward()
    assert len(cut) == 2 * iterations

    def total(picture):
        replay = iter(cut)
        monkeypatch.setattr(torch.Tensor, "detach", lambda t: next(replay))
        return float(loss(reference, frame, picture, 3.).total)

    step = 1e-6
    for channel, y, x in [(0, 20, 30), (1, 32, 32), (2, 41, 13), (0, 5, 60)]:
        bump = torch.zeros_like(reference)
        bump[0, channel, y, x] = step
        with torch.no_grad(): numeric = (total(prediction + bump) - total(prediction - bump)) / (2 * step)
        assert float(prediction.grad[0, channel, y, x]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)
