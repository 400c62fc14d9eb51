"""The sets made of collages are the same bytes in every process, and exact wherever they are drawn from."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowmag_nb.collage import Cutouts, Photographs
from flowmag_nb.sets import NoiseSet, SubpixelSet, TrainingSet

DIGEST = """
import hashlib, sys, torch
from flowmag_nb.collage import Cutouts, Photographs
from flowmag_nb.sets import Encoded, NoiseSet, SubpixelSet, TrainingSet
torch.set_num_threads(int(sys.argv[1]))
pictures = dict(size=96, photographs=Photographs(sys.argv[2] + '/photos/test'), cutouts=Cutouts(sys.argv[2] + '/cutouts')) if sys.argv[2] else dict(size=96)
sha = hashlib.sha256()
for samples in (SubpixelSet(**pictures), NoiseSet(**pictures), NoiseSet(**pictures, motion=0.05), Encoded(TrainingSet(**pictures))):
    for index in (len(samples) - 1, 2):
        for value in samples[index]: sha.update(torch.as_tensor(value).numpy().tobytes())
print(sha.hexdigest())
"""
MIRRORS = [Path(p) for p in (os.environ.get("FLOWMAG_NB_MIRROR"), Path(__file__).resolve().parents[2]/"shared"/"assets") if p]
MIRROR = next((p for p in MIRRORS if (p/"photos"/"test").is_dir() and (p/"cutouts").is_dir()), None)


@pytest.mark.parametrize("mirror", [None, MIRROR], ids=["computed", "photographs"])
def test_two_processes_give_the_same_bytes(mirror, request):
    if request.node.callspec.id == "photographs" and mirror is None: pytest.skip("no mirror of the assets (FLOWMAG_NB_MIRROR)")
    run = lambda threads: subprocess.run([sys.executable, "-c", DIGEST, threads, str(mirror or "")], capture_output=True, text=True, check=True).stdout
    assert run("1") == run("2")


@pytest.mark.skipif(MIRROR is None, reason="no mirror of the assets (FLOWMAG_NB_MIRROR)")
def test_every_cutout_of_the_mirror_has_a_mask():
    cutouts = Cutouts(MIRROR/"cutouts")
    assert len(cutouts) == 35 and len(Photographs(MIRROR/"photos"/"test")) > 50
    for cutout in cutouts:
        assert cutout.shape[0] == 4 and 0.005 < cutout[3].mean() < 0.9


@pytest.mark.parametrize("size", [96, 200])
def test_sizes_and_indices(size):
    samples = SubpixelSet(size=size, per_level=2)
    assert len(samples) == 30 and samples[-1].reference.shape == (3, size, size) and samples[-1].level == 1.
    with pytest.raises(IndexError): samples[30]


def test_truth_of_training_pairs():
    for sample in map(TrainingSet(size=128).__getitem__, range(12)):
        assert sample.flow.norm(dim=0).max() <= 1.001 * sample.level and sample.alpha * sample.level <= 30.01
        assert sample.mask.float().mean() > 0.2 and all(0 <= p.min() and p.max() <= 1 for p in sample[:3])


def test_scenes_of_all_noise_levels_are_the_same():
    samples = NoiseSet(size=96, per_level=1)
    assert torch.equal(samples[0].magnified, samples[20].magnified) and torch.equal(samples[0].flow, samples[20].flow)
