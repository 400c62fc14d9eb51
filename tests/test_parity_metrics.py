"""The metrics give what the published evaluation code gives."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmag_nb.metrics import color_error, magnification_error, motion_error, ssim

SHARED = Path(__file__).resolve().parents[2]/"shared"
PLACES = [Path(os.environ.get("FLOWMAG_NB_MIRROR") or SHARED/"assets").parent/"parity", SHARED/"parity"]
FIXTURE = next((p/"losses_metrics.npz" for p in PLACES if (p/"losses_metrics.npz").is_file()), None)


@pytest.fixture
def given():
    if FIXTURE is None: pytest.skip("no parity fixtures beside the mirror (FLOWMAG_NB_MIRROR/../parity)")
    with np.load(FIXTURE) as stored: return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files}


@pytest.mark.parametrize("metric", [motion_error, magnification_error])
def test_published_values(given, metric):
    found = metric(given["flow_pred"], given["flow_src"], given["alphas"])
    torch.testing.assert_close(found, given[metric.__name__], rtol=1e-5, atol=1e-5)


def test_color_error_is_the_published_loss(given):
    found = color_error(given["pred"], given["flow_pred"], given["frame_b"], given["flow_src"])
    torch.testing.assert_close(found.mean(), given["color_loss"], rtol=1e-5, atol=1e-6)


def gaussian(n=11, sigma=1.5):
    g = np.exp(-(np.arange(n) - n//2)**2 / (2*sigma**2))
    return g/g.sum()


@pytest.mark.parametrize("volume", [False, True])
def test_ssim_is_its_definition(volume):
    "Window by window in double precision, with no convolution in sight"
    first, second = np.random.default_rng(0).random((2, 3, 17, 15))
    g = gaussian()
    window = np.einsum("i,j,k->ijk", g, g, g) if volume else np.einsum("j,k->jk", g, g)[None]
    padded = [np.pad(p, 5, mode="edge") if volume else p for p in (first, second)]
    views = [np.lib.stride_tricks.sliding_window_view(p, window.shape) for p in padded]
    mean = lambda v: (v*window).sum((-3, -2, -1))
    x, y = map(mean, views)
    xx, yy, xy = (mean(a*b) for a, b in ((views[0], views[0]), (views[1], views[1]), views))
    c1, c2 = 0.01**2, 0.03**2
    wanted = ((2*x*y + c1) * (2*(xy - x*y) + c2) / ((x*x + y*y + c1) * (xx - x*x + yy - y*y + c2))).mean()
    found = ssim(torch.from_numpy(first)[None], torch.from_numpy(second)[None], volume=volume)
    assert abs(found.item() - wanted) < 1e-10
