"""What `make test` runs: every check of the project, in one line each, ending in `N passed, N failed`.

All of it happens in a copy of the files git knows or would add, so that a test can neither lean on ignored files nor leave
anything behind in the working tree. Only the standard library is imported here; the checks run in processes of their own.
"""
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS, TIMEOUT = 2, 1800
passed, failed, skipped = [], [], []


def environment(tree):
    """One thread per process, the copy before any installed package, and the mirror beside the checkout if there is one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    mirror = ROOT.parent / "shared" / "assets"
    if mirror.is_dir():
        env.setdefault("FLOWMAG_NB_MIRROR", str(mirror))
    return env


def run(command, tree, cwd=None, env=None):
    """Run a command in the copy; its success, its seconds and what it said."""
    start = time.monotonic()
    try:
        done = subprocess.run([str(c) for c in command], cwd=cwd or tree, env=env or environment(tree), timeout=TIMEOUT,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        ok, said = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired:
        ok, said = False, f"still running after {TIMEOUT} s"
    return ok, time.monotonic() - start, said


def record(name, ok, seconds, said="", tail=40):
    """Count one result and print its line, for a failure also the end of what was said."""
    (passed if ok else failed).append(name)
    print(f"  {'ok  ' if ok else 'FAIL'} {seconds:6.1f} s  {name}", flush=True)
    if not ok:
        print("\n".join(f"       | {line}" for line in said.strip().splitlines()[-tail:]), flush=True)


def copy_tree(folder):
    """The files of the working tree that git tracks or would add; without git, all but the generated ones.

    Third-party data that lies beside the checkout lies beside the copy too, as a link.
    """
    tree = folder / "flowmag_nb"
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    listed = subprocess.run(["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "*.egg-info", "build", "runs", "demo", "__pycache__"))
        return tree
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def structure(tree):
    """Notebooks clean and exported, imports in order, and the other rules of `21_checks`; then the README."""
    ok, seconds, said = run([sys.executable, "-m", "flowmag_nb.checks"], tree)
    print("\n".join(f"       | {line}" for line in said.splitlines() if ": warning [" in line))
    record("structural checks", ok, seconds, said)
    record("README.md is what nbs/index.ipynb gives", *run([sys.executable, "-m", "flowmag_nb.readme", "--check"], tree))


def flagged(notebook):
    """Flags (gpu, slow, weights) of the cells that nbdev leaves out."""
    sources = ["".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    return [m[1] for s in sources for m in re.finditer(r"^#\|\s*(gpu|slow|weights)\s*$", s, re.M)]


def each(notebooks, command, tree):
    """Run a command for every notebook, some at a time, and count each."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for nb, result in zip(notebooks, pool.map(lambda nb: run(command(nb), tree), notebooks)):
            record(nb.relative_to(tree).as_posix(), *result)


def notebooks(tree):
    """Every notebook that teaches is also a test."""
    nbs = sorted(p for folder in ("core", "tutorials") for p in (tree / "nbs" / folder).rglob("*.ipynb")) + [tree / "nbs/index.ipynb", tree / "nbs/reproduce/00_overview.ipynb"]
    each(nbs, lambda nb: [BIN / "nbdev_test", "--n_workers", "0", "--path", nb], tree)
    for nb in nbs:
        for flag in sorted(set(flags := flagged(nb))):
            skipped.append(f"{nb.relative_to(tree).as_posix()}: {flags.count(flag)} cells flagged {flag}")


def pytests(tree):
    """What does not teach: process kills, browsers, memory, the command line. Each test counts."""
    report = tree.parent / "junit.xml"
    ok, seconds, said = run([sys.executable, "-m", "pytest", "tests", "-q", "--junitxml", report], tree)
    cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
    for case in cases:
        name = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"
        bad, skip = case.find("failure"), case.find("skipped")
        bad = case.find("error") if bad is None else bad
        if skip is not None:
            skipped.append(f"{name}: {skip.get('message')}")
        else:
            record(name, bad is None, float(case.get("time")), "" if bad is None else bad.text or "")
    if not cases:
        record("pytest finds tests", False, seconds, said)


