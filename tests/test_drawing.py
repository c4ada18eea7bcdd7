"""Pictures of another process are those of this one, its errors are ours, and it ends with us."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import config
from config import UsageError
from tests import drawn
from tests.commands import ROOT, modules_after
from tests.drawn import ABOUT, OF_THE_ANALYSIS
from visualization.catalogue import PICTURES
from visualization.drawing import Drawing
from visualization.output import OutputFolder

STEM = "heads/head_sparsity"
posix = pytest.mark.skipif(os.name != "posix", reason="asks for signals and sessions")


@pytest.fixture(scope="module")
def usual():
    torch.manual_seed(0)
    return drawn.made(drawn.usual())


def pids(drawing: Drawing) -> list[int]:
    return [process.pid for process in drawing._processes]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_every_stem_of_the_catalogue_is_a_picture_of_its_module():
    for stem, draw in PICTURES.items():
        module, name = draw.args
        assert callable(getattr(__import__(f"visualization.{module}").__dict__[module], name)), stem


def test_pictures_are_equal_wherever_they_are_drawn_and_under_the_constants_of_the_moment(
    usual, tmp_path, monkeypatch
):
    with Drawing() as here, Drawing(workers=1) as there:
        for name, drawing in (("here", here), ("there", there)):
            (tmp_path / name).mkdir()
            for i, stem in enumerate(OF_THE_ANALYSIS):
                monkeypatch.setattr(config, "FIGURE_DPI", 40 + i)
                monkeypatch.setattr(config, "SPARSE_DIM_SHARE", 0.5 + 0.01 * i)
                drawing.submit(stem, usual[stem], ABOUT, tmp_path / name / f"{i}.png")
        there.finish()
    for i in range(len(OF_THE_ANALYSIS)):
        one, other = (np.asarray(Image.open(tmp_path / n / f"{i}.png")) for n in ("here", "there"))
        assert one.shape == other.shape and (one == other).all(), OF_THE_ANALYSIS[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_what_it_was_with_the_place_where_it_was_raised(usual, tmp_path, workers):
    with Drawing(workers) as drawing, pytest.raises(KeyError, match="head") as caught:
        drawing.submit(STEM, usual[STEM].drop(columns="head"), ABOUT, tmp_path / "a.png")
        drawing.finish()
    assert not workers or "heads.py" in caught.value.__notes__[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_told_in_one_sentence_and_leaves_earlier_results(usual, tmp_path, workers):
    (tmp_path / "a.csv").write_text("earlier")
    with (
        pytest.raises(UsageError, match=r"No space left.*earlier results were kept"),
        OutputFolder(tmp_path) as output,
        Drawing(workers) as drawing,
    ):
        (output._stage / "heads").mkdir()
        (output._stage / f"{STEM}.png").symlink_to("/dev/full")
        output.draw(drawing, STEM, usual[STEM], ABOUT)
        output.wait_for(drawing)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_later_tables_are_not_drawn_after_an_error(usual, tmp_path):
    with Drawing(workers=1) as drawing:
        drawing.submit(STEM, usual[STEM], ABOUT, tmp_path / "nowhere/a.png")
        for i in range(3):
            drawing.submit(STEM, usual[STEM], ABOUT, tmp_path / f"{i}.png")
        with pytest.raises(FileNotFoundError, match="nowhere") as caught:
            drawing.finish()
        assert caught.value.filename.endswith("nowhere/a.png")
        with pytest.raises(FileNotFoundError):
            drawing.submit(STEM, usual[STEM], ABOUT, tmp_path / "3.png")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_a_run_that_is_interrupted_leaves_no_process_and_no_file(usual, tmp_path, how):
    with (
        pytest.raises(how),
        OutputFolder(tmp_path) as output,
        Drawing(workers=2) as drawing,
    ):
        workers = drawing._processes[:]
        for stem, table in usual.items():
            output.draw(drawing, stem, table, ABOUT)
        raise how
    assert all(process.returncode is not None for process in workers)
    assert not any(tmp_path.iterdir())


@posix
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_ends_when_its_run_is_killed(sent):
    script = """if True:
        import time
        from data import signals
        from visualization.drawing import Drawing
        signals.listen()
        with Drawing(workers=1) as drawing:
            print(drawing._processes[0].pid, flush=True)
            time.sleep(60)
    """
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    worker = int(run.stdout.readline())
    run.send_signal(sent)
    run.wait()
    run.stdout.close()
    ends = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not is_running(worker)


@posix
def test_no_ctrl_c_of_a_run_reaches_a_worker_and_one_that_is_killed_is_told_of(usual, tmp_path):
    with Drawing(workers=1) as drawing:
        assert os.getpgid(pids(drawing)[0]) != os.getpgid(0)
        os.kill(pids(drawing)[0], signal.SIGKILL)
        drawing.submit(STEM, usual[STEM], ABOUT, tmp_path / "a.png")
        with pytest.raises(UsageError, match=r"has ended \(code -9\)"):
            drawing.finish()


@posix
@pytest.mark.parametrize("left", ["half a task", "an answer that nobody reads"])
def test_a_worker_whose_run_was_killed_says_nothing(tmp_path, left):
    worker = subprocess.Popen(
        [sys.executable, "-c", "from visualization import drawing; drawing.serve()"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    task = pickle.dumps((STEM, "no table", ABOUT, str(tmp_path / "a.png"), {}))
    worker.stdout.close()
    worker.stdin.write(task[:20] if left == "half a task" else task)
    worker.stdin.close()
    assert worker.stderr.read() == b"" and worker.wait() == 0
    worker.stderr.close()


def test_an_answer_that_cannot_be_read_is_raised_where_one_waits(usual, tmp_path, monkeypatch):
    def unreadable(_):
        raise AttributeError("a class of another version")

    with Drawing(workers=1) as drawing:
        monkeypatch.setattr("visualization.drawing.pickle.load", unreadable)
        drawing.submit(STEM, usual[STEM], ABOUT, tmp_path / "a.png")
        with pytest.raises(AttributeError, match="of another version"):
            drawing.finish()


@posix
def test_a_worker_that_answers_no_more_is_not_waited_for(usual, tmp_path, monkeypatch):
    def cut(_):
        raise pickle.UnpicklingError("rubbish")

    monkeypatch.setattr("visualization.drawing.ENDS_S", 0.1)
    with Drawing(workers=1) as drawing:
        monkeypatch.setattr("visualization.drawing.pickle.load", cut)
        drawing.submit(STEM, usual[STEM], ABOUT, tmp_path / "a.png")
        with pytest.raises(UsageError, match=r"has ended \(code -9\)"):
            drawing.finish()


def test_a_worker_that_cannot_be_started_is_one_sentence(monkeypatch):
    def none(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("visualization.drawing.subprocess.Popen", none)
    with pytest.raises(UsageError, match=r"cannot be started \(Resource"), Drawing(workers=1):
        pytest.fail("it went on")


def test_what_opens_a_run_brings_in_nothing_heavy_and_no_worker_without_being_asked():
    code = """if True:
        from visualization.drawing import Drawing
        from visualization.output import OutputFolder
        with Drawing() as drawing:
            drawing.finish()
            assert not drawing._processes
    """
    assert not {"torch", "numpy", "pandas", "matplotlib", "multiprocessing"} & modules_after(code)


def test_drawing_takes_no_torch():
    code = """if True:
        from visualization.catalogue import MODULES, import_module
        for module in MODULES.values():
            import_module(f"visualization.{module}")
    """
    assert "torch" not in modules_after(code)
