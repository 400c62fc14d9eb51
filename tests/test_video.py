"What happens to a clip outside a notebook: sound, phones, broken files, full disks and killed processes."
import os
import resource
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from standins import listening

from flowmag_nb.video import Video, VideoWriter, check_output


def moving(n=30, height=64, width=96):
    "Waves that drift, smooth enough for any codec, (n,h,w,3) uint8."
    y, x, t = np.mgrid[:height, :width, :n]
    waves = [np.sin(x/9 + t/5), np.sin(y/7 - t/6), np.cos((x + y)/11 + t/4)]
    return np.ascontiguousarray((127 + 100*np.stack(waves, -1)).transpose(2, 0, 1, 3).round().astype(np.uint8))


def make(path, images, *, codec="libx264", pix_fmt="yuv420p", times=None, rate=30, tick=Fraction(1, 90000), sound=None, rotate=0, **options):
    "A file as some other program would write it; `times` in s, `sound` a codec name."
    with av.open(str(path), "w", options=options) as out:
        video = out.add_stream(codec, rate=rate)
        video.height, video.width, video.pix_fmt = *images.shape[1:3], pix_fmt
        video.time_base = video.codec_context.time_base = tick
        if rotate: video.set_display_rotation(rotate)
        if sound: audio = out.add_stream(sound, rate=16000, layout="stereo")
        packets = []
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = round((Fraction(i, rate) if times is None else times[i])/tick), tick
            packets += video.encode(frame)
        packets += video.encode(None)
        if sound: packets += hum(audio, len(images)/rate + .4)
        for packet in packets: out.mux(packet)
    return path


def hum(audio, seconds):
    "Packets of a 440 Hz tone."
    n = int(16000*seconds)
    tone = (np.sin(np.arange(n)*440*2*np.pi/16000)*8000).astype(np.int16)
    resampler = av.AudioResampler(audio.format, audio.layout, 16000, frame_size=audio.codec_context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(tone.repeat(2)[None], "s16", "stereo")
    frame.rate, frame.pts = 16000, 0
    for out in chain(resampler.resample(frame), resampler.resample(None)): yield from audio.encode(out)
    yield from audio.encode(None)


def samples(path):
    "Decoded sound of a file: time of the first sample in s, and samples (n, channels)."
    with av.open(str(path)) as file:
        frames = list(file.decode(file.streams.audio[0]))
    data = [f.to_ndarray().reshape(len(f.layout.channels), -1).T if f.format.is_planar else f.to_ndarray().reshape(-1, len(f.layout.channels)) for f in frames]
    return float(frames[0].pts*frames[0].time_base), np.concatenate(data)


def copy(source, path, **kwargs):
    "`source` decoded and written again, as a magnifier of factor 1 would."
    with VideoWriter(path, like=source, **kwargs) as writer:
        for frame in Video(source): writer.write(frame.image)
    return Video(path)


def times(video): return [f.time for f in video]


def error(video, other):
    "Mean difference in levels of the worst frame; neighbours in `moving` differ by 13, CRF 18 errs by 3."
    return max(np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(video, other, strict=True))


# what survives a round trip

def sound_packets(path):
    "Sound as stored in a file: bytes and time in s of every packet."
    with av.open(str(path)) as file: return [(bytes(p), float(p.pts*p.time_base)) for p in file.demux(audio=0) if p.size]


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "libopus", "flac"])
def test_sound_is_copied_in_step(tmp_path, codec, name):
    source = make(tmp_path/name, moving(), sound=codec)
    out = copy(source, tmp_path/"out.mp4").source
    (before, at), (after, at_out) = zip(*sound_packets(source)), zip(*sound_packets(out))
    assert before == after
    assert np.allclose(at, at_out, atol=6e-5 if name == "in.mp4" else 1e-3), "Matroska counts in milliseconds"


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "flac"])
def test_sound_is_the_same_to_the_sample(tmp_path, codec):
    source = make(tmp_path/"in.mp4", moving(), sound=codec)
    (start, before), (start_out, after) = samples(source), samples(copy(source, tmp_path/"out.mp4").source)
    assert start == start_out and np.array_equal(before, after)


def test_sound_that_players_do_not_know_is_encoded_anew(tmp_path):
    source = make(tmp_path/"in.mkv", moving(), sound="pcm_s16le")
    out = copy(source, tmp_path/"out.mp4").source
    with av.open(str(out)) as file: assert file.streams.audio[0].codec_context.name == "aac"
    (start, before), (start_out, after) = samples(source), samples(out)
    assert start == start_out and len(before) <= len(after) < len(before) + 1024
    assert np.abs(before[2000:-2000]/32768 - after[2000:len(before)-2000]).mean() < .01


