"""What is the same on every page and takes seconds to make: the libraries that draw, and the charts
without their rows. It is made once for a version of each, and kept in the cache folder."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import config
from data.writing import whole_or_nothing

MAKERS = ("altair", "vl-convert-python")


@dataclass(frozen=True)
class Parts:
    """bundle: Vega, Vega-Lite and vega-embed as one script. charts: name -> specification."""

    bundle: str
    charts: dict[str, Any]


def parts() -> Parts:
    return _parts(config.cache_folder() / "report" / f"{_key()}.json")


@cache
def _key() -> str:
    """Of all that the parts depend on."""
    made_by = [f"{name} {version(name)}" for name in MAKERS]
    charts = Path(__file__).with_name("charts.py").read_bytes()
    return hashlib.sha256("\n".join(made_by).encode() + charts).hexdigest()[:24]


@cache
def _made() -> Parts:
    import altair
    import vl_convert

    from visualization.report.charts import all_charts

    major_and_minor = altair.SCHEMA_VERSION.rpartition(".")[0]  # v6.4.1 -> v6.4
    snippet = "window.vegaEmbed = vegaEmbed;"
    return Parts(vl_convert.javascript_bundle(snippet, major_and_minor), all_charts())


@cache
def _parts(file: Path) -> Parts:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        body = kept["body"]
        if hashlib.sha256(body.encode()).hexdigest() == kept["sha256"]:
            return Parts(**json.loads(body))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none is kept yet, or it is damaged: it is made
    made = _made()
    _keep(made, file)
    return made


def _keep(made: Parts, file: Path) -> None:
    """Where the folder can be written; elsewhere each run makes them anew."""
    body = json.dumps({"bundle": made.bundle, "charts": made.charts})
    text = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(file) as part:
            part.write_text(text, encoding="utf-8")
    except OSError:
        return
