"""The one door to the output folder: pictures, their tables, and the manifest.

A run draws and writes into a hidden folder beside the results and moves everything to its final
name at the very end, the manifest last. What fails or is interrupted on the way leaves earlier
results untouched.
"""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import config
from config import UsageError


class OutputFolder:
    """A context for one run: what was not committed when it ends is dropped."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = config.user_path(str(folder), "--output_dir")
        self.files: list[str] = []  # below the folder, in the order in which they were saved

    def __enter__(self) -> "OutputFolder":
        with self._in_one_sentence():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stage = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.folder))
        return self

    def __exit__(self, *_) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)

    def picture(self, stem: str, figure: Figure, table: pd.DataFrame) -> None:
        """Stage `stem`.png and its table `stem`.csv."""
        with self._in_one_sentence():
            path = self._staged(f"{stem}.png")
            figure.savefig(path, dpi=config.FIGURE_DPI, pil_kwargs={"compress_level": 2})
        self.table(stem, table)

    def table(self, stem: str, table: pd.DataFrame) -> None:
        """Stage `stem`.csv: UTF-8, one row to a line, empty where nothing was measured."""
        with self._in_one_sentence():
            table.to_csv(self._staged(f"{stem}.csv"), index=False)

    def commit(self, name: str, manifest: dict) -> list[str]:
        """Move everything to its final name, the manifest `name` last. Returns all paths.

        An earlier manifest goes first: where a move fails half way, none claims the rest.
        """
        with self._in_one_sentence():
            text = json.dumps(
                manifest | {"files": self.files}, indent=1, ensure_ascii=False, allow_nan=False
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
    def _in_one_sentence(self, kept: str = "earlier results were kept"):
        """Turn a full disk or a missing permission into a UsageError that names the folder."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"--output_dir {self.folder} cannot be written ({error.strerror or error}): "
                f"{kept}; make room or give another folder."
            ) from None
