"""Files and folders that are there whole or not at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data import locks
from data.writing import HalfReplacedError, replace_all, unfinished, whole_or_nothing
from tests.commands import ROOT

KINDS = ("file", "folder")


def make(path: Path, kind: str, content: str) -> None:
    if kind == "folder":
        path.mkdir()
        path = path / "inside"
    path.write_text(content)


def content_of(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_takes_its_name_at_the_end_and_replaces_what_had_it(tmp_path, kind, is_new):
    final = tmp_path / "kept"
    if not is_new:
        make(final, kind, "earlier")
    with whole_or_nothing(final) as part:
        assert part.parent.parent == tmp_path and part.parent.name.startswith(".")
        make(part, kind, "new")
        assert not final.exists() if is_new else content_of(final) == "earlier"
    assert content_of(final) == "new" and final.is_dir() == (kind == "folder")
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize(("kind", "earlier"), [KINDS, KINDS[::-1]])
def test_a_file_replaces_no_folder_and_a_folder_no_file(tmp_path, kind, earlier):
    final = tmp_path / "kept"
    make(final, earlier, "earlier")
    with pytest.raises(OSError, match="kept"), whole_or_nothing(final) as part:
        make(part, kind, "new")
    assert content_of(final) == "earlier" and list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("earlier", [None, *KINDS])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_what_was_there_and_leaves_nothing_behind(tmp_path, kind, earlier, error):
    final = tmp_path / "kept"
    if earlier:
        make(final, earlier, "earlier")
    with pytest.raises(error), whole_or_nothing(final) as part:
        make(part, kind, "half of it")
        raise error
    assert list(tmp_path.iterdir()) == ([final] if earlier else [])
    assert not earlier or content_of(final) == "earlier"


def test_nothing_that_was_made_is_an_error_and_keeps_what_was_there(tmp_path):
    (tmp_path / "kept").write_text("earlier")
    with pytest.raises(FileNotFoundError), whole_or_nothing(tmp_path / "kept"):
        pass
    assert content_of(tmp_path / "kept") == "earlier"


def test_what_is_unfinished_is_removed_and_two_do_not_meet(tmp_path):
    with unfinished(tmp_path / "kept") as one, unfinished(tmp_path / "kept") as other:
        assert one != other
        make(one / "file", "file", "one")
        make(other / "file", "file", "other")
        assert content_of(one / "file") == "one"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, PermissionError])
def test_a_signal_while_the_folder_is_locked_leaves_nothing(tmp_path, monkeypatch, error):
    def interrupted(lock_file: Path) -> None:
        raise error

    monkeypatch.setattr(locks, "taken", interrupted)
    with pytest.raises(error), unfinished(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError), whole_or_nothing(tmp_path / "no" / "kept") as part:
        part.write_text("")
    assert list(tmp_path.iterdir()) == []


WORKS = """if True:
    import sys, time
    from pathlib import Path
    from data.writing import unfinished, whole_or_nothing
    with unfinished(Path(sys.argv[1]) / "a"), whole_or_nothing(Path(sys.argv[1]) / "b") as part:
        part.write_text("half of it")
        print(flush=True)
        time.sleep(60)
