"What the published implementations compute: losses and magnifiers, through the public API and the checkpoint loaders."
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmag_nb.loss import color_loss, magnification_loss
from flowmag_nb.warp import warp

MIRROR = Path(os.environ.get("FLOWMAG_NB_MIRROR") or Path(__file__).parents[2]/"shared"/"assets")
PARITY = MIRROR.parent/"parity"


def fixture(name):
    if not (PARITY/f"{name}.npz").is_file(): pytest.skip(f"needs the parity fixture {name}.npz, none at {PARITY}")
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(PARITY/f"{name}.npz").items()}


def test_losses():
    data = fixture("losses_metrics")
    flows = data["flow_pred"], data["flow_src"]
    assert abs(magnification_loss(*flows, data["alphas"]) - data["magnification_loss"]) < 1e-5
    assert abs(color_loss(data["pred"], flows[0], data["frame_b"], flows[1]) - data["color_loss"]) < 1e-6
    assert (warp(data["pred"], flows[0]) - data["warped_pred"]).abs().max() < 1e-4
