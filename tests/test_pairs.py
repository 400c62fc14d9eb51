"""Searches for pairs that are killed, shared by two processes, or fed damaged clips; a store read with three packages."""
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standins import write

from flowmag_nb.flow import FlowNet
from flowmag_nb.pairs import find_clips, keep_pairs, list_pairs, measure_pairs
from flowmag_nb.store import PairStore, pack_pairs

pytest.importorskip("accelerate", reason="needs the extra [data]")


class Change(FlowNet):
    """The change of each pixel, for a flow; takes its time, and tells when it has begun."""
    def __init__(self, seconds=0.):
        super().__init__()
        self._seconds = seconds

    def forward(self, first, second):
        print(f"measured {len(first)}\n", end="", flush=True)
        time.sleep(self._seconds)
        return 10 * (second - first)[:, :2]


def search(clips, out, seconds=0.):
    """Measure, keep and pack the pairs of `clips` with small shards."""
    table = measure_pairs(list_pairs(find_clips("plain", clips)), out / "statistics", Change(seconds), size=32, batch=2, shard=4)
    return pack_pairs(table[keep_pairs(table, mse=100, p80=20, p0_01=20)], out / "store", short_side=128, shard=4)


def moving(seed, frames=24):
    """Noise that is rolled on, (48,64,3) uint8 a frame."""
    picture = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)
    return [np.roll(picture, i, 1) for i in range(frames)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A film, and a folder of frames."""
    folder = tmp_path_factory.mktemp("clips")
    write(folder / "film.mp4", moving(0))
    (folder / "frames").mkdir()
    for i, image in enumerate(moving(1)):
        Image.fromarray(image).save(folder / f"frames/{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """Files of an uninterrupted search, by name."""
    out = tmp_path_factory.mktemp("whole")
    assert len(search(clips, out)) > 30
    return contents(out)


def contents(folder):
    """What finished files hold, by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}


def command(clips, out, seconds=0., launcher=()):
    """The command line of a search in its own process."""
    return [sys.executable, *launcher, __file__, str(clips), str(out), str(seconds)]


def killed_after(count, clips, out, seconds):
    """Start a search and kill it when `count` finished files are there; how many pairs it measured."""
    run = subprocess.Popen(command(clips, out, seconds), stdout=subprocess.PIPE, text=True)
    while len(contents(out)) < count and run.poll() is None:
        time.sleep(.01)
    run.send_signal(signal.SIGKILL)
    said, _ = run.communicate()
    assert run.returncode == -signal.SIGKILL, "it finished before it could be killed"
    return measured(said)


def measured(said):
    """Pairs measured, as told by `Change`."""
    return sum(map(int, re.findall(r"measured (\d+)", said)))


