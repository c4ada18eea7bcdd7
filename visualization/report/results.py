"""What an output folder holds: manifests, and of the files that they name tables and pictures."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from config import UsageError

ORDER = ("analyze", "analyze_generation", "compare", "prune", "compress", "tucker")
PICTURE_ENDINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Run:
    """One run of a mode, as its manifest tells it."""

    mode: str
    told: Mapping[str, Any]
    files: tuple[str, ...]

    @property
    def model(self) -> Mapping[str, Any]:
        return _mapping(self.told.get("model"))

    @property
    def text(self) -> Mapping[str, Any]:
        return _mapping(self.told.get("text"))

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.told.get("settings"))

    def sentences(self, name: str) -> list[str]:
        told = self.told.get(name)
        return [line for line in told if isinstance(line, str)] if isinstance(told, list) else []


class Results:
    """A folder of results. staged: files that are about to take their place in it, seen first."""

    def __init__(self, folder: str | Path, staged: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._places = [Path(place) for place in (staged, folder) if place is not None]
        self.missing: list[str] = []  # what a manifest names and cannot be read, with the reason
        self._tables: dict[str, pd.DataFrame | None] = {}

    @cached_property
    def runs(self) -> list[Run]:
        """Of every mode that left a manifest, the main ones first; a file is of one run alone, of
        the staged one where two name it."""
        found: dict[str, Run] = {}
        for place in self._places:
            taken = {file for run in found.values() for file in run.files}
            for file in sorted(place.glob("*.json")):
                run = _run(file) if file.name not in found else None
                if run is not None:
                    kept = tuple(name for name in run.files if name not in taken)
                    told = {**run.told, "files": list(kept)}
                    found[file.name] = replace(run, told=told, files=kept)
        return sorted(found.values(), key=lambda run: (_place(run.mode), run.mode))

    def run(self, mode: str) -> Run | None:
        return next((run for run in self.runs if run.mode == mode), None)

    @cached_property
    def files(self) -> list[str]:
        """All that the manifests name and that is there, as paths below the folder."""
        named = dict.fromkeys(file for run in self.runs for file in run.files)
        return [file for file in named if self.path(file) is not None]

    def path(self, file: str) -> Path | None:
        """Where a file lies that a manifest names; None for one that is not there, or is not
        below the folder."""
        for place in self._places:
            path = place / file
            if path.is_file() and path.resolve().is_relative_to(place.resolve()):
                return path
        return None

    def table(self, stem: str) -> pd.DataFrame | None:
        """That of a CSV file; None where no run has left it, or it cannot be read."""
        if stem not in self._tables:
            self._tables[stem] = self._read(f"{stem}.csv")
        return self._tables[stem]

    def stems(self) -> Iterator[str]:
        """Names without endings of all tables and pictures, each once."""
        endings = (".csv", *PICTURE_ENDINGS)
        yield from dict.fromkeys(f[:-4] for f in self.files if f.endswith(endings))

    def picture(self, stem: str) -> str | None:
        """The file of a picture, the kind that a page can show first."""
        named = (f"{stem}{ending}" for ending in PICTURE_ENDINGS)
        return next((file for file in named if file in self.files), None)

    def _read(self, file: str) -> pd.DataFrame | None:
        path = self.path(file) if file in self.files else None
        if path is None:
            return None
        try:  # a token may be called "null" or "NA": only what is empty was not measured
            return pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)
        except (ValueError, OSError) as error:  # pandas' own are ValueErrors
            self.missing.append(f"{file} ({type(error).__name__}: {error})")
            return None


def of_folder(folder: str | Path, staged: str | Path | None = None) -> Results:
    """Raises UsageError for a folder in which no run has left a manifest."""
    results = Results(folder, staged)
    if not results.runs:
        raise UsageError(
            f"There are no results in {folder}",
            "give the `output_dir` of a run that draws, such as --mode analyze",
        )
    return results


def _run(file: Path) -> Run | None:
    """None for what is no manifest."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        mode, files = told["mode"], told["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(mode, str) or not isinstance(files, list):
        return None
    return Run(mode, told, tuple(name for name in files if isinstance(name, str)))


def _place(mode: str) -> int:
    return ORDER.index(mode) if mode in ORDER else len(ORDER)


def _mapping(told: Any) -> Mapping[str, Any]:
    return told if isinstance(told, dict) else {}
