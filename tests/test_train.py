"""Training that is repeated, killed, shared by two processes, fed nonsense or left without disk space."""
import json
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from flowmag_nb.batches import Source, fixed_batches
from flowmag_nb.cli import main
from flowmag_nb.films import CodedSet
from flowmag_nb.flow import load_flow
from flowmag_nb.magnifiers import Magnifier, alpha_planes, load_magnifier
from flowmag_nb.pairs import find_clips, list_pairs
from flowmag_nb.presets import TRAININGS, open_data, open_films, train_preset
from flowmag_nb.runs import Recipe
from flowmag_nb.sets import DriftSet
from flowmag_nb.store import pack_pairs
from flowmag_nb.supervision import PictureGap, ThroughFlow
from flowmag_nb.train import train

pytest.importorskip("accelerate", reason="needs the extra [data]")
RECIPE = Recipe(steps=50, batch=4, lr=3e-3, warmup=5, ema=0.9, look=10)


class Nudge(Magnifier):
    """Changes the frame by what two convolutions say."""
    def __init__(self, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(6, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, reference, frame, alpha):
        return frame + (alpha_planes(alpha) - 1) * 0.1 * self.net(torch.cat([reference, frame - reference], 1))


class Told(ThroughFlow):
    """The paper's loss, telling on stdout that a step has begun."""
    def forward(self, magnifier, batch):
        print("step\n", end="", flush=True)
        return super().forward(magnifier, batch)


def learn(folder, loss=None, net=None, **options):
    """Train a very small network on a few pairs."""
    torch.manual_seed(0)
    pairs = list(DriftSet(length=24, size=48, motion=(0.3, 1.), magnified=4.))
    return train(net or Nudge(), loss or Told(load_flow("clg", warps=1)), [Source(pairs[:20])], RECIPE, [Source(pairs[20:])], folder,
                 progress=False, **options)


def outcome(folder):
    """What a run cost, step by step, and its weights."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return pd.read_csv(folder / "history.csv").drop(columns=["seconds", "pairs", "gradient"]), state["magnifier"], state["average"]


def farthest(one, other):
    """The largest difference between two outcomes."""
    assert one[0].shape == other[0].shape
    gaps = [(one[0] - other[0]).abs().max().max()]
    return max(gaps + [float((a[name] - b[name]).abs().max()) for a, b in zip(one[1:], other[1:]) for name in a])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 50 steps from beginning to end."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert learn(folder).verdict == "all steps taken"
    return outcome(folder)


def child(folder, *launcher):
    """The same run in a process of its own, or in several."""
    return [sys.executable, *launcher, __file__, str(folder)]


def test_the_same_seed_gives_the_same_run(unbroken, tmp_path):
    learn(tmp_path)
    assert farthest(unbroken, outcome(tmp_path)) <= 1e-6


def test_killed_at_step_25_and_resumed(unbroken, tmp_path):
    run = subprocess.Popen(child(tmp_path), stdout=subprocess.PIPE, text=True)
    looks = 2  # of one held-out batch each, before step 25
    for _ in range(25 + looks):
        assert run.stdout.readline() == "step\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 20
    learn(tmp_path, resume=True)
    assert farthest(unbroken, outcome(tmp_path)) <= 1e-6


def test_stopped_between_looks_and_resumed(unbroken, tmp_path):
    assert len(learn(tmp_path, steps=25).totals()) == 3  # after 10, 20 and 25 steps, the last for whoever stopped
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 25
    resumed = learn(tmp_path, resume=True)
    assert farthest(unbroken, outcome(tmp_path)) <= 1e-6
    kept = load_file(tmp_path / "weights.safetensors")
    assert all(kept[name].equal(value) for name, value in resumed.best_magnifier().state_dict().items())


def test_two_processes_with_half_the_batch_each(unbroken, tmp_path):
    subprocess.run(child(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"), check=True, capture_output=True, timeout=300)
    assert farthest(unbroken, outcome(tmp_path)) <= 1e-4


class Poisoned(ThroughFlow):
    """No number from the third batch on."""
    seen = 0

    def forward(self, magnifier, batch):
        self.seen += 1
        losses = super().forward(magnifier, batch)
        return losses._replace(total=losses.total * float("nan")) if self.seen == 3 else losses


def test_a_loss_that_is_no_number_stops_and_leaves_its_batch(tmp_path):
    net = Nudge()
    with pytest.raises(FloatingPointError, match="diverged at step 2: total nan.*diverged-000002-0.pt.*nothing was saved yet"):
        learn(tmp_path, Poisoned(load_flow("clg", warps=1)), net)
    kept = torch.load(tmp_path / "diverged-000002-0.pt", weights_only=True)
    assert kept["step"] == 2 and kept["batch"]["frame"].shape == (4, 3, 48, 48)
    assert all(p.isfinite().all() for p in net.parameters())
    learn(tmp_path, Idle(), minutes=0)
    with pytest.raises(FloatingPointError, match="diverged at step 3: .*the last checkpoint is from before"):
        learn(tmp_path, Poisoned(load_flow("clg", warps=1)), resume=True)


class Idle(nn.Module):
    """A loss for tests that are about files: the picture is not looked at."""
    def forward(self, magnifier, batch):
        return PictureGap(sum(p.square().sum() for p in magnifier.parameters()))


@pytest.mark.parametrize("what, room", [("samples", 0.04), ("weights", 0.1), ("checkpoint", 0.5)])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, what, room):
    sleek = lambda **options: learn(tmp_path, Idle(), Nudge(384), **options)
    sleek(minutes=0)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * len(before["checkpoint.pt"])), limits[1]))  # a file breaks off in its middle
    try:
        with pytest.raises(OSError, match="could not be brought up to step 10: .*What was there is untouched; make room, then resume"):
            sleek(resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before["checkpoint.pt"]
    assert not list(tmp_path.rglob("*.partial"))
    assert sleek(resume=True).step == 50


def test_the_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    learn(tmp_path, Idle(), minutes=0)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="is the checkpoint of Nudge with 659 weights.*cannot continue the training of FlowMag with 5,595 weights"):
        learn(tmp_path, Idle(), load_magnifier("flowmag", width=4, depth=3, untrained=True), resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_packed_pairs_and_photographs_are_data(tmp_path):
    photos, clips = tmp_path / "photos", tmp_path / "clips"
    for folder in (photos, clips / "one", clips / "two"):
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 80, 3), np.uint8)).save(folder / f"{i}.png")
    pack_pairs(pd.DataFrame(list_pairs(find_clips("plain", clips))), tmp_path / "pairs", short_side=64)
    sources, held_out = open_data(f"{tmp_path / 'pairs'}:3,{photos}", 48)
    assert [s.weight for s in sources] == [3, 1] and "real pairs" in sources[0].name
    shapes = [{name: tuple(value.shape) for name, value in next(fixed_batches([s], 2)).items()} for s in sources + held_out]
    assert [s["frame"] for s in shapes] == [(2, 3, 48, 48)] * 4
    assert ["flow" in s for s in shapes] == [False, True] * 2


def test_from_the_command_line(tmp_path, capsys):
    assert main(["train", "--steps", "1", "--out", str(tmp_path)]) == 0
    assert "stopped early at step 1" in capsys.readouterr().out
    assert main(["train", "--steps", "2", "--out", str(tmp_path)]) == 2
    assert "holds a training run already; resume it" in capsys.readouterr().err


def test_the_second_network_of_motion_learns_by_its_preset(tmp_path):
    preset = TRAININGS["motion-coded"]
    small = preset._replace(data=partial(open_films, made=CodedSet, size=64, length=8), recipe=replace(preset.recipe, batch=2))
    train_preset(small, tmp_path, steps=2, progress=False)
    learned, start = load_file(tmp_path / "weights.safetensors"), load_magnifier("motion").state_dict()
    assert {name.split(".")[1] for name, value in learned.items() if not value.equal(start[name])} == {"coded"}
    assert json.loads((tmp_path / "weights.json").read_text())["begun"] == "what travels with the package"


if __name__ == "__main__":
    learn(Path(sys.argv[1]))
