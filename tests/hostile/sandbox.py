"""The folder that bad inputs are run in: a model, texts, earlier results, a stored prompt."""

import hashlib
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from compression import sealed
from compression.studies.rows import FORMAT
from data.saved_cache import save
from tests import caches, families
from tests.commands import PROMPT, run

EARLIER = ("analyze.json", "tucker.json", "compare.json", "layers/layer_statistics.csv")
ROWS = "home/rows"  # of measurements that are kept as soon as each is finished
Content = dict[str, tuple[object, ...]]


class Sandbox:
    """A folder that is made once, and made anew after a case that had a part of it changed."""

    def __init__(self, home: Path) -> None:
        """home: an empty folder."""
        self._pristine, self.folder = home / "pristine", home / "box"
        self._pristine.mkdir()
        families.save(families.model("llama_gqa"), self._pristine / "model")
        (self._pristine / "text.txt").write_text(PROMPT * 4)
        (self._pristine / "notes.md").write_text("What nobody has a copy of.")
        for file in EARLIER:
            (self._pristine / "out" / file).parent.mkdir(parents=True, exist_ok=True)
            (self._pristine / "out" / file).write_text("{}")
        (self._pristine / "home").mkdir()  # what is kept between runs
        cache = caches.watched(caches.mixed())
        save(self._pristine / "text.cache", cache, caches.words(cache), {"name": "owner/random"})
        self._store_a_prompt()
        self.reset()

    def _store_a_prompt(self) -> None:
        flags = "--mode store --model ./model --device cpu --methods int8 --context_tokens 60"
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
            self.enter(patch, self._pristine)
            named = ["--no-use_wikitext", "--save_compressed", "prompt.kv"]
            assert run(*flags.split(), *named) == 0

    def enter(self, patch: pytest.MonkeyPatch, folder: Path | None = None) -> None:
        """Make it the folder that a command is run in, and that keeps what is kept between runs."""
        patch.chdir(folder or self.folder)
        patch.setenv("KV_CACHE_HOME", str((folder or self.folder) / "home"))

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._pristine, self.folder)

    def content(self) -> Content:
        """path -> what tells whether it is the same and untouched."""
        return {str(p.relative_to(self.folder)): _state(p) for p in self.folder.rglob("*")}


def _state(path: Path) -> tuple[object, ...]:
    """Folders change when a file in them does, and are looked at by their files."""
    if path.is_symlink():
        return ("link", str(path.readlink()))
    if path.is_dir():
        return ("folder",)
    status = path.lstat()
    seal = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else status.st_mode
    return (status.st_ino, status.st_size, status.st_mtime_ns, seal)


def is_new_row(folder: Path, path: str, before: Content) -> bool:
    """Whether a path came as a finished measurement, whole, or as the folder of those: kept for the
    next run, it is no result and no loss."""
    if path in before:
        return False
    if path == ROWS:
        return (folder / path).is_dir()
    if Path(path).parent != Path(ROWS) or not (folder / path).is_file():
        return False
    try:
        _, header = sealed.read(folder / path)
    except ValueError:
        return False
    return header.get("format") == FORMAT and f"{header.get('key')}.row" == Path(path).name


def changed(before: Content, after: Content) -> list[str]:
    """Paths that came, went or are another file now."""
    return sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
