"""The command: whatever is wrong with what was typed, one line says so, the exit code tells, and no file is left or harmed."""
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from standins import listening, sway, write

from flowmag_nb.cli import COMMANDS, main
from flowmag_nb.video import Video

STANDINS = str(Path(__file__).with_name("standins.py"))  # the real command, with two more magnifiers
QUICK = ["--model", "exaggerate"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One good clip, and everything that goes wrong with clips and masks."""
    at = tmp_path_factory.mktemp("clips")
    good = write(at / "good.mp4", sway()).read_bytes()
    write(at / "long.mp4", sway(120))
    write(at / "once.mp4", sway(1))
    write(at / "odd.mp4", sway(height=47, width=65))
    write(at / "tiny.mp4", sway(height=16, width=16))
    write(at / "pixel", np.zeros((3, 1, 1, 3), np.uint8))
    write(at / "still", sway(1))
    (at / "images").mkdir()
    (at / "empty.mp4").write_bytes(b"")
    (at / "text.mp4").write_text("this is not a video\n" * 99)
    (at / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(9999))
    (at / "cut.mp4").write_bytes(good[:-len(good) // 3])
    lossless = write(at / "whole.mkv", sway(24)).read_bytes()
    (at / "cut.mkv").write_bytes(lossless[:len(lossless) // 2])
    sound(at / "sound.m4a")
    mask = np.zeros((48, 64))
    half = mask + .5
    half[:9] = 0
    np.save(at / "mask.npy", half)
    np.save(at / "zero.npy", mask)
    (at / "masks").mkdir()
    Image.fromarray(np.eye(48, 64) > 0).save(at / "masks" / "1.png")
    np.save(at / "bytes.npy", mask.astype("uint8"))
    np.save(at / "nan.npy", mask + np.nan)
    np.save(at / "small.npy", mask[:9])
    Image.fromarray(np.full((48, 64, 3), (200, 30, 0), np.uint8)).save(at / "red.png")
    return at


def sound(path):
    """A second of a tone, and no picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        tone = np.sin(np.arange(44032) / 20).astype("float32")
        for i, part in enumerate(tone.reshape(-1, 1, 1024)):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, i * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def contents(folder):
    """All files below `folder`, with their bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def complaint(said):
    """The one line of an error."""
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowmag: error: "), said
    return lines[0]


BAD_MAGNIFY = {  # what is typed: what the answer must contain
    "nowhere.mp4 OUT": "does not exist",
    "empty.mp4 OUT": "empty",
    "text.mp4 OUT": "text.mp4",
    "noise.mp4 OUT": "noise.mp4",
    "sound.m4a OUT": "holds no video",
    "cut.mp4 OUT": "cut off",
    "cut.mkv OUT": "cut off",
    "once.mp4 OUT": "motion needs two",
    "still OUT": "motion needs two",
    "images OUT": "no images",
    "pixel OUT": "at least 32 px",
    "tiny.mp4 OUT": "at least 32 px",
    "good.mp4 OUT --alpha 0": "alpha must be above 0",
    "good.mp4 OUT --alpha -5": "alpha must be above 0",
    "good.mp4 OUT --alpha nan": "got nan",
    "good.mp4 OUT --alpha inf": "at most 1000",
    "good.mp4 OUT --alpha 1e9": "at most 1000",
    "good.mp4 OUT --alpha much": "invalid float value",
    "good.mp4 OUT --mask nowhere.png": "does not exist",
    "good.mp4 OUT --mask small.npy": "(48, 64), got (9, 64)",
    "good.mp4 OUT --mask bytes.npy": "uint8",
    "good.mp4 OUT --mask nan.npy": "nan",
    "good.mp4 OUT --mask red.png": "grey",
    "good.mp4 OUT --mask text.mp4": "neither an image",
    "good.mp4 OUT --reference last": "'previous'",
    "good.mp4 OUT --reference 12": "from -12 to 11",
    "good.mp4 OUT --model exagerate": "did you mean exaggerate",
    "good.mp4 OUT --device gpu": "which has cpu",
    "good.mp4 OUT --batch 0": "at least 1",
    "good.mp4 OUT --fps 0": "fps",
    "good.mp4 OUT --fps fast": "fps",
    "good.mp4 OUT --capture-fps -3": "capture_fps",
    "good.mp4 out.doc": ".mp4",
    "good.mp4 no/such/folder/out.mp4": "does not exist",
    "good.mp4 good.mp4/out.mp4": "does not exist",
    "good.mp4 good.mp4": "choose another name",
    "good.mp4 good.mp4 -y": "choose another name",
    "good.mp4 ./images/../good.mp4 -y": "choose another name",
    "pixel pixel -y": "at least 32 px",
    "good.mp4 odd.mp4": "-y",
    "good.mp4": "required: output",
    "good.mp4 OUT more.mp4": "more.mp4",
    "good.mp4 OUT --alhpa 3": "did you mean --alpha",
}


BAD_TARGET = {
    "good.mp4 OUT": "say what to magnify",
    "good.mp4 OUT --box 1,2,3": "four numbers",
    "good.mp4 OUT --box 70,5,9,9": "outside the picture, which is 64 px wide",
    "good.mp4 OUT --box 40,5,30,9": "sticks out",
    "good.mp4 OUT --box 5,5,0,9": "no area",
    "good.mp4 OUT --box 30,30,-9,-9": "corners reversed",
    "good.mp4 OUT --box 0,0,64,48": "the whole picture",
    "good.mp4 OUT --point 64,1": "outside",
    "good.mp4 OUT --mask zero.npy": "zero.npy is empty",
    "good.mp4 OUT --mask small.npy": "resize",
    "good.mp4 OUT --mask masks": "each of the 12 frames, found 1",
    "good.mp4 OUT --box 5,5,9,9 --alpha 3 --alpha 4": "each of the 1 objects",
    "good.mp4 OUT --box 5,5,9,9 --alpha 0": "above 0",
    "good.mp4 OUT --box 5,5,9,9 --feather -1": "feather",
    "good.mp4 OUT --box 5,5,9,9 --segment fast": "one of auto, sam, grabcut, none",
    "good.mp4 OUT --box 5,5,9,9 --frame 12": "from 0 to 11",
    "good.mp4 OUT --box 5,5,9,9 --show no/such/place.png": "--show",
    "good.mp4 good.mp4 --box 5,5,9,9": "choose another name",
}


BAD = [("magnify", *bad) for bad in BAD_MAGNIFY.items()] + [("target", *bad) for bad in BAD_TARGET.items()]


@pytest.mark.parametrize("command, typed, answer", BAD)
def test_bad_input_is_one_line_and_harms_nothing(command, typed, answer, clips, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(clips)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"here before")
    before = contents(clips)
    words = [command, *typed.replace("OUT", f"{out} -y").split()]
    if "--model" not in words: words += QUICK
    if command == "target" and "--segment" not in words: words += ["--segment", "none"]
    assert main(words) == 2
    printed = capfd.readouterr()
    assert answer in complaint(printed.err) and printed.out == ""
    assert contents(tmp_path) == {"out.mp4": b"here before"} and contents(clips) == before


def test_two_objects_and_a_picture_of_them(clips, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(clips)
    words = "target good.mp4 OUT/out.mp4 --box 5,5,9,9 --mask mask.npy --alpha 3 --alpha 4 --segment none --show OUT/found.png".replace("OUT", str(tmp_path))
    assert main([*words.split(), *QUICK]) == 0
    assert "2 objects" in capfd.readouterr().out
    assert Video(tmp_path / "out.mp4").frame_count == 12 and Image.open(tmp_path / "found.png").size == (64, 48)


@pytest.mark.parametrize("source, out, options", [
    ("good.mp4", "out.mp4", "--alpha 3 --mask mask.npy --reference previous"),
    ("odd.mp4", "out.mp4", "--reference 5"),
    ("whole.mkv", "out.mkv", "--fps 30000/1001 --batch 5"),
    ("good.mp4", "out.gif", "--quiet"),
    ("good.mp4", "frames", "--capture-fps 240"),
])
def test_good_input_keeps_size_and_length(source, out, options, clips, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(clips)
    assert main(["magnify", source, str(tmp_path / out), *QUICK, *options.split()]) == 0
    printed = capfd.readouterr()
    came, went = Video(clips / source), Video(tmp_path / out)
    assert (came.width, came.height, came.frame_count) == (went.width, went.height, went.frame_count)
    assert sum(1 for _ in went) == came.frame_count
    assert printed.err == "" and (str(tmp_path / out) in printed.out) == ("--quiet" not in options)
    assert [p.name for p in tmp_path.iterdir()] == [out]


def test_debug_shows_where(clips, capfd):
    assert main(["magnify", str(clips / "empty.mp4"), "out.mp4", "--debug"]) == 2
    said = capfd.readouterr().err
    assert "Traceback" in said and said.splitlines()[-1].startswith("flowmag: error: ")


def test_a_defect_is_not_the_users_fault(clips, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("flowmag_nb.magnify.magnify_frames", lambda *_: 1 / 0)
    assert main(["magnify", str(clips / "good.mp4"), str(tmp_path / "out.mp4"), *QUICK]) == 1
    assert "ZeroDivisionError" in complaint(capfd.readouterr().err) and not contents(tmp_path)


def test_help_of_every_command_has_an_example(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"example:\n  flowmag {name}" in capsys.readouterr().out


def test_info_and_assets(clips, capsys):
    assert main(["info", str(clips / "odd.mp4")]) == 0
    assert "65 x 47 px" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "exaggerate: pixel changes" in capsys.readouterr().out
    assert main(["assets"]) == 0
    assert "raft" in capsys.readouterr().out
    assert main(["assets", "get", "rafft"]) == 2
    assert "raft" in complaint(capsys.readouterr().err)
    assert main(["assets", "got"]) == 2


# Below, real processes: the command is started as a shell would.

def start(*words, **options):
    """The command in a process of its own, once it has begun to magnify."""
    process = subprocess.Popen([sys.executable, STANDINS, "magnify", *map(str, words), "--model", "slow", "--batch", "2"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **{"preexec_fn": listening, **options})
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    return process


def test_help_and_errors_of_the_installed_command_are_quick():
    begun = time.monotonic()
    run = lambda *words: subprocess.run([sys.executable, "-X", "importtime", "-m", "flowmag_nb.cli", *words], capture_output=True, text=True)
    for words, code in [(["--help"], 0), (["--version"], 0), ([], 2), (["magnfy"], 2)]:
        done = run(*words)
        assert done.returncode == code and "| torch\n" not in done.stderr
    assert "did you mean magnify" in done.stderr.splitlines()[-1]
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_killed_half_way(how, code, clips, tmp_path):
    out = tmp_path / "out.mkv"
    out.write_bytes(b"here before")
    process = start(clips / "long.mp4", out, "-y")
    while len(list(tmp_path.iterdir())) < 2:  # the part being written is beside it
        assert process.stdout.readline() == "begun\n"
    process.send_signal(how)
    said = process.communicate()[1]
    assert process.returncode == code and out.read_bytes() == b"here before"
    if how != signal.SIGKILL:
        assert said == "flowmag: interrupted, no unfinished output is left\n" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 kB where we may mount one."""
    at = tmp_path / "disk"
    at.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(at)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


def test_full_disk(clips, small_disk, capfd):
    noise = write(clips / "noise.mkv", np.random.default_rng(0).integers(0, 255, (24, 128, 128, 3), np.uint8))
    for out in ("out.mkv", "out.mp4", "frames"):
        assert main(["magnify", str(noise), str(small_disk / out), *QUICK]) == 1
        assert "No space left" in complaint(capfd.readouterr().err)
        assert list(small_disk.iterdir()) == []


def test_full_quota(clips, tmp_path):
    """The same where nobody may mount: no file of this process may pass 20 kB."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    done = subprocess.run([sys.executable, STANDINS, "magnify", str(clips / "noise.mkv"), str(tmp_path / "out.mkv"), *QUICK],
                          capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and "too large" in complaint(done.stderr) and not contents(tmp_path)


@pytest.fixture
def closed_folder(request, tmp_path):
    """A folder nobody may write to: for root, who may everything, on a read-only file system."""
    if not os.getuid():
        folder = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    else:
        folder = tmp_path
        folder.chmod(0o500)
    return folder


def test_folder_that_is_not_writable(clips, closed_folder, capfd):
    assert main(["magnify", str(clips / "good.mp4"), str(closed_folder / "out.mp4"), *QUICK]) == 2
    assert "not writable" in complaint(capfd.readouterr().err)


def test_demo_writes_a_video_a_slice_and_a_still(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "demo"), *QUICK]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in said[:3]] == ["magnified.mp4", "slice.png", "still.png"]
    assert all(Path(line).is_file() for line in said[:3]) and said[3].startswith("90 frames, alpha 10")
    assert Image.open(said[1]).info["alpha"] == "10.0"