def test_sound_ends_with_the_pictures_of_a_beginning(tmp_path):
    source = make(tmp_path/"in.mp4", moving(60), sound="aac")
    with VideoWriter(tmp_path/"out.mp4", like=source) as writer:
        for frame in list(Video(source))[:15]: writer.write(frame.image)
    assert .4 < len(samples(tmp_path/"out.mp4")[1])/16000 < .6


def test_a_new_rate_drops_the_sound(tmp_path):
    source = make(tmp_path/"in.mp4", moving(), sound="aac")
    out = copy(source, tmp_path/"out.mp4", fps=15)
    assert not out.has_audio and out.fps == 15 and out.duration == 2


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.mov", "in.ts"])
def test_uneven_times_survive(tmp_path, name):
    images, uneven = moving(), [Fraction(3*i + i % 3, 60) for i in range(30)]
    source = Video(make(tmp_path/name, images, times=uneven))
    assert source.is_variable_rate and source.frame_count == 30
    steps = np.diff([float(t) for t in times(source)])
    assert np.abs(steps - np.diff([float(t) for t in uneven])).max() < 1.1e-3
    out = copy(source, tmp_path/"out.mp4")
    assert times(out) == times(source) == [source.time(i) for i in range(30)]
    assert out.is_variable_rate and error(out, source) < 5


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24), Fraction(1000), Fraction(1, 2)])
def test_rates_are_exact(tmp_path, rate):
    with VideoWriter(tmp_path/"out.mp4", fps=rate) as writer:
        for image in moving(12): writer.write(image)
    out = Video(tmp_path/"out.mp4")
    assert out.fps == rate and not out.is_variable_rate
    assert times(out) == [i/rate for i in range(12)]
    assert out.duration == pytest.approx(12/rate)


def test_a_long_last_frame_is_no_damage(tmp_path):
    "A slide show ends with a slide that stays; a file that promises it is whole."
    path = tmp_path/"slides.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30, options={"bf": "0"})
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        packets = [p for image in moving(5) for p in video.encode(av.VideoFrame.from_ndarray(image, "rgb24"))] + video.encode(None)
        for packet in packets:
            packet.duration = 900 if packet is packets[-1] else 1
            out.mux(packet)
    assert Video(path).duration > 29 and len(list(Video(path))) == 5


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="PyAV before 18 writes no rotation")
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_phones(tmp_path, degrees):
    "A film stored on its side is upright when read, and needs no note when written."
    images = moving()
    source = Video(make(tmp_path/"in.mp4", images, rotate=degrees))
    upright = np.rot90(images, degrees//90, axes=(1, 2))
    assert (source.height, source.width) == upright.shape[1:3] and source.rotation == degrees
    assert error(source, [Frame_like(x) for x in upright]) < 6
    out = copy(source, tmp_path/"out.mp4")
    assert out.rotation == 0 and error(out, source) < 5


class Frame_like:
    def __init__(self, image): self.image = image


@pytest.mark.parametrize("height,width", [(63, 95), (64, 95), (63, 96), (1, 1), (1, 50), (33, 1), (2, 2)])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "out"])
def test_odd_and_tiny_sizes(tmp_path, height, width, name):
    images = moving(3, height, width)
    with VideoWriter(tmp_path/name) as writer:
        for image in images: writer.write(image)
    out = Video(tmp_path/name)
    assert (out.height, out.width, out.frame_count) == (height, width, 3)
    assert error(out, [Frame_like(x) for x in images]) < (0.01 if name in ("out.mkv", "out") else 12)


@pytest.mark.parametrize("name,codec,pix_fmt", [("a.webm", "libvpx-vp9", "yuv420p"), ("a.avi", "mjpeg", "yuvj420p"), ("b.avi", "mpeg4", "yuv420p"),
                                              ("a.mkv", "ffv1", "bgr0"), ("a.ts", "libx264", "yuv420p"), ("a.mp4", "libx264", "yuv444p")])
def test_frames_by_number(tmp_path, name, codec, pix_fmt):
    source = Video(make(tmp_path/name, moving(40), codec=codec, pix_fmt=pix_fmt, tick=Fraction(1, 30)))
    frames = list(source)
    assert len(frames) == source.frame_count == 40
    for i in (0, 1, 13, 39, -1):
        frame = source.frame(i)
        assert frame.time == frames[i].time and np.array_equal(frame.image, frames[i].image)