def papermill(tree, names, out):
    """Run notebooks with their default parameters, executed copies into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    each(names, lambda nb: [BIN / "papermill", "--no-progress-bar", "--cwd", nb.parent, nb, out / nb.name], tree)


def reproduce(tree):
    """Tables and figures of the paper, smallest preset, numbers compared with reports/expected."""
    ok, seconds, said = run([BIN / "python", "-m", "flowmag_nb.cli", "reproduce", "--preset", "smoke"], tree)
    for name, word, reason in re.findall(r"^\[\d+/\d+\] (\S+) +(made|failed|broken|cannot|left out) *(.*)$", said, re.M):
        if word in ("cannot", "left out"):
            skipped.append(f"{name}: {reason}")
        else:
            record(f"reproduce {name}", word == "made", float(reason[:-2]) if word == "made" else 0, reason)
    record("flowmag reproduce --preset smoke", ok, seconds, said)


def required():
    """Names of the distributions that the package's own requirements bring, without extras, and theirs in turn."""
    from packaging.requirements import Requirement
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    todo, found = re.search(r"^requirements *= *(.*)$", settings, re.M)[1].split(), {}
    while todo:
        need = Requirement(todo.pop())
        if need.name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        found[need.name] = importlib.metadata.distribution(need.name)
        todo += found[need.name].requires or []
    return found.values()


def bare_environment(folder):
    """A fresh virtual environment that holds what the package requires and nothing else.

    Installing torch again would take minutes and gigabytes, seeing all of this environment would hide a missing
    requirement; so exactly the required distributions are linked in from here.
    """
    venv.create(folder, with_pip=True, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for dist in required():
        for top in {f.parts[0] for f in dist.files or () if f.parts[0] not in ("..", "__pycache__") and not f.parts[0].endswith(".pth")}:
            if not (site / top).exists():
                (site / top).symlink_to(dist.locate_file(top))
    return folder / "bin"


IMPORT_ALL = """
import importlib, pkgutil, flowmag_nb
for module in pkgutil.walk_packages(flowmag_nb.__path__, "flowmag_nb."): importlib.import_module(module.name)
"""


def wheel(tree):
    """What `pip install` gives a user: modules that import in silence, and a command that works in an empty folder."""
    work = tree.parent / "wheel"
    (empty := work / "empty").mkdir(parents=True)
    record("wheel builds", *run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", work, tree], tree))
    bin_ = bare_environment(work / "venv")
    env = {k: v for k, v in environment(tree).items() if k != "PYTHONPATH"}
    install = [bin_ / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *work.glob("*.whl")]
    record("wheel installs in a bare environment", *run(install, tree, empty, env))
    ok, seconds, said = run([bin_ / "python", "-W", "error::DeprecationWarning:flowmag_nb", "-c", IMPORT_ALL], tree, empty, env)
    record("every module imports in silence", ok and not said, seconds, said)
    for arguments in (["--help"], ["demo"]):
        record(f"flowmag {' '.join(arguments)}", *run([bin_ / "flowmag", *arguments], tree, empty, env))


def main():
    """Run all stages, or with the argument `bench` the benchmark notebooks."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flowmag_nb-") as tmp:
        if sys.argv[1:] == ["bench"]:
            papermill(ROOT, sorted((ROOT / "nbs").rglob("bench*.ipynb")), ROOT / "reports" / "runs")
        else:
            tree = copy_tree(Path(tmp))
            for stage in (structure, notebooks, pytests, reproduce, wheel):
                print(f"{stage.__name__}: {stage.__doc__.splitlines()[0]}", flush=True)
                stage(tree)
    for reason in skipped:
        print(f"skipped: {reason}")
    for name in failed:
        print(f"failed: {name}")
    print(f"{time.monotonic() - start:.0f} s")
    print(f"{len(passed)} passed, {len(failed)} failed")
    return int(bool(failed) or not passed)


if __name__ == "__main__":
    sys.exit(main())