"""


def test_what_a_killed_process_left_is_cleared_away_by_the_next_but_not_of_one_that_lives(tmp_path):
    command = [sys.executable, "-c", WORKS, str(tmp_path)]
    worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    worker.stdout.readline()
    its = set(tmp_path.iterdir())
    with unfinished(tmp_path / "c"):
        assert len(its) == 2 and its < set(tmp_path.iterdir())
    worker.kill()
    worker.communicate()
    assert set(tmp_path.iterdir()) == its
    with unfinished(tmp_path / "c") as mine:
        assert list(tmp_path.iterdir()) == [mine]


def test_only_folders_of_our_own_are_cleared_away(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".unfinished-a.0123456789ab").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".unfinished-b.0123456789ab").write_text("")
    (tmp_path / ".unfinished-of-another-program").mkdir()
    before = set(tmp_path.rglob("*"))
    with unfinished(tmp_path / "c"):
        pass
    assert set(tmp_path.rglob("*")) == before


def test_one_that_is_taken_for_left_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    really, taken = locks.taken, []

    def too_late(lock_file):
        taken.append(lock_file)
        if len(taken) == 1:
            shutil.rmtree(lock_file.parent)
            raise FileNotFoundError(lock_file)
        return None if len(taken) == 2 else really(lock_file)

    monkeypatch.setattr(locks, "taken", too_late)
    with unfinished(tmp_path / "a") as stage:
        assert len(taken) == 3 and stage == taken[2].parent and (stage / ".lock").exists()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_may_be_read_by_whom_the_user_lets_read_others(tmp_path, mask):
    before = os.umask(mask)
    try:
        with whole_or_nothing(tmp_path / "kept") as part:
            part.touch(mode=0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_stays_and_is_followed(tmp_path, kind, dangling):
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "kept"
    (tmp_path / "link").symlink_to(real)
    if not dangling:
        make(real, kind, "earlier")
    with whole_or_nothing(tmp_path / "link") as part:
        make(part, kind, "new")
    assert (tmp_path / "link").is_symlink() and content_of(real) == "new"
    assert list((tmp_path / "elsewhere").iterdir()) == [real]


@pytest.mark.parametrize("fails", ["earlier aside", "new in place"])
def test_a_folder_that_cannot_be_replaced_is_still_there(tmp_path, monkeypatch, fails):
    make(tmp_path / "kept", "folder", "earlier")
    fail_at(monkeypatch, {"earlier aside": 1, "new in place": 2}[fails])
    with pytest.raises(OSError, match="fails"), whole_or_nothing(tmp_path / "kept") as part:
        make(part, "folder", "new")
    assert content_of(tmp_path / "kept") == "earlier"
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


NAMES = ("a.csv", "layers/b.csv", "run.json")
MOVES = 6  # three files aside, three in their place


def fail_at(monkeypatch, number: int, error: type[BaseException] = OSError, after: bool = False):
    """The so manieth move of a file fails, or is interrupted just after it."""
    really, moves = Path.replace, []

    def replace(self, target):
        moves.append(target)
        if len(moves) == number and not after:
            raise error("fails")
        really(self, target)
        if len(moves) == number:
            raise error("fails")

    monkeypatch.setattr(Path, "replace", replace)


def made(folder: Path, content: str) -> Path:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_all_files_are_replaced_and_others_stay(tmp_path):
    final = made(tmp_path / "final", "earlier")
    (final / "other.csv").write_text("other")
    replace_all(made(tmp_path / "made", "new"), final, NAMES)
    assert contents(final) == dict.fromkeys(NAMES, "new") | {"other.csv": "other"}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, MOVES + 1))
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_a_move_that_fails_or_is_interrupted_leaves_all_as_it_was(
    tmp_path, monkeypatch, number, error, after
):
    final = made(tmp_path / "final", "earlier")
    (final / NAMES[0]).unlink()
    (final / NAMES[0]).symlink_to("nowhere")
    before = contents(final)
    fail_at(monkeypatch, number, error, after)
    with pytest.raises(error, match="fails"):
        replace_all(made(tmp_path / "made", "new"), final, NAMES)
    assert contents(final) == before and (final / NAMES[0]).is_symlink()


def test_folders_that_were_made_for_it_go_again(tmp_path, monkeypatch):
    (tmp_path / "final").mkdir()
    fail_at(monkeypatch, 2)
    with pytest.raises(OSError, match="fails"):
        replace_all(made(tmp_path / "made", "new"), tmp_path / "final", NAMES)
    assert not any((tmp_path / "final").iterdir())


def test_the_last_file_is_not_there_while_others_are_moved(tmp_path, monkeypatch):
    final, really, seen = made(tmp_path / "final", "earlier"), Path.replace, []

    def replace(self, target):
        seen.append((target.name, (final / NAMES[-1]).exists()))
        really(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    replace_all(made(tmp_path / "made", "new"), final, NAMES)
    assert seen[0] == ("run.json", True) and not any(there for _, there in seen[1:])
    assert len(seen) == MOVES and seen[-1][0] == "run.json"


def test_what_can_not_be_put_back_either_is_told_apart(tmp_path, monkeypatch):
    final, really = made(tmp_path / "final", "earlier"), Path.replace

    def replace(self, target):
        if target == final / NAMES[1] or ".earlier" in self.parts:
            raise OSError(28, "full")
        really(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(HalfReplacedError, match="full"):
        replace_all(made(tmp_path / "made", "new"), final, NAMES)
