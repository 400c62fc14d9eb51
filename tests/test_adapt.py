"""Learning from one clip: it helps or changes nothing, twice the same, within its budget, and what is written can be read."""
import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from standins import sway, write

from flowmag_nb.adapt import adapt, read_footage
from flowmag_nb.cli import main
from flowmag_nb.flow import FlowNet, load_flow
from flowmag_nb.magnifiers import Magnifier, load_magnifier
from flowmag_nb.runs import save_weights

pytest.importorskip("accelerate", reason="needs the extra [data]")
QUICK = dict(crop=48, look=5, alphas=(2., 6.), progress=False)


@pytest.fixture(scope="module")
def clip():
    """A second of stripes that move a third of a pixel."""
    return np.stack(list(sway(24)))


@pytest.fixture(scope="module")
def through():
    return load_flow("clg", warps=1)


@pytest.fixture(scope="module")
def unet():
    """Trained to the end: a U-Net at the beginning of its training goes another way on every kind of processor."""
    return load_magnifier("flowmag").requires_grad_(True)


@pytest.fixture(scope="module")
def motion():
    """A known start: not every random one finds something to gain in ten steps."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return load_magnifier("motion", untrained=True)


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def adapted(unet, clip, through):
    return adapt(unet, clip, 4., steps=40, flow=through, **QUICK)


def test_a_unet_gains_and_stays_as_it_was(adapted, unet, clip, through):
    before = weights(unet)
    again = adapt(unet, clip, 4., steps=40, flow=through, **QUICK)
    assert same(before, weights(unet)) and not same(before, weights(adapted.magnifier))
    assert same(weights(adapted.magnifier), weights(again.magnifier)) and adapted.after == again.after
    assert adapted.after["loss"] < 0.7 * adapted.before["loss"] and adapted.after["motion_error"] < 0.3 * adapted.before["motion_error"]
    held = adapted.history[adapted.history.pairs == "held out"]
    allowed = held[held.magnification <= held.magnification.iloc[0]]
    assert allowed.total.min() == adapted.after["loss"] and held.step.tolist() == list(range(0, 45, 5))


def test_another_seed_sees_other_views(adapted, unet, clip, through):
    other = adapt(unet, clip, 4., steps=20, flow=through, seed=1, **QUICK)
    assert not same(weights(adapted.magnifier), weights(other.magnifier)) and other.before == adapted.before


def test_batch_norm_keeps_its_statistics_unless_told(adapted, unet, clip, through):
    published = adapt(unet, clip, 4., steps=20, flow=through, new_norms=True, **QUICK)
    means = lambda net: {name: value for name, value in weights(net).items() if name.endswith("running_mean")}
    assert same(means(adapted.magnifier), means(unet)) and (not published.card["steps"] or not same(means(published.magnifier), means(unet)))
    assert published.history.total[2] != adapted.history.total[2]


def test_motion_learns_through_what_it_moves(motion, clip, through):
    stiff = deepcopy(motion)  # untrained it is as good as its judge; with ties that are far too stiff it has something to gain
    torch.nn.init.constant_(stiff.get_parameter("flow.guide.out.bias"), 6.)
    adapted = adapt(stiff, clip, 10., steps=10, lr=1e-2, flow=through, pairs="random", **QUICK)
    assert adapted.after["loss"] < adapted.before["loss"] and adapted.after["motion_error"] <= adapted.before["motion_error"]
    changed = {name for name, value in weights(stiff).items() if not torch.equal(value, weights(adapted.magnifier)[name])}
    assert changed == set(weights(stiff))


def test_saved_weights_do_the_same(adapted, motion, clip, through, tmp_path):
    pair = torch.from_numpy(clip[[0, 7]]).movedim(-1, 1) / 255
    for name, found in (("flowmag", adapted), ("motion", adapt(motion, clip, 4., steps=2, lr=3e-3, flow=through, **QUICK))):
        again = load_magnifier(name, weights=found.save(tmp_path / f"{name}.safetensors", licence="mine"))
        with torch.no_grad():
            assert torch.equal(again(pair[:1], pair[1:], torch.tensor([4.])), found.magnifier(pair[:1], pair[1:], torch.tensor([4.])))
        card = json.loads((tmp_path / f"{name}.json").read_text())
        assert card["licence"] == "mine" and card["before"] == found.before and card["after"] == found.after and card["alpha"] == [4.]


def test_never_worse(unet, clip, through):
    adapted = adapt(unet, clip, 4., steps=4, lr=0.1, flow=through, **QUICK | dict(look=2))
    assert adapted.after == adapted.before and same(weights(adapted.magnifier), weights(unet)) and "step 0" in repr(adapted)
    with pytest.raises(FloatingPointError, match="lower lr"): adapt(unet, clip, 4., steps=4, lr=1e30, flow=through, **QUICK)


class Blind(FlowNet):
    """Sees no motion in anything that was changed, and motion in the clip itself."""
    differentiable = False
    calls = 0

    def forward(self, first, second):
        self.calls += 1
        return torch.full_like(first[:, :2], math.exp(-self.calls)).detach()


def test_another_judge_may_pass_no_gradients(unet, clip, through):
    judge = Blind()
    adapted = adapt(unet, clip, 4., steps=2, flow=through, judge=judge, **QUICK)
    assert judge.calls > 2 and "judged by Blind" in adapted.card["loss"]
    assert adapted.after["motion_error"] <= adapted.before["motion_error"]


def test_stops_when_its_minutes_are_over(unet, clip, through):
    adapted = adapt(unet, clip, 4., minutes=1e-3, flow=through, **QUICK)
    assert adapted.card["verdict"] == "stopped early" and adapted.history.step.max() < 50


def test_stops_when_nothing_is_gained(unet, clip, through):
    adapted = adapt(unet, clip, 4., steps=99, lr=1e-9, flow=through, patience=2, **QUICK | dict(look=1))
    assert "2 looks without a gain" in adapted.card["verdict"] and adapted.history.step.max() <= 3


def test_held_out_frames_are_never_learned_from(clip):
    for frames, every in ((3, None), (24, None), (24, 5), (24, 2)):
        footage = read_footage(clip[:frames], every=every)
        assert footage.learn and footage.held and sorted([0, *footage.learn, *footage.held]) == list(range(frames))


class Stubborn(Magnifier):
    """Has weights, and cuts them off."""
    differentiable = False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, reference, frame, alpha):
        return frame


@pytest.mark.parametrize("wanted, said", [
    (dict(steps=0), "steps must be above 0, got 0"), (dict(minutes=-1.), "minutes must be above 0"), (dict(minutes=math.nan), "minutes must be above 0"),
    (dict(steps=1, minutes=1.), "not both"), (dict(steps=1, alpha=0.), "alpha must be above 0"), (dict(steps=1, pairs="all"), "'first' or 'random'"),
    (dict(steps=1, crop=16), "crop must be from 32 px"), (dict(steps=1, size=16), "size must be at least 32"), (dict(steps=1, every=1), "every must be at least 2"),
    (dict(steps=1, every=99), "few enough for 24 frames"), (dict(steps=1, most=2), "most must be at least 3")])
def test_bad_input(wanted, said, unet, clip, through):
    with pytest.raises(ValueError, match=said):
        adapt(unet, clip, flow=through, **wanted)


def test_what_cannot_learn_says_so(unet, clip):
    for name in ("lagrangian", "eulerian"):
        with pytest.raises(ValueError, match="must have weights to adapt"):
            adapt(load_magnifier(name), clip, steps=1)
    with pytest.raises(ValueError, match="must pass gradients"):
        adapt(Stubborn(), clip, steps=1)
    with pytest.raises(ValueError, match="3 frames or more.*got 2"):
        adapt(unet, clip[:2], steps=1)
    with pytest.raises(ValueError, match="flow_net must pass gradients"):
        adapt(unet, clip, steps=1, flow=Blind())


# From the command line.

@pytest.fixture
def files(motion, clip, tmp_path):
    """A clip, two frames of it, and weights to begin with."""
    write(tmp_path / "clip.mkv", clip)
    write(tmp_path / "two.mkv", clip[:2])
    save_weights(tmp_path / "start.safetensors", motion)
    return tmp_path


def test_adapt_and_magnify_from_the_command_line(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    learn = "--model motion --weights start.safetensors --alpha 4".split()
    assert main(["adapt", "clip.mkv", "own.safetensors", *learn, *"--steps 2 --flow clg --crop 48 --show both.png".split()]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "held-out motion error" in said[0] and said[1] == "own.safetensors" and (files / "both.png").is_file()
    assert json.loads((files / "own.json").read_text())["magnifier"] == "motion"
    assert main(["magnify", "clip.mkv", "out.mkv", *learn, "--adapt", "0.001"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "held-out motion error" in said[0] and said[1].startswith("out.mkv: 24 frames")


@pytest.mark.parametrize("typed, said", [
    ("adapt clip.mkv OUT --model lagrangian", "must have weights to adapt"), ("adapt clip.mkv own.pth", "must end in .safetensors"),
    ("adapt two.mkv OUT LEARN", "3 frames or more"), ("adapt clip.mkv OUT LEARN --minutes 0", "minutes must be above 0"),
    ("adapt clip.mkv OUT LEARN --minutes 1 --steps 1", "not both"), ("adapt clip.mkv start.safetensors LEARN", "-y replaces"),
    ("adapt clip.mkv no/such/folder.safetensors LEARN", "does not exist"), ("adapt nowhere.mkv OUT LEARN", "does not exist"),
    ("adapt clip.mkv OUT LEARN --flow raftt", "did you mean raft"), ("adapt clip.mkv OUT LEARN --flow dis", "must pass gradients"),
    ("magnify clip.mkv out.mkv --adapt 1 --model lagrangian", "must have weights to adapt"), ("magnify clip.mkv out.mkv LEARN --adapt 0", "minutes must be above 0"),
    ("magnify clip.mkv clip.mkv LEARN --adapt 1", "choose another name")])
def test_bad_input_is_one_line_and_writes_nothing(typed, said, files, capfd, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(p.name for p in files.iterdir())
    words = typed.replace("OUT", "own.safetensors").replace("LEARN", "--model motion --weights start.safetensors")
    assert main(words.split()) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowmag: error: ") and said in lines[0]
    assert sorted(p.name for p in files.iterdir()) == before
