"What was written plays in a browser: it loads, runs, keeps its sound, is upright and has the right colours."
import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
from test_video import make, moving

from flowmag_nb.video import Video, VideoWriter

PLAY = """async name => {
    const video = document.createElement('video');
    video.muted = true; video.src = name;
    document.body.replaceChildren(video);
    const loaded = new Promise((yes, no) => {
        video.onloadeddata = yes;
        video.onerror = () => no(new Error(video.error.message || 'code ' + video.error.code)) });
    await loaded;
    const shown = new Promise(yes => video.requestVideoFrameCallback(yes)), late = new Promise(yes => setTimeout(yes, 10000));
    await video.play();
    await Promise.race([shown, late]);  // loaded is not yet painted: a canvas may still get black
    const start = performance.now();
    const canvas = document.createElement('canvas');
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    const paint = canvas.getContext('2d');
    paint.drawImage(video, 0, 0);
    const pixel = (x, y) => [...paint.getImageData(x*canvas.width, y*canvas.height, 1, 1).data].slice(0, 3);
    const corners = [pixel(.1, .1), pixel(.9, .1), pixel(.1, .9), pixel(.9, .9)];
    while (video.currentTime < .3 && performance.now() - start < 10000) await new Promise(r => setTimeout(r, 20));
    return { width: video.videoWidth, height: video.videoHeight, duration: video.duration, time: video.currentTime,
             sound: video.webkitAudioDecodedByteCount, corners };
}"""


def find_browser():
    "Path of a Chromium, or None."
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("FLOWMAG_NB_BROWSER") or next(filter(None, map(shutil.which, names)), None)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A folder and an open page that is served from it."
    missing = pytest.fail if os.environ.get("FLOWMAG_NB_REQUIRE_BROWSER") == "1" else pytest.skip
    browser_path = find_browser()
    if not browser_path: missing("no Chromium found; install one or name it in FLOWMAG_NB_BROWSER")
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing("playwright is not installed (pip install playwright)")
    folder = tmp_path_factory.mktemp("site")
    (folder/"index.html").write_text("<!doctype html><title>clip</title><body></body>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, headless=True, args=args)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        yield folder, page
        browser.close()
    server.shutdown()


def same_colours(seen, wanted):
    "Whether corners agree to 3 levels; 7 for blue, which Chromium's converter renders with a coefficient of 2 in place of 2.11."
    return (np.abs(np.array(seen, int) - np.array(wanted, int)) <= (3, 3, 7)).all()


def four_corners(n, height, width):
    "A still with one colour per corner, (n,h,w,3) uint8."
    image = np.zeros((height, width, 3), np.uint8)
    for (y, x), colour in zip(((0, 0), (0, 1), (1, 0), (1, 1)), COLOURS): image[y*height//2:(y+1)*height//2, x*width//2:(x+1)*width//2] = colour
    return np.broadcast_to(image, (n, height, width, 3))


COLOURS = [(200, 60, 40), (40, 160, 70), (50, 70, 190), (230, 230, 230)]


@pytest.mark.parametrize("height,width", [(720, 1280), (241, 321)])
def test_colours_and_size(site, height, width):
    "The matrix is right at 1280x720, where an untagged or 601 film changes hue, and in a small film of odd size."
    folder, page = site
    with VideoWriter(folder/f"{width}.mp4", fps=25) as writer:
        for image in four_corners(50, height, width): writer.write(image)
    seen = page.evaluate(PLAY, f"{width}.mp4")
    assert (seen["height"], seen["width"]) == (height + height % 2, width + width % 2)
    assert seen["time"] >= .3 and abs(seen["duration"] - 2) < .05
    assert same_colours(seen["corners"], COLOURS), seen["corners"]


@pytest.mark.parametrize("sound", ["aac", "libmp3lame", "libopus", "flac", "pcm_s16le"])
def test_sound_and_uneven_times(site, sound):
    "Whatever the sound of the source, the film made from it is heard; its times are those of the source."
    folder, page = site
    times = [(i + .4*(i % 2))/30 for i in range(60)]
    source = make(folder/f"{sound}.mkv", moving(60, 96, 128), times=times, sound=sound)
    with VideoWriter(folder/f"{sound}.mp4", like=source) as writer:
        for frame in Video(source): writer.write(frame.image[:95, :127])
    seen = page.evaluate(PLAY, f"{sound}.mp4")
    assert seen["time"] >= .3 and seen["sound"] > 0
    with av.open(str(folder/f"{sound}.mp4")) as file: assert file.duration/1e6 == pytest.approx(seen["duration"], abs=.05)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_upright_as_the_browser_has_it(site, degrees):
    "A phone's film is turned by us as it is by the browser, and not twice."
    folder, page = site
    source = make(folder/f"phone{degrees}.mp4", four_corners(30, 96, 128), rotate=degrees)
    with VideoWriter(folder/f"turned{degrees}.mp4", like=source) as writer:
        for frame in Video(source): writer.write(frame.image)
    theirs, ours = (page.evaluate(PLAY, f"{name}{degrees}.mp4") for name in ("phone", "turned"))
    assert (theirs["height"], theirs["width"]) == (ours["height"], ours["width"])
    assert (np.abs(np.array(theirs["corners"]) - ours["corners"]) <= 8).all()


@pytest.mark.parametrize("colours", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("height", [240, 720])
def test_untagged_colours_as_the_browser_has_them(site, height, colours):
    "A file that does not say which matrix it used looks here as it does there."
    folder, page = site
    source = make(folder/f"untagged_{colours}_{height}.mp4", four_corners(30, height, 320), pix_fmt=colours)
    image, seen = Video(source).frame(0).image, page.evaluate(PLAY, source.name)
    here = [image[int(y*height), int(x*320)] for y, x in ((.1, .1), (.1, .9), (.9, .1), (.9, .9))]
    assert same_colours(here, seen["corners"]), (here, seen["corners"])


def test_player_in_a_notebook(site):
    "The player of a `Video` needs no file beside it."
    folder, page = site
    page.evaluate("html => document.body.innerHTML = html", Video(moving(30, 63, 95))._repr_html_())
    page.wait_for_function("document.querySelector('video').readyState >= 2", timeout=10_000)
    assert "95x63" in page.inner_text("figcaption")
