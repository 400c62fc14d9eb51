"What every magnifier promises of alpha, called directly: a number is taken, nonsense is refused."
import math

import pytest
import torch

from flowmag_nb.magnifiers import as_alpha, load_magnifier

BUILT = {"motion": {}, "lagrangian": {}, "refined": dict(untrained=True), "flowmag": dict(untrained=True, width=4, depth=3), "oh2018": dict(untrained=True),
         "realtime": dict(untrained=True), "warp-bilinear": dict(flow="clg", inpaint="none"), "eulerian": {}, "phase": {}, "riesz": {}}


@pytest.mark.parametrize("name", BUILT)
def test_alpha(name):
    magnifier = load_magnifier(name, **BUILT[name]).requires_grad_(False)
    reference, frame = torch.rand(2, 1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(magnifier(reference, frame, 5.), magnifier(reference, frame, as_alpha(5., frame)))
    for bad in (0., -3., math.nan):
        with pytest.raises(ValueError, match="alpha must be above 0"): magnifier(reference, frame, bad)
    with pytest.raises(ValueError, match="alpha must be a number"): magnifier(reference, frame, torch.tensor([2., 3., 4.]))


@pytest.mark.parametrize("name", ["motion", "lagrangian"])
def test_a_small_clip_without_its_finest_levels(name):
    "However much is to be skipped, what is left can be looked at."
    magnifier = load_magnifier(name, stream_skip=9).requires_grad_(False)
    frames = torch.rand(3, 1, 3, 36, 70, generator=torch.Generator().manual_seed(0))
    shown = list(magnifier.stream([(frames[0], frame) for frame in frames], 2.))
    assert [tuple(picture.shape) for picture in shown] == 3 * [(1, 3, 36, 70)] and all(picture.isfinite().all() for picture in shown)
