"""The output folder: its files and manifest are those of one run, and nothing else is lost."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from config import UsageError
from data import signals
from tests.commands import PROMPT, ROOT, files_below, run
from visualization.output import OutputFolder

STEMS = ("a", "layers/b", "layers/c", "d")
FILES = {f"{stem}.csv" for stem in STEMS} | {"run.json"}
OPEN = """if True:
    import sys
    import pandas as pd
    from visualization.output import OutputFolder
    folder, run = sys.argv[1:]
    for i, _ in enumerate(sys.stdin):
        with OutputFolder(folder) as output:
            print("opened", flush=True)
            for stem in ("a", "layers/b", "layers/c", "d"):
                output.table(stem, pd.DataFrame({"run": [f"{run} {i}"]}))
            if run == "killed":
                sys.stdin.read()
            output.commit("run.json", {"run": f"{run} {i}"})
        print("done", flush=True)
"""


def opened(folder: Path, run: str) -> subprocess.Popen:
    """A process that writes its results once for each line that it reads."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    return subprocess.Popen([sys.executable, "-c", OPEN, str(folder), run], cwd=ROOT, **pipes)


def write(folder: Path, run: str) -> None:
    with OutputFolder(folder) as output:
        for stem in STEMS:
            output.table(stem, pd.DataFrame({"run": [run]}))
        output.commit("run.json", {"run": run})


def runs(folder: Path) -> set[str]:
    """Which runs the files and the manifest of a folder are of."""
    of_files = {pd.read_csv(folder / f"{stem}.csv")["run"][0] for stem in STEMS}
    return of_files | {json.loads((folder / "run.json").read_text())["run"]}


def test_files_and_manifest_of_two_runs_at_a_time_are_those_of_one(tmp_path):
    both = [opened(tmp_path, name) for name in ("one", "other")]
    for i in range(60):
        for process in both:
            process.stdin.write("\n")
        for process in both:
            assert [process.stdout.readline() for _ in range(2)] == ["opened\n", "done\n"]
        assert len(runs(tmp_path)) == 1 and runs(tmp_path) < {f"one {i}", f"other {i}"}
        assert files_below(tmp_path) == FILES
    for process in both:
        process.communicate()
        assert process.returncode == 0