def test_non_square_pixels_are_kept(tmp_path):
    source = tmp_path/"in.mp4"
    with av.open(str(source), "w") as out:
        video = out.add_stream("libx264", rate=30)
        video.height, video.width, video.pix_fmt, video.codec_context.sample_aspect_ratio = 64, 96, "yuv420p", Fraction(16, 15)
        for image in moving(3): out.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(video.encode(None))
    copy(source, tmp_path/"out.mp4")
    with av.open(str(tmp_path/"out.mp4")) as file: assert file.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


def test_what_the_file_says_of_itself(tmp_path):
    out = copy(make(tmp_path/"in.mp4", moving()), tmp_path/"out.mp4").source
    with av.open(str(out)) as file:
        video = file.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        tags = video.codec_context
        assert (tags.colorspace, tags.color_primaries, tags.color_trc, tags.color_range) == (1, 1, 1, 1)
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a player can start before the end has arrived"


def test_folder_images(tmp_path):
    folder = tmp_path/"pictures"
    folder.mkdir()
    for i in (10, 9, 1): Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder/f"p{i}.png")
    (folder/"notes.txt").write_text("not a picture")
    assert [f.image[0, 0, 0] for f in Video(folder, fps=5)] == [1, 9, 10]
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(folder/"p0.png")
    assert Video(folder).frame(0).image[0, 0, 0] == 0x80
    Image.new("RGB", (8, 9)).save(folder/"p11.png")
    with pytest.raises(ValueError, match="p11.png is 8x9"): list(Video(folder))


def test_a_folder_of_images_is_replaced_whole(tmp_path):
    for n in (5, 3):
        with VideoWriter(tmp_path/"out") as writer:
            for image in moving(n): writer.write(image)
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["000001.png", "000002.png", "000003.png"]
    assert os.listdir(tmp_path) == ["out"]


# bad input

def cut(source, share):
    "`source` without its end."
    path = source.with_name(f"cut_{source.name}")
    path.write_bytes(source.read_bytes()[:int(source.stat().st_size*share)])
    return path


def sound_only(path):
    with av.open(str(path), "w") as out:
        audio = out.add_stream("aac", rate=16000, layout="stereo")
        for packet in hum(audio, .5): out.mux(packet)
    return path


def written(path, data):
    path.write_bytes(data)
    return path


def empty_folder(path):
    path.mkdir()
    return path


def no_frames(path):
    "A sound header, a video header, and no picture."
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30)
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
    return path


BAD = dict(
    missing=(lambda d: d/"nowhere.mp4", FileNotFoundError, "does not exist"),
    empty=(lambda d: written(d/"a.mp4", b""), ValueError, "is empty"),
    text=(lambda d: written(d/"a.mp4", b"dear diary, "*500), ValueError, "not a video"),
    text_named_so=(lambda d: written(d/"a.txt", b"dear diary, "*500), ValueError, "no video"),
    noise=(lambda d: written(d/"a.mp4", np.random.default_rng(0).bytes(5000)), ValueError, "not a video"),
    sound_only=(lambda d: sound_only(d/"a.mp4"), ValueError, "sound only"),
    no_frames=(lambda d: no_frames(d/"a.mp4"), ValueError, "no (video|frame)|not a video|cut off"),
    no_images=(lambda d: empty_folder(d/"a"), ValueError, "holds no images"),
    broken_image=(lambda d: written(d/"a.png", b"\x89PNG nonsense"), ValueError, "not an image"),
    index_lost=(lambda d: cut(make(d/"a.mp4", moving()), .6), ValueError, "cut off"),
    end_lost=(lambda d: cut(make(d/"a.mp4", moving(), movflags="+faststart"), .6), ValueError, "cut off"),
    end_lost_mkv=(lambda d: cut(make(d/"a.mkv", moving()), .6), ValueError, "cut off"),
    end_lost_webm=(lambda d: cut(make(d/"a.webm", moving(), codec="libvpx-vp9"), .6), ValueError, "cut off"),
    end_lost_avi=(lambda d: cut(make(d/"a.avi", moving(), codec="mpeg4", tick=Fraction(1, 30)), .6), ValueError, "cut off"))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(tmp_path, case):
    build, kind, words = BAD[case]
    path = build(tmp_path)
    with pytest.raises(kind, match=words) as error: list(Video(path))
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_bad_arrays():
    for source, words in ((np.zeros((0, 4, 4, 3), np.uint8), "hold a pixel"), (np.zeros((2, 4, 4, 3), int), "int64"),
                          (np.full((2, 4, 4, 3), np.nan), "nan"), (np.zeros((2, 4, 4)), "shape")):
        with pytest.raises(ValueError, match=words): list(Video(source))
    with pytest.raises(TypeError, match="NoneType"): Video(None)


