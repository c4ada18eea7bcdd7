"""The page itself: what a folder holds, or two folders side by side, in one file that asks nothing
of a network."""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from visualization.report import kept
from visualization.report.cells import as_json
from visualization.report.changed import changed
from visualization.report.frontier import frontier
from visualization.report.in_time import in_time
from visualization.report.ledger import ledger
from visualization.report.overview import Overview, overview
from visualization.report.pictures import BYTES, Picture, explained, pictures
from visualization.report.results import Results, Run, of_folder
from visualization.report.ribbon import ribbon
from visualization.report.tables import tables
from visualization.terminal.typed import as_typed

TEMPLATES = Path(__file__).with_name("templates")
MADE_BY = {
    "ribbon": ("Token ribbon", "`--mode analyze`, of all or of tokens, or `--mode compare`"),
    "changed": ("What changed", "`--mode compare`"),
    "ledger": ("Byte ledger", "`--mode compare`"),
    "frontier": ("Frontier", "`--mode compare`"),
    "in_time": ("Cache in time", "`--mode analyze`, of all, tokens or layers"),
}
WIDGETS = {
    "ribbon": ribbon,
    "changed": changed,
    "ledger": ledger,
    "frontier": frontier,
    "in_time": in_time,
}


@dataclass(frozen=True)
class Side:
    """One folder. key: of its elements in the page. widgets: name -> data of those whose tables are
    there. commands: mode -> what makes its results again."""

    key: str
    name: str
    runs: list[Run]
    overview: Overview
    widgets: dict[str, Any]
    pictures: dict[str, list[Picture]]
    tables: list[dict[str, Any]]
    commands: dict[str, str]
    missing: list[str]

    def picture(self, mode: str, stem: str) -> Picture | None:
        return next((p for p in self.pictures.get(mode, ()) if p.stem == stem), None)

    def manifest(self, run: Run) -> str:
        return json.dumps(run.told, indent=1, ensure_ascii=False)


def build(
    folder: str | Path, compare_with: str | Path | None = None, staged: str | Path | None = None
) -> str:
    """The page of a folder, beside that of `compare_with` where it is given. staged: files that are
    about to be moved into `folder`, seen first."""
    folders = [of_folder(folder, staged)]
    folders += [] if compare_with is None else [of_folder(compare_with)]
    room = BYTES // len(folders)
    sides = [_side(key, results, room) for key, results in zip("ab", folders, strict=False)]
    parts = kept.parts()
    style, script = _text("report.css"), _text("report.js")
    scripts = [_as_script(parts.bundle), _as_script(script)]
    return _template().render(
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(one) for one in scripts],
        charts=as_json(parts.charts),
        sides=sides,
        differences=_differences(sides),
        widgets=[name for name in WIDGETS if any(name in side.widgets for side in sides)],
        absent={n: MADE_BY[n] for n in WIDGETS if not any(n in side.widgets for side in sides)},
        titles={name: title for name, (title, _) in MADE_BY.items()},
        modes=list(dict.fromkeys(mode for side in sides for mode in side.pictures)),
        stems=lambda mode: _stems(sides, mode),
        explained=explained,
    )


def _side(key: str, results: Results, room: int) -> Side:
    widgets = {name: _made(results, name) for name in WIDGETS}
    return Side(
        key=key,
        name=results.folder.resolve().name or str(results.folder),
        runs=results.runs,
        overview=overview(results),
        widgets={name: data for name, data in widgets.items() if data is not None},
        pictures=pictures(results, room),
        tables=tables(results),
        commands={run.mode: as_typed(run.mode, run.settings) for run in results.runs},
        missing=results.missing,
    )


def _made(results: Results, name: str) -> dict[str, Any] | None:
    """The data of a part. Tables may be of other versions, or mended by hand: one that does not fit
    takes its part away, which the page then says, and nothing else."""
    try:
        return WIDGETS[name](results)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        results.missing.append(
            f"the table of “{MADE_BY[name][0]}” ({type(error).__name__}: {error})"
        )
        return None


def _stems(sides: list[Side], mode: str) -> list[str]:
    """The pictures of a mode, on any side."""
    named = (picture.stem for side in sides for picture in side.pictures.get(mode, ()))
    return list(dict.fromkeys(named))


def _differences(sides: list[Side]) -> list[tuple[str, str, str]]:
    """(what, here, there): facts, and settings of modes that both have, in which they differ."""
    if len(sides) == 1:
        return []
    both = {run.mode for run in sides[0].runs} & {run.mode for run in sides[1].runs}
    here, there = (_told(side, both) for side in sides)
    return [
        (name, here[name], there[name])
        for name in here
        if name in there and here[name] != there[name]
    ]


def _told(side: Side, modes: set[str]) -> dict[str, str]:
    facts = {name: said for name, said in side.overview.facts if name != "Folder"}
    settings = {
        f"{run.mode}: {name}": json.dumps(value, ensure_ascii=False)
        for run in side.runs
        if run.mode in modes
        for name, value in run.settings.items()
        if name != "output_dir"
    }
    return facts | settings


def _policy(style: str, scripts: list[str]) -> str:
    """What a browser may do for this page: run these scripts, in this style, with pictures that
    are in it. All else, every request among it, is refused."""
    allowed = " ".join(_digest(one) for one in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _as_script(text: str) -> str:
    """Without what would end a script element, or begin a comment in it, inside its strings."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r", "")


def _marked(sentence: str) -> Markup:
    """With what stands between backticks as code."""
    pieces = [escape(piece) for piece in sentence.split("`")]
    return Markup("").join(
        Markup(f"<code>{piece}</code>") if i % 2 else piece for i, piece in enumerate(pieces)
    )


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    """Everything that is put into it is escaped, but for what is markup of ours."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"json": as_json, "marked": _marked}
    return environment.get_template("report.html")
