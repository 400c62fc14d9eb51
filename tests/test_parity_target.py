"""The widened mask is the published one, number by number."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmag_nb.target import dilate_mask, taxicab_distance

SHARED = Path(__file__).resolve().parents[2] / "shared"
PLACES = [Path(os.environ.get("FLOWMAG_NB_MIRROR") or SHARED / "assets").parent / "parity", SHARED / "parity"]
FIXTURE = next((place / "soft_mask.npz" for place in PLACES if (place / "soft_mask.npz").is_file()), None)


@pytest.mark.skipif(FIXTURE is None, reason="no parity fixture soft_mask.npz beside the mirror (FLOWMAG_NB_MIRROR/../parity)")
def test_soft_mask():
    with np.load(FIXTURE) as published:
        mask = torch.from_numpy(published["mask"])
        assert np.array_equal(taxicab_distance(mask).numpy(), published["distance"])
        assert np.array_equal(dilate_mask(mask, int(published["radius"])).numpy(), published["soft"] > 0)