def test_killed_twice_equals_uninterrupted(clips, whole, tmp_path):
    total = len(list_pairs(find_clips("plain", clips)))
    shards = sum(name.endswith(".parquet") for name in whole)
    first = killed_after(1 + shards // 2, clips, tmp_path, .03)
    there = {name: (tmp_path / name).stat().st_mtime_ns for name in contents(tmp_path)}
    assert 0 < len(there) - 1 < shards and 0 < first < total
    second = killed_after(1 + shards + 3, clips, tmp_path, 0)
    assert second <= total - 4 * (len(there) - 1), "a finished pair was measured again"
    done = subprocess.run(command(clips, tmp_path), check=True, capture_output=True, text=True)
    assert measured(done.stdout) == 0
    assert contents(tmp_path) == whole and not list(tmp_path.rglob(".*"))
    assert all((tmp_path / name).stat().st_mtime_ns == then for name, then in there.items())


def test_two_processes_equal_one(clips, whole, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(command(clips, tmp_path, launcher=launcher), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(re.findall(r"process \d of \d", done.stdout)) == ["process 0 of 2", "process 1 of 2"]
    assert measured(done.stdout) == len(list_pairs(find_clips("plain", clips)))
    assert contents(tmp_path) == whole


def test_damage_is_named_counted_and_skipped(tmp_path):
    clips = tmp_path / "clips"
    (clips / "frames").mkdir(parents=True)
    for i, image in enumerate(moving(1, 12)):
        Image.fromarray(image).save(clips / f"frames/{i}.png")
    (clips / "frames/6.png").write_bytes((clips / "frames/6.png").read_bytes()[:1000])
    film = write(clips / "film.mp4", moving(0, 40))
    content = bytearray(film.read_bytes())
    content[len(content) // 2:len(content) // 2 + 2000] = bytes(2000)
    film.write_bytes(content)
    whole = write(clips / "cut.mkv", moving(0, 40)).read_bytes()
    (clips / "cut.mkv").write_bytes(whole[:len(whole) * 2 // 3])
    (clips / "empty.mp4").touch()

    with pytest.warns(UserWarning, match="pairs skipped.*cut.mkv, frames .*it was cut off.*empty.mp4 is empty") as said:
        table = measure_pairs(list_pairs(find_clips("plain", clips)), tmp_path / "statistics", Change(), size=32)
    assert str(said[0].message).startswith(f"{sum(table.error != '')} of {len(table)} pairs skipped")
    bad, good = ({name: rows for name, rows in table[mask].groupby("clip")} for mask in (table.error != "", table.error == ""))
    assert list(bad["frames"]["first"]) == [6, 6] and bad["frames"].error.str.contains("6.png").all() and len(good["frames"]) == 6 + 4 - 2
    assert len(good["film.mp4"]) > 3 and len(bad["film.mp4"]) > 5 and bad["film.mp4"].error.str.contains("film.mp4").all()
    assert len(good["cut.mkv"]) > 10 and "cut off" in bad["cut.mkv"].error.iloc[0]
    assert list(bad["empty.mp4"].stride) == [1, 5] and "empty.mp4" not in good
    assert table[table.error != ""][["mse", "p80"]].isna().all(axis=None) and not keep_pairs(table[table.error != ""]).any()

    with pytest.warns(UserWarning, match="frames 6 and .* left out: .*6.png"):
        store = pack_pairs(table[table["clip"] == "frames"], tmp_path / "store")
    assert len(store) == len(good["frames"])


def test_errors(tmp_path):
    for i, side in enumerate((48, 48, 48, 50)):
        Image.fromarray(np.zeros((side, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    pairs = list_pairs(find_clips("plain", tmp_path))
    with pytest.raises(ValueError, match="frames 2 and 3: both frames must have one size, got 64x48 and 64x50"):
        measure_pairs(pairs, tmp_path / "statistics", Change(), size=32)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="found no clips"):
        find_clips("plain", tmp_path / "none")
    for empty in (lambda: list_pairs([]), lambda: measure_pairs([], tmp_path / "x", Change())):
        with pytest.raises(ValueError, match="at least one pair"):
            empty()
    with pytest.raises(ValueError, match="shards are missing; run the same work again"):
        PairStore(tmp_path / "statistics")


BARE = """
import sys
for name in ("av", "pandas", "pyarrow", "accelerate", "matplotlib", "fastcore", "tqdm", "pooch", "safetensors", "torchvision", "cv2"): sys.modules[name] = None
from flowmag_nb.store import PairStore
store = PairStore(sys.argv[1])
a, b = store[len(store) - 1]
print(len(store), tuple(a.shape), str(a.dtype), float((a - b).abs().mean()) > .01, store.pair(0))
"""


def test_a_store_needs_three_packages(clips, tmp_path):
    store = search(clips, tmp_path)
    done = subprocess.run([sys.executable, "-c", BARE, tmp_path / "store"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{len(store)} (3, 128, 171) torch.float32 True {store.pair(0)}"


if __name__ == "__main__":
    from accelerate import PartialState
    process = PartialState(cpu=True)
    print(f"process {process.process_index} of {process.num_processes}", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
