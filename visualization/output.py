"""The one door to the output folder: pictures, their tables, and the manifest.

A run draws and writes into a hidden folder beside the results and moves everything to its final
name at the very end, the manifest last. What fails or is interrupted on the way leaves earlier
results untouched.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from config import UsageError
from data.writing import unfinished

if TYPE_CHECKING:  # a run opens its folder before it brings in what is heavy
    import pandas as pd

    from visualization.drawing import Drawing


class OutputFolder:
    """A context for one run: what was not committed when it ends is dropped."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = config.user_path(str(folder), "`output_dir`")
        self.files: list[str] = []  # below the folder, in the order in which they were saved

    def __enter__(self) -> "OutputFolder":
        with self._in_one_sentence(), ExitStack() as staged:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stage = staged.enter_context(unfinished(self.folder / "results"))
            self._stage.mkdir()
            self._staged_files = staged.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._staged_files.close()

    def draw(self, drawing: "Drawing", stem: str, table: "pd.DataFrame", about: str) -> None:
        """Have `stem`.png drawn from its table; it is there after `wait_for`."""
        with self._in_one_sentence():
            drawing.submit(stem, table, about, self._staged(f"{stem}.png"))

    def wait_for(self, drawing: "Drawing") -> None:
        """Until all pictures are there; raises what kept one from being drawn."""
        with self._in_one_sentence():
            drawing.finish()

    def table(self, stem: str, table: "pd.DataFrame") -> None:
        """Stage `stem`.csv: UTF-8, one row to a line, empty where nothing was measured."""
        with self._in_one_sentence():
            table.to_csv(self._staged(f"{stem}.csv"), index=False)

    def commit(self, name: str, manifest: Mapping[str, Any]) -> list[str]:
        """Move everything to its final name, the manifest `name` last. Returns all paths.

        An earlier manifest goes first: where a move fails half way, none claims the rest.
        """
        with self._in_one_sentence():
            text = json.dumps(
                {**manifest, "files": self.files}, indent=1, ensure_ascii=False, allow_nan=False
            )
            self._staged(name).write_text(text + "\n", encoding="utf-8")
            for file in self.files:
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                if (self.folder / file).is_dir():
                    raise IsADirectoryError(0, f"{file} is a folder there")
        with self._in_one_sentence(kept="and some of its files may be new"):
            (self.folder / name).unlink(missing_ok=True)
            for file in self.files:
                (self._stage / file).replace(self.folder / file)
        return [str(self.folder / file) for file in self.files]

    def _staged(self, file: str) -> Path:
        path = self._stage / file
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append(file)
        return path

    @contextmanager
    def _in_one_sentence(self, kept: str = "earlier results were kept") -> Iterator[None]:
        """Turn a full disk or a missing permission into a UsageError that names the folder."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"`output_dir` {self.folder} cannot be written ({error.strerror or error})",
                f"{kept}; make room or give another folder",
            ) from None
