"""Files and folders that are there whole or not at all."""

from pathlib import Path

import pytest

from data.writing import unfinished, whole_or_nothing

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
        assert part.parent == tmp_path and part.name.startswith(".")
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


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unfinished_is_removed_and_two_do_not_meet(tmp_path, kind):
    with unfinished(tmp_path / "kept") as one, unfinished(tmp_path / "kept") as other:
        assert one != other
        make(one, kind, "one")
        make(other, kind, "other")
        assert content_of(one) == "one"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError), whole_or_nothing(tmp_path / "no" / "kept") as part:
        part.write_text("")
    assert list(tmp_path.iterdir()) == []
