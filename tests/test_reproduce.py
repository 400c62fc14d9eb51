"""Reproduction: what an interruption, a killed process, a lost kernel or a full disk leave behind."""
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from standins import listening

from flowmag_nb.cli import main
from flowmag_nb.manifest import read_manifest, read_record
from flowmag_nb.reproduce import run_manifest

ROOT = Path(__file__).resolve().parents[1]
HEAD = "item,title,notebook,parameters,smoke,demo,paper,inputs,outputs,needs,gb,blocked,values,comparison\n"
CODE = {"first": "out.write_text('1')", "slow": "import time; import os; (out.parent / 'begun').write_text(str(os.getpid())); time.sleep(float(seconds)); out.write_text('2')", "last": "out.write_text('3')"}


def notebook(path, parameters, code, tags=("parameters",), kernel="python3"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)}), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": kernel, "display_name": kernel}}), path)


@pytest.fixture
def project(tmp_path):
    """Three items in a row; the second takes as long as its parameter says."""
    folder = tmp_path / "nbs/reproduce"
    folder.mkdir(parents=True)
    rows = [f"{name},,{name}.ipynb,{'seconds=0.1' * (name == 'slow')},,,,{before},{name}.txt,,0.1,,,\n" for name, before in [("first", ""), ("slow", "first"), ("last", "slow")]]
    (folder / "manifest.csv").write_text(HEAD + "".join(rows))
    for name, code in CODE.items():
        notebook(folder / f"{name}.ipynb", "root = ''\nseconds = 0.1", f"from pathlib import Path\nout = Path(root) / '{name}.txt'\n{code}")
    return tmp_path


def words(project, **options):
    return {name: state.word for name, state in run_manifest(project=project, root=project, **options).items()}


def slower(project, seconds):
    path = project / "nbs/reproduce/manifest.csv"
    path.write_text(re.sub(r"seconds=[\d.]+", f"seconds={seconds}", path.read_text()))


def begin(project):
    """A run in a process of its own, once its slow notebook has begun."""
    code = f"from flowmag_nb.reproduce import run_manifest; run_manifest(project={str(project)!r}, root={str(project)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, preexec_fn=listening, stderr=(project / "said").open("w"))
    deadline = time.monotonic() + 180
    while not (project / "begun").exists() or not (project / "begun").read_text():
        assert time.monotonic() < deadline and process.poll() is None, (project / "said").read_text()
        time.sleep(.1)
    return process


def alive(pid):
    """Whether a process runs."""
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def whole(signum):
    return lambda process: os.killpg(process.pid, signum)


@pytest.mark.parametrize("stop", [lambda p: p.send_signal(signal.SIGINT), whole(signal.SIGINT), lambda p: p.kill()], ids=["told", "ctrl-c", "killed"])
def test_stopped_and_started_again(project, stop):
    slower(project, 99)
    process = begin(project)
    kernel = int((project / "begun").read_text())
    stop(process)
    assert process.wait(timeout=30) != 0
    deadline = time.monotonic() + 15
    while alive(kernel) and time.monotonic() < deadline:
        time.sleep(.2)
    assert not alive(kernel)
    assert read_record("first", project)["state"] == "made" and not read_record("slow", project) and not (project / "slow.txt").exists()
    slower(project, 0.2)
    assert words(project) == {"first": "fresh", "slow": "made", "last": "made"}
    assert words(project) == {"first": "fresh", "slow": "fresh", "last": "fresh"}


def test_exactly_what_depends(project):
    assert set(words(project).values()) == {"made"}
    (project / "slow.txt").unlink()
    assert words(project) == {"first": "fresh", "slow": "made", "last": "made"}
    slower(project, 0.3)
    assert words(project) == {"first": "fresh", "slow": "made", "last": "made"}
    (project / "last.txt").unlink()
    assert words(project) == {"first": "fresh", "slow": "fresh", "last": "made"}


def test_misspelt_parameter_and_lost_tag_and_failure(project):
    path = project / "nbs/reproduce/manifest.csv"
    path.write_text(path.read_text().replace("seconds=", "secnods="))
    states = run_manifest(project=project, root=project)
    assert states["slow"].word == "broken" and "did you mean seconds" in states["slow"].reason and states["last"].word == "cannot"
    notebook(project / "nbs/reproduce/first.ipynb", "root = ''", "pass", tags=())
    assert words(project)["first"] == "broken"
    notebook(project / "nbs/reproduce/first.ipynb", "root = ''", "1 / 0")
    states = run_manifest(project=project, root=project)
    assert states["first"].word == "failed" and "ZeroDivisionError" in states["first"].reason


def test_missing_kernel(project, monkeypatch):
    monkeypatch.setattr("jupyter_client.kernelspec.find_kernel_specs", dict)
    with pytest.raises(ValueError, match="pip install ipykernel"):
        run_manifest(project=project, root=project)


def test_full_disk(project, monkeypatch):
    monkeypatch.setattr("flowmag_nb.reproduce.shutil.disk_usage", lambda path: SimpleNamespace(free=5e6))
    with pytest.raises(ValueError, match="only 5 MB are free"):
        run_manifest(project=project, root=project)


def test_full_quota(project):
    """Files of this process and its children may not pass 2 kB: the executed notebook cannot be kept, and no record claims otherwise."""
    code = f"from flowmag_nb.reproduce import run_manifest; print(run_manifest(project={str(project)!r}, root={str(project)!r}, what=['first'])['first'])"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit)
    assert "word='made'" not in done.stdout and read_record("first", project).get("state") != "made"


def test_the_command_names_what_is_wrong(capsys):
    assert main(["reproduce", "--what", "s00"]) == 2 and "did you mean s0" in capsys.readouterr().err
    assert main(["reproduce", "--preset", "smok"]) == 2 and "smoke, demo, paper" in capsys.readouterr().err


def test_the_manifest_is_sound():
    for preset in ("smoke", "demo", "paper"):
        for item in read_manifest(preset=preset).values():
            assert item.blocked or item.notebook, item.name
            assert item.outputs or item.blocked, item.name


def test_the_papers_numbers_are_the_published_ones():
    """All 1,233, against an independent copy where there is one."""
    ours, theirs = ROOT / "data/paper_tables", Path(os.environ.get("FLOWMAG_NB_MIRROR") or ROOT.parent / "shared/assets").parent / "paper_tables"
    tables = {path.name: pd.read_csv(path, keep_default_na=False, dtype=str) for path in sorted(ours.glob("*.csv"))}
    assert len(tables) == 10 and sum(map(len, tables.values())) == 1233
    if not theirs.is_dir():
        pytest.skip("no independent copy of the paper's tables beside the checkout")
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, pd.read_csv(theirs / name, keep_default_na=False, dtype=str))