def test_one_frame(tmp_path):
    source = Video(make(tmp_path/"a.mp4", moving(1)))
    assert source.frame_count == 1 and len(list(source)) == 1 and not source.is_variable_rate
    assert source.duration > 0
    assert copy(source, tmp_path/"b.mp4").frame_count == 1


def test_bad_outputs(tmp_path):
    clip = make(tmp_path/"in.mp4", moving())
    (tmp_path/"dir.mp4").mkdir()
    (tmp_path/"file").write_text("precious")
    (tmp_path/"full").mkdir()
    (tmp_path/"full"/"thesis.tex").write_text("precious")
    (tmp_path/"link.mp4").symlink_to(clip)
    for name, kind, words in (("no/out.mp4", FileNotFoundError, "create it"), ("dir.mp4", IsADirectoryError, "folder"), ("file", FileExistsError, "a file"),
                              ("full", FileExistsError, "thesis.tex"), ("in.mp4", ValueError, "input"), ("link.mp4", ValueError, "input"),
                              ("out.xyz", ValueError, "xyz")):
        with pytest.raises(kind, match=words): check_output(tmp_path/name, Video(clip))
    with pytest.raises(ValueError, match="input"): check_output(tmp_path, Video(clip))


def test_folder_that_may_not_be_written(tmp_path):
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
        with pytest.raises(PermissionError, match="not writable"): check_output(tmp_path/"out.mp4")
        tmp_path.chmod(0o755)
    else:  # root may write everywhere but here
        if not Path("/proc/self").is_dir(): pytest.skip("no folder that root cannot write")
        with pytest.raises(OSError): writer_into(Path("/proc/self"))


def writer_into(folder):
    with VideoWriter(folder/"out.mp4") as writer:
        for image in moving(3): writer.write(image)


# interruptions

WRITE = """
    import sys, time
    import numpy as np
    from flowmag_nb.video import VideoWriter
    rng = np.random.default_rng(0)
    with VideoWriter(sys.argv[1]) as writer:
        for i in range(10_000):
            writer.write(rng.integers(0, 255, (64,64,3), dtype=np.uint8))
            if i == 100: print("going", flush=True)
            if i > 100: time.sleep(.01)
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "out"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(tmp_path, name, sent):
    "Ctrl-C leaves nothing, kill -9 nothing under the name of the output; an older output stays."
    older = name != "out"
    if older: (tmp_path/name).write_bytes(b"older result")
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITE), str(tmp_path/name)], preexec_fn=listening,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "going\n"
    process.send_signal(sent)
    _, trace = process.communicate(timeout=60)
    assert process.returncode != 0 and ("KeyboardInterrupt" in trace) == (sent == signal.SIGINT)
    left = [p.name for p in tmp_path.iterdir() if not (sent == signal.SIGKILL and p.name.startswith("."))]
    assert left == ([name] if older else [])
    if older: assert (tmp_path/name).read_bytes() == b"older result"


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif", "out"])
def test_full_disk(tmp_path, name):
    "A disk that fills up, a real one for root and a file size limit for others."
    real = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], capture_output=True).returncode == 0
    if not real and name == "out": pytest.skip("no small disk to fill without root, and a limit on file size does not stop a folder")
    older = name != "out"
    if older: (tmp_path/name).write_bytes(b"older result")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    try:
        if not real:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(OSError), VideoWriter(tmp_path/name) as writer:
            for _ in range(100): writer.write(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        assert [p.name for p in tmp_path.iterdir()] == ([name] if older else [])
        if older: assert (tmp_path/name).read_bytes() == b"older result"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if real: subprocess.run(["umount", str(tmp_path)], check=True)


# length costs time, not memory

PEAK = """
    import resource, sys
    import numpy as np
    from flowmag_nb.video import Video, VideoWriter
    name, n = sys.argv[1], int(sys.argv[2])
    waves = (127 + 100*np.sin(np.mgrid[:120,:160].sum(0)/20))[...,None].repeat(3, 2).astype(np.uint8)
    with VideoWriter(name) as writer:
        for i in range(n): writer.write(np.roll(waves, i, 1))
    with VideoWriter(name.replace("/long.", "/copy."), like=name) as writer:
        for frame in Video(name): writer.write(frame.image)
    Video(name).frame(n - 2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_memory_is_flat(tmp_path, name):
    peak = [int(subprocess.run([sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path/name), str(n)], check=True, capture_output=True, text=True).stdout)
            for n in (200, 2000)]
    assert peak[1] < peak[0]*1.05, f"peak memory in kB for 200 and 2000 frames: {peak}"