def test_what_a_killed_run_left_is_cleared_away_but_not_while_it_lives(tmp_path):
    first = opened(tmp_path, "killed")
    first.stdin.write("\n")
    first.stdout.readline()
    write(tmp_path, "later")
    assert len(list(tmp_path.glob(".unfinished-*"))) == 1
    first.kill()
    first.communicate()
    write(tmp_path, "last")
    assert files_below(tmp_path) == FILES and runs(tmp_path) == {"last"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", range(1, 11))
def test_a_move_that_fails_keeps_the_earlier_results_and_their_manifest(
    tmp_path, monkeypatch, number
):
    write(tmp_path, "earlier")
    really, moves = Path.replace, []

    def replace(self, target):
        moves.append(target)
        if len(moves) == number:
            raise PermissionError(1, "Operation not permitted")
        really(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UsageError, match=r"not permitted\): earlier results were kept"):
        write(tmp_path, "new")
    assert runs(tmp_path) == {"earlier"} and files_below(tmp_path) == FILES


def test_what_is_half_replaced_is_called_so(tmp_path, monkeypatch):
    write(tmp_path, "earlier")
    really = Path.replace

    def replace(self, target):
        if target == tmp_path / "layers/c.csv":
            raise OSError(5, "Input/output error")
        really(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UsageError, match="and some of its files may be new"):
        write(tmp_path, "new")
    assert not (tmp_path / "run.json").exists()  # none claims the rest


def test_a_result_replaces_no_text_of_the_run(tmp_path):
    (tmp_path / "layers").mkdir()
    text = tmp_path / "layers/b.csv"
    text.write_text(PROMPT)
    (tmp_path / "link.txt").symlink_to(text)
    for name in (str(text), str(tmp_path / "link.txt"), os.path.relpath(text)):
        with OutputFolder(tmp_path, text_file=name) as output:
            output.table("a", pd.DataFrame())
            with pytest.raises(UsageError, match=r"`text_file` .* would be replaced by a result"):
                output.table("layers/b", pd.DataFrame())
    assert text.read_text() == PROMPT


@pytest.mark.parametrize("name", ["layers/layer_statistics.csv", "analyze.json"])
def test_it_is_refused_before_any_work(flags, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("data.models.load", lambda **given: pytest.fail("the model was loaded"))
    text = tmp_path / "out" / name
    text.parent.mkdir(parents=True)
    text.write_text(PROMPT)
    at = flags.index("--prompt")
    assert run(*flags[:at], *flags[at + 2 :], "--text_file", str(text)) == 2
    said = capsys.readouterr().err
    assert f"--text_file {text} would be replaced by a result: give another --output_dir" in said
    assert files_below(tmp_path / "out") == {name} and text.read_text() == PROMPT


def test_results_beside_the_model_and_the_text_are_fine(flags, folder_of, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(folder_of("gpt2")).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "essay.txt").write_text(PROMPT)
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    where = ["--model", str(folder), "--text_file", str(folder / "essay.txt"), "--device", "cpu"]
    for _ in range(2):
        short = ["--analysis_focus", "layers"]
        assert run(*where, "--output_dir", str(folder), *short) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\0b", "a path is text in UTF-8"),
        ("a\udcff", "a path is text in UTF-8"),
        ("x" * 300, "File name too long"),
        ("dangling", "cannot be written (File exists)"),
        ("file", "cannot be written (File exists)"),
        ("file/out", "cannot be written (Not a directory)"),
        ("circle", "cannot be written ("),
    ],
)
def test_odd_names_of_folders_are_one_sentence(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("nowhere")
    Path("circle").symlink_to("circle")
    Path("file").write_text("")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as refused, OutputFolder(name):
        pass
    assert says in str(refused.value) and "`output_dir`" in str(refused.value)
    assert set(tmp_path.rglob("*")) == before


def test_a_link_to_a_folder_is_that_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    write(tmp_path / "link", "one")
    assert runs(tmp_path / "out") == {"one"} and (tmp_path / "link").is_symlink()


def test_an_earlier_manifest_claims_no_file_that_is_of_a_later_run(tmp_path):
    write(tmp_path, "first")
    (tmp_path / "notes.json").write_text('["a.csv"]')
    (tmp_path / "broken.json").write_text("{")
    with OutputFolder(tmp_path) as output:
        output.table("layers/b", pd.DataFrame({"run": ["second"]}))
        output.table("e", pd.DataFrame({"run": ["second"]}))
        output.commit("other.json", {"run": "second"})
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("run", "other"))
    assert first == {"run": "first", "files": ["a.csv", "layers/c.csv", "d.csv"]}
    assert second["files"] == ["layers/b.csv", "e.csv"]
    assert (tmp_path / "notes.json").read_text() == '["a.csv"]'
    assert (tmp_path / "broken.json").read_text() == "{"


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_that_a_library_drops_still_keeps_results_from_being_replaced(
    tmp_path, monkeypatch, sent, code
):
    number = getattr(signal, sent)
    write(tmp_path, "first")
    monkeypatch.setattr(signals, "_sent", [])
    with signals.kept():
        signal.signal(number, signal.SIG_DFL)
        signals.listen()
        with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path) as output:
            output.table("a", pd.DataFrame({"run": ["second"]}))
            with suppress(KeyboardInterrupt):
                signal.raise_signal(number)
            output.commit("run.json", {"run": "second"})
    assert runs(tmp_path) == {"first"}
    assert signals.exit_code() == code


def test_a_signal_that_a_process_ignores_stays_ignored(monkeypatch):
    monkeypatch.setattr(signals, "_sent", [])
    with signals.kept():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals.listen()
        signal.raise_signal(signal.SIGHUP)
        signals.raise_again()
        assert not signals.told()
