"""The one door to the output folder: pictures, their tables, and the manifest.

A run draws and writes into a hidden folder beside the results and moves everything to its final
name at the very end, the manifest last. What fails or is interrupted on the way leaves earlier
results untouched.

Runs may share a folder: only while it moves its files one locks it, so that none waits for the work
of another, and yet files and manifest are those of one run. The lock lies beside the results, since
there it also holds between machines that share a disk, and is gone when none is at it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from config import UsageError
from data import signals
from data.locks import only_run
from data.writing import HalfReplacedError, replace_all, unfinished, whole_or_nothing

if TYPE_CHECKING:  # a run opens its folder before it brings in what is heavy
    import pandas as pd

    from visualization.drawing import Drawing

Page = tuple[str, Callable[[Path, Path], str]]  # made of the folder, and of what is to go into it


class OutputFolder:
    """A context for one run: what was not committed when it ends is dropped."""

    def __init__(self, folder: str | Path, text_file: str | None = None) -> None:
        """text_file: what the run reads, which no result may replace."""
        self.folder = config.user_path(str(folder), "`output_dir`")
        self._text_file = None if text_file is None else config.user_path(text_file, "`text_file`")
        self.files: list[str] = []  # below the folder, in the order in which they were saved

    def __enter__(self) -> "OutputFolder":
        with self._in_one_sentence(), ExitStack() as staged:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stage = staged.enter_context(unfinished(self.folder / "results"))
            self._staged_files = staged.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._staged_files.close()

    def draw(
        self,
        drawing: "Drawing",
        stem: str,
        table: "pd.DataFrame",
        about: str,
        picture_format: str = "png",
    ) -> None:
        """Have the picture `stem` drawn from its table, in one of `vocabulary.PICTURE_FORMATS`; it
        is there after `wait_for`."""
        with self._in_one_sentence():
            drawing.submit(stem, table, about, self._staged(f"{stem}.{picture_format}"))

    def wait_for(self, drawing: "Drawing") -> None:
        """Until all pictures are there; raises what kept one from being drawn."""
        with self._in_one_sentence():
            drawing.finish()

    def table(self, stem: str, table: "pd.DataFrame") -> None:
        """Stage `stem`.csv: UTF-8, one row to a line, empty where nothing was measured."""
        with self._in_one_sentence():
            table.to_csv(self._staged(f"{stem}.csv"), index=False)

    def commit(
        self, name: str, manifest: Mapping[str, Any], page: "Page | None" = None
    ) -> list[str]:
        """Move everything to its final name, the manifest `name` last. Returns all paths. page: the
        name and the maker of a page of all that the folder then holds."""
        with self._in_one_sentence():
            path = None if page is None else self._staged(page[0])
            text = json.dumps(
                {**manifest, "files": self.files}, indent=1, ensure_ascii=False, allow_nan=False
            )
            self._staged(name).write_text(text + "\n", encoding="utf-8")
            waiting = f"Another run is writing its results into {self.folder}: waiting for it."
            with only_run(self.folder / ".lock", waiting):
                if path is not None and page is not None:
                    path.write_text(page[1](self.folder, self._stage), encoding="utf-8")
                replace_all(self._stage, self.folder, self.files)
                for other in self.folder.glob("*.json"):
                    if other.name != name:
                        _disown(other, self.files)
        return [str(self.folder / file) for file in self.files]

    def refuse_to_replace_the_text(self, files: Iterable[str]) -> None:
        """Raise UsageError where one of these files below the folder is the text of the run."""
        for file in files:
            if self._text_file is not None and _is_same(self.folder / file, self._text_file):
                raise UsageError(
                    f"`text_file` {self._text_file} would be replaced by a result",
                    "give another `output_dir`",
                )

    def _staged(self, file: str) -> Path:
        self.refuse_to_replace_the_text([file])
        path = self._stage / file
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append(file)
        return path

    @contextmanager
    def _in_one_sentence(self) -> Iterator[None]:
        """Turn a full disk or a missing permission into a UsageError that names the folder."""
        signals.raise_again()  # if the run was told to end, and a library has dropped that
        try:
            yield
        except OSError as error:
            mixed = isinstance(error, HalfReplacedError)
            kept = "and some of its files may be new" if mixed else "earlier results were kept"
            raise UsageError(
                f"`output_dir` {self.folder} cannot be written ({error.strerror or error})",
                f"{kept}; make room or give another folder",
            ) from None


def _disown(manifest: Path, files: Iterable[str]) -> None:
    """Take files that are of another run now out of the manifest of an earlier one."""
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        kept = [file for file in told["files"] if file not in set(files)]
    except (ValueError, KeyError, TypeError):
        return  # it is none
    if kept != told["files"]:
        with whole_or_nothing(manifest) as part:
            text = json.dumps({**told, "files": kept}, indent=1, ensure_ascii=False)
            part.write_text(text + "\n", encoding="utf-8")


def _is_same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except OSError:  # one of them is not there
        return False
