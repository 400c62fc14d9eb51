"""The Makefile explains itself, also on a machine that cannot run the package."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)


def test_alone_it_lists_its_commands():
    said = make(ROOT).stdout
    assert all(f"make {name}" in said for name in ("demo", "test", "notebooks", "bench", "lab"))


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def test_an_old_python_is_refused_with_what_is_needed(clone):
    old = clone / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10\nexit 1\n')
    old.chmod(0o755)
    done = make(clone, "demo", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.10 to 3.13" in done.stdout and "Python 3.8.10" in done.stdout and "make demo PYTHON=" in done.stdout
    assert not (clone / ".venv").exists()


def test_a_second_run_installs_nothing(clone):
    bin_ = clone / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("python", "flowmag"):
        (bin_ / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (bin_ / name).chmod(0o755)
    first, second = make(clone, "demo").stdout, make(clone, "demo").stdout
    assert "pip install" in first and "flowmag demo" in first
    assert "pip install" not in second and "flowmag demo" in second
    os.utime(clone / "settings.ini", (2e9, 2e9))
    assert "pip install" in make(clone, "demo").stdout
