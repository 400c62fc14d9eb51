"""Weights that travel with the package: whole, small, and each with a card that says what they are."""
import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from flowmag_nb.magnifiers import load_magnifier

FOLDER = Path(str(files("flowmag_nb"))) / "weights"
FILES = sorted(FOLDER.glob("*.safetensors"))
ASKED = "model", "data", "loss", "recipe", "steps", "samples", "held_out", "hardware", "seconds", "commit", "torch", "licence", "measured"


def test_they_are_small_and_nothing_else_lies_there():
    assert FILES and {file.stem for file in FOLDER.iterdir()} == {file.stem for file in FILES}
    assert sum(file.stat().st_size for file in FILES) < 48e6


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_card(file):
    card = json.loads(file.with_suffix(".json").read_text())
    assert [name for name in ASKED if not card.get(name)] == []
    assert card["licence"] != "not stated" and "seed" in card["recipe"] and "dirty" not in card["commit"]
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_they_load_by_name(file):
    reference, frame = torch.rand(2, 1, 3, 64, 80)
    magnifier = load_magnifier(file.stem)
    assert not magnifier.training
    with torch.no_grad(): assert torch.isfinite(magnifier(reference, frame, torch.tensor([4.]))).all()
