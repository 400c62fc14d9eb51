"""Memory of a run, measured in processes of their own; what a run keeps of its source; a user's own module."""
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from standins import sway, write
from test_video import make, moving, sound_packets
from torch import nn

from flowmag_nb.magnify import magnify_video
from flowmag_nb.video import Video

PEAK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from standins import Exaggerate
from flowmag_nb.magnify import magnify_video
magnify_video(sys.argv[2], sys.argv[3], model=eval(sys.argv[4]), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(clip, model="Exaggerate()", output="out.mkv"):
    """MB that a process needs at most to magnify `clip`, PyTorch included."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(Path(__file__).parent), str(clip), str(clip.with_name(output)), model],
                          capture_output=True, text=True, check=True)
    clip.with_name(output).unlink()
    return float(done.stdout)


def rolled(frames, height, width):
    """A picture that steps to and fro, cheap to make in any number."""
    blocks = np.random.default_rng(0).integers(60, 190, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return (np.roll(blocks, t % 3, 1) for t in range(frames))


def test_memory_does_not_grow_with_length(tmp_path):
    short, long = (peak(write(tmp_path / f"{n}.mp4", rolled(n, 120, 160))) for n in (300, 1500))
    assert long < 1.1 * short, (short, long)


def test_memory_of_the_default_at_full_hd(tmp_path):
    assert peak(write(tmp_path / "hd.mp4", rolled(12, 1080, 1920)), "'motion'", "out.mp4") < 1900  # 1.9 GiB are 2 GB


@pytest.mark.skipif("FLOWMAG_NB_SLOW" not in os.environ, reason="takes minutes; FLOWMAG_NB_SLOW=1 runs it")
def test_memory_of_3000_frames(tmp_path):
    short, long = (peak(write(tmp_path / f"{n}.mp4", rolled(n, 360, 640))) for n in (300, 3000))
    assert long < 900 and abs(long - short) < .1 * short, (short, long)


@pytest.mark.parametrize("rotate", [0, 90])
def test_times_sound_and_posture_are_kept(tmp_path, rotate):
    """A phone's film: uneven times, sound, stored on its side."""
    if rotate and not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("PyAV before 18 writes no rotation")
    uneven = [Fraction(3 * i + i % 3, 60) for i in range(30)]
    clip = make(tmp_path / "in.mp4", moving(), times=uneven, sound="aac", rotate=rotate)
    result = magnify_video(clip, tmp_path / "out.mp4", 1, model=Frozen(), progress=False)
    assert (result.video.height, result.video.width) == ((96, 64) if rotate else (64, 96))
    assert [f.time for f in result.video] == [f.time for f in Video(clip)] and result.video.is_variable_rate
    assert sound_packets(result.output) == sound_packets(clip)
    assert max(np.abs(a.image.astype(int) - b.image).mean() for a, b in result) < 5
    mask = np.ones((result.video.height, result.video.width))
    magnify_video(clip, tmp_path / "masked.mp4", model="exaggerate", mask=mask, progress=False)  # a mask for what is seen


def test_a_gif_comes_back_as_one(tmp_path):
    clip = write(tmp_path / "in.gif", sway())
    result = magnify_video(clip, tmp_path / "out.gif", 1, model=Frozen(), progress=False)
    assert [f.time for f in result.video] == [f.time for f in Video(clip)]


class Frozen(nn.Module):
    """A user's own module, no Magnifier: at alpha 1 the frame itself."""
    def forward(self, reference, frame, alpha):
        assert reference.shape == frame.shape and alpha.shape == (len(frame),)
        return frame


def test_a_temporary_output_goes_with_its_result():
    result = magnify_video(np.stack(list(sway())), model=Frozen(), progress=False)
    path = result.output
    assert path.is_file() and result.frames == 12 and min(result.timings.values()) >= 0
    del result
    assert not path.exists()


def test_a_folder_of_images_becomes_one(tmp_path):
    source = write(tmp_path / "in", sway())
    result = magnify_video(source, tmp_path / "out", 1, model=Frozen(), fps=12, progress=False)
    assert result.video.fps == 12 and all((a.image == b.image).all() for a, b in result)


def test_the_real_default_on_the_bundled_clip(tmp_path):
    from flowmag_nb.paths import sample_clip
    clip = np.stack([f.image for f, _ in zip(Video(sample_clip()), range(4))])
    result = magnify_video(clip, tmp_path / "out.mkv", progress=False)
    assert result.model == "motion"
    images = [f.image for f in result.video]
    assert np.abs(images[0].astype(int) - clip[0]).mean() < 1  # nothing moves in the first
