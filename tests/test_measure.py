"""Measuring: pictures moved by known amounts, and what a table says of them."""
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from standins import sway, write

from flowmag_nb.cli import main
from flowmag_nb.flow.clg import luma
from flowmag_nb.measure import locate, measure_video, region
from flowmag_nb.segment import box_mask
from flowmag_nb.target import Target
from flowmag_nb.video import VideoWriter

SIZE = 96, 128


def pattern(phase=0., seed=0):
    """A periodic texture of many waves, (h, w) in [0, 1], moved by `phase` (dx, dy) px exactly."""
    h, w = SIZE
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]
    radius = np.hypot(fx, fy)
    spectrum = np.fft.fft2(rng.normal(size=SIZE)) * (radius > 0) / np.maximum(radius, 1 / w) * (radius < .2)
    dx, dy = np.broadcast_to(phase, 2)
    picture = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (fx * dx + fy * dy))).real
    return .5 + .15 * picture / np.fft.ifft2(spectrum).real.std()


def film(courses, noise=0., seed=0):
    """(t, h, w, 3) float32 clip of `pattern` along `courses` (t, 2) px, under noise."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([pattern(course) for course in courses])
    return np.repeat((pictures + rng.normal(0, noise, pictures.shape)).clip(0, 1)[..., None], 3, -1).astype("float32")


def waves(frames=60, fps=30):
    """(t, 2): .3 px at 4 Hz to the right, .1 px at 7 Hz down."""
    t = np.arange(frames) / fps
    return np.stack([.3 * np.sin(2 * np.pi * 4 * t), .1 * np.sin(2 * np.pi * 7 * t)], 1)


BOX = Target(box=(20, 16, 80, 64), name="patch")


def test_known_waves_are_found_to_a_hundredth():
    found = measure_video(film(waves()), BOX, fps=30, progress=False)
    np.testing.assert_allclose(found.course("patch")[["dx_px", "dy_px"]], waves(), atol=.01)
    assert found.peaks().loc["patch", ["frequency_hz", "amplitude_px"]].tolist() == pytest.approx([4, .3], rel=.03)
    down = measure_video(film(waves()), BOX, fps=30, axis=90, progress=False).peaks().loc["patch"]
    assert [down.frequency_hz, down.amplitude_px] == pytest.approx([7, .1], rel=.05)


def test_slow_motion_is_told_in_the_scenes_own_time():
    slow = measure_video(film(waves()), BOX, fps=30, capture_fps=240, progress=False)
    assert slow.peaks().frequency_hz["patch"] == pytest.approx(32, rel=.03)
    assert slow.table.time_s.iloc[-1] == pytest.approx(59 / 240)


def test_errors_are_as_large_as_they_say():
    first = luma(torch.from_numpy(film(np.zeros((1, 2)))).permute(0, 3, 1, 2))
    one = region(box_mask(BOX.box, *SIZE).float())
    noisy = luma(torch.from_numpy(film(np.tile([.2, -.1], (40, 1)), noise=.02)).permute(0, 3, 1, 2))
    found, spreads = zip(*(locate(one, first, frame[None], torch.zeros(3, 2)) for frame in noisy))
    found, said = torch.stack(found)[:, 0].double(), torch.stack(spreads).diagonal(0, 1, 2).mean(0).sqrt()
    assert ((found.std(0) / said).log().abs() < np.log(1.6)).all()
    assert (said < .02).all() and (found.mean(0) - torch.tensor([.2, -.1])).abs().max() < .01


def test_an_object_is_followed_out_of_its_window():
    away = np.stack([np.linspace(0, 24, 30), np.linspace(0, -12, 30)], 1)
    found = measure_video(film(away), Target(box=(20, 40, 40, 40)), fps=30, progress=False)
    np.testing.assert_allclose(found.table[["dx_px", "dy_px"]], away, atol=.05)


def test_what_turns_is_read_in_its_middle():
    y, x = np.mgrid[:96, :128] - np.array([48, 64])[:, None, None]
    turned = []
    for degrees in np.linspace(0, 2, 5):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        u, v = c * x + s * y, c * y - s * x
        turned.append(.5 + .2 * np.sin(u / 2 + 2 * np.sin(v / 5)) * np.exp(-((u - 15) / 20) ** 2) + .15 * np.cos(v / 2.5))
    clip = np.repeat(np.stack(turned)[..., None], 3, -1).astype("float32")
    found = measure_video(clip, Target(box=(40, 24, 49, 49)), progress=False).table[["dx_px", "dy_px"]].to_numpy()
    assert np.abs(found).max() < .05


def test_along_stripes_nothing_is_told():
    rng, x = np.random.default_rng(0), np.arange(128)
    stripes = [.5 + .2 * np.sin((x - .05 * np.sin(t)) / 2)[None] + rng.normal(0, .02, SIZE) for t in range(40)]
    found = measure_video(np.repeat(np.stack(stripes)[..., None], 3, -1).clip(0, 1).astype("float32"), BOX, progress=False)
    course = found.course("patch")
    assert course.dy_px.std() > course.dx_px.std() and abs(found.axes["patch"]) < 10
    assert course.dy_error_px.iloc[1:].median() > 5 * course.dx_error_px.iloc[1:].median()


def test_band_scale_and_what_rests():
    hand = np.stack([np.linspace(0, 3, 60), 2 * np.cos(np.arange(60) / 9)], 1)
    pictures = film(hand)
    moving = film(hand + waves())
    clip = np.concatenate([moving[:, :48], pictures[:, 48:]], 1)
    above, below = Target(box=(20, 8, 80, 30), name="above"), Target(box=(20, 58, 80, 30), name="below")
    found = measure_video(clip, above, still=below, band=(3, 5), scale=.5, unit="mm", fps=30, progress=False)
    assert list(found.table.columns[3:6]) == ["dx_mm", "dy_mm", "along_mm"]
    assert found.peaks().loc["above", ["frequency_hz", "amplitude_mm"]].tolist() == pytest.approx([4, .15], rel=.1)
    assert found.table.dy_mm.abs().max() < .01


def test_a_band_of_a_clip_whose_frames_come_unevenly(tmp_path):
    shown = np.r_[:40, 40:120:2]  # 30 frames a second, then 15
    wave = .3 * np.sin(2 * np.pi * 1.5 * shown / 30)
    with VideoWriter(tmp_path / "uneven.mkv") as writer:
        for picture, i in zip(film(np.stack([wave, 0 * wave], 1)), shown): writer.write(picture, Fraction(int(i), 30))
    found = measure_video(tmp_path / "uneven.mkv", band=(1, 2), progress=False).course("picture")
    np.testing.assert_allclose(found.dx_px.to_numpy()[20:-10], wave[20:-10], atol=.06)


def test_the_picture_as_a_whole_and_objects_that_are_too_small():
    whole = measure_video(film(waves(12)), fps=30, progress=False)
    assert whole.objects == ["picture"]
    np.testing.assert_allclose(whole.course("picture")[["dx_px", "dy_px"]], waves(12), atol=.03)
    small = measure_video(film(waves(3)), Target(box=(60, 40, 6, 6)), progress=False)
    assert small.table.along_error_px.isna().all() and small.table.along_px.notna().all()
    with pytest.raises(ValueError, match="8 frames or more, got 3"): small.spectrum()


BAD = {  # what is typed: what the answer must contain
    "nowhere.mp4 OUT": "does not exist",
    "once.mp4 OUT": "motion needs two",
    "tiny.mp4 OUT": "at least 32 px",
    "good.mp4 motion.txt": "must end in .csv",
    "good.mp4 no/such/motion.csv": "does not exist; create it first",
    "good.mp4 here.csv": "-y replaces it",
    "good.mp4 OUT --box 1,2,3": "four numbers",
    "good.mp4 OUT --box 1,2,9,9 --box 1,2,9,9": "names of targets must differ",
    "good.mp4 OUT --still 60,1,9,9": "sticks out",
    "good.mp4 OUT --reference previous": "measured from one frame",
    "good.mp4 OUT --reference 12": "from -12 to 11",
    "good.mp4 OUT --band 4": "lowest and the highest",
    "good.mp4 OUT --band 4,12": "half the frame rate",
    "good.mp4 OUT --band 6,4": "low < high",
    "good.mp4 OUT --scale 0mm": "scale must be a positive number of mm",
    "good.mp4 OUT --scale mm": "a number and a unit",
    "good.mp4 OUT --axis up": "invalid float value",
    "good.mp4 OUT --show motion.doc": "--show must end in",
    "good.mp4 OUT --spectrum waves.txt": "--spectrum must end in .csv",
    "good.mp4 OUT --spectrum waves.csv --capture-fps 0": "capture_fps",
    "short.mp4 OUT --spectrum waves.csv": "8 frames or more, got 4",
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    at = tmp_path_factory.mktemp("clips")
    for name, options in dict(good={}, short=dict(frames=4), once=dict(frames=1), tiny=dict(height=16, width=16)).items():
        write(at / f"{name}.mp4", sway(**options))
    write(at / "long.mkv", (255 * film(waves(36, 24))).round().astype("uint8"))
    (at / "here.csv").write_text("here before")
    return at


@pytest.mark.parametrize("typed, answer", BAD.items())
def test_bad_input_is_one_line_and_leaves_nothing(typed, answer, clips, monkeypatch, capfd):
    monkeypatch.chdir(clips)
    before = {p.name: p.read_bytes() for p in clips.iterdir()}
    assert main(["measure", *typed.replace("OUT", "new.csv").split()]) == 2
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and answer in printed.err and printed.out == ""
    assert {p.name: p.read_bytes() for p in clips.iterdir()} == before


def test_command_writes_table_waves_and_picture(clips, tmp_path, capfd):
    typed = f"measure {clips}/long.mkv {tmp_path}/m.csv --box 20,16,80,64 --scale 0.5mm --spectrum {tmp_path}/waves.csv --show {tmp_path}/m.svg"
    assert main(typed.split()) == 0
    said = capfd.readouterr().out
    assert "36 frames" in said and " mm at 4.0" in said and "along 0 degrees" in said
    table, spectrum = pd.read_csv(tmp_path / "m.csv"), pd.read_csv(tmp_path / "waves.csv")
    assert len(table) == 36 and "along_error_mm" in table and spectrum.frequency_hz.max() == pytest.approx(12, rel=.001)
    assert (tmp_path / "m.svg").read_text().startswith("<?xml") and sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".csv", ".svg"]
    assert main([*typed.split(), "-q"]) == 2 and "-y replaces it" in capfd.readouterr().err
    assert main([*typed.split(), "-q", "-y"]) == 0 and capfd.readouterr().out == ""
