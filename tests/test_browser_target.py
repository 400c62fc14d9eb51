"""The tutorial in a real browser: a box drawn with the mouse on the page of a real JupyterLab becomes a magnified clip."""
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_browser_video import find_browser

from flowmag_nb.paths import sample_clip
from flowmag_nb.video import Video, VideoWriter

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "nbs" / "tutorials" / "02_target_with_a_box.ipynb"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
RUN_UNTIL_PICKER = """async () => {
    const app = window.jupyterapp; await app.restored;
    const panel = app.shell.currentWidget; await panel.context.sessionContext.ready;
    const cells = panel.content.widgets;
    panel.content.activeCellIndex = cells.findIndex(cell => /^picker$/m.test(cell.model.sharedModel.source));
    await app.commands.execute('notebook:run-all-above');
    panel.content.activeCellIndex = cells.findIndex(cell => /^picker$/m.test(cell.model.sharedModel.source));
    await app.commands.execute('notebook:run-cell');
}"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab that shows a folder with the tutorial in it."""
    missing = pytest.fail if os.environ.get("FLOWMAG_NB_REQUIRE_BROWSER") == "1" else pytest.skip
    if not find_browser(): missing("no Chromium found; install one or name it in FLOWMAG_NB_BROWSER")
    for package in ("playwright", "jupyterlab", "ipywidgets", "jupyter_bbox_widget"):
        try: __import__(package)
        except ImportError: missing(f"{package} is not installed (pip install {package})")
    folder, config, port = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("config"), free_port()
    shutil.copy(TUTORIAL, folder)
    # nothing of the user's settings, no network, no password on a server that only this machine can reach
    env = {**os.environ, **{f"JUPYTER_{kind}_DIR": str(config / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}, "IPYTHONDIR": str(config / "ipython"),
           "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
             "--ServerApp.password=", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser", "--LabApp.news_url=None",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"]
    with (config / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *words], env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(300):
                try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2); break
                except OSError: time.sleep(0.1)
                if server.poll() is not None: pytest.fail((config / "log").read_text()[-2000:])
            yield f"http://127.0.0.1:{port}/lab/tree/{TUTORIAL.name}?reset"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def page(lab):
    """The tutorial, run as far as the panel."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), headless=True, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=1400))
        page.set_default_timeout(60_000)
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.evaluate(RUN_UNTIL_PICKER)
        page.wait_for_selector("img[alt='annotate me']", timeout=60_000)
        yield page
        browser.close()


def drag(page, box, size):
    """Draw a box, in pixels of the picture of that (width, height), on the page; how many of the picture's pixels a screen pixel is."""
    picture = page.locator("img[alt='annotate me']")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("size => { const i = document.querySelector(\"img[alt='annotate me']\"); return i.complete && i.naturalWidth == size[0] && i.naturalHeight == size[1] }",
                           arg=list(size))
    at = picture.bounding_box()
    scale = size[0] / at["width"]
    corner = lambda x, y: (at["x"] + x / scale, at["y"] + y / scale)
    x, y, w, h = box
    page.mouse.move(*corner(x, y))
    page.mouse.down()
    page.mouse.move(*corner(x + w, y + h), steps=5)
    page.mouse.up()
    return scale


def read_back(page, name):
    """The box of an object as the kernel has it."""
    page.wait_for_function("name => document.body.innerText.includes(name + ': box')", arg=name, timeout=60_000)
    return [float(v) for v in re.search(rf"{name}: box ([\d.,]+), alpha", page.inner_text("body"))[1].split(",")]


def test_draw_press_and_see(page, tmp_path):
    box = 160, 50, 136, 82
    drag(page, box, (480, 270))
    assert np.abs(np.subtract(read_back(page, "sign"), box)).max() <= 2
    shown = os.environ.get("FLOWMAG_NB_SCREENSHOT")  # a file for the picture that the tutorial shows
    if shown:
        page.add_style_tag(content=".Toastify { display: none }")
        page.wait_for_timeout(3000)
        page.locator(".jp-OutputArea-output:has(img[alt='annotate me'])").first.screenshot(path=shown)
    page.get_by_role("button", name="Magnify the clip").click()
    page.wait_for_function("() => { const v = document.querySelector('video'); return v && v.readyState >= 2 }", timeout=60_000)
    seen = page.evaluate("() => { const v = document.querySelector('video'); return [v.videoWidth, v.videoHeight, v.duration] }")
    assert seen[:2] == [2 * 480 + 4, 270] and abs(seen[2] - 3) < 0.1
    with page.expect_download() as download: page.get_by_role("link", name="Download workshop.mp4").click()
    download.value.save_as(tmp_path / "saved.mp4")
    before, after = Video(sample_clip()), Video(tmp_path / "saved.mp4")
    change = np.mean([np.abs(b.image.astype(int) - a.image).mean(-1) for b, a in zip(before, after)], 0)
    assert change[70:115, 175:280].mean() > 3 * change[90:210, 335:445].mean()  # the sign swings, the motor keeps quiet


def test_another_clip_in_full_hd(page, tmp_path):
    """An uploaded clip of 1920x1080, shown smaller, is drawn on in its own pixels."""
    image = Image.fromarray(Video(sample_clip()).frame(0).image).resize((1920, 1080))
    with VideoWriter(tmp_path / "hd.mp4", fps=25) as writer:
        for i in range(4): writer.write(np.roll(np.asarray(image), i, 1))
    with page.expect_file_chooser() as chooser: page.locator(".widget-upload").click()
    chooser.value.set_files(tmp_path / "hd.mp4")
    page.wait_for_function("() => { const i = document.querySelector(\"img[alt='annotate me']\"); return i.complete && i.naturalWidth == 1920 }", timeout=60_000)
    box = 640, 200, 544, 328
    assert drag(page, box, (1920, 1080)) > 1.5
    page.wait_for_function("() => document.body.innerText.includes('sign: box 6')", timeout=60_000)
    assert np.abs(np.subtract(read_back(page, "sign"), box)).max() <= 2
