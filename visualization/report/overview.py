"""The top of the page: model, text, the size of the cache in plain words, what was measured and
what was only a heuristic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from visualization.report.cells import nbytes
from visualization.report.results import Results, Run

MEASURED = ("verdict", "recommendations_measured")
HEURISTIC = "recommendations_not_measured"
SIZES = (8_192, 131_072)  # tokens of a context, to say what a cache would take


@dataclass(frozen=True)
class Overview:
    """facts: (what, said). measured, found, heuristic: mode -> sentences."""

    model: str
    size: str
    facts: list[tuple[str, str]]
    measured: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)
    heuristic: dict[str, list[str]] = field(default_factory=dict)
    generated: str = ""


def overview(results: Results) -> Overview:
    runs = results.runs
    first = runs[0]
    generated = (run.told.get("generated") for run in runs)
    return Overview(
        model=str(first.model.get("name", "unknown model")),
        size=_size(runs),
        facts=_facts(results),
        measured=_said(runs, MEASURED),
        found=_said(runs, ("findings",)),
        heuristic=_said(runs, (HEURISTIC,)),
        generated=next((text for text in generated if isinstance(text, str)), ""),
    )


def _said(runs: list[Run], names: tuple[str, ...]) -> dict[str, list[str]]:
    said = {run.mode: [line for name in names for line in run.sentences(name)] for run in runs}
    return {mode: lines for mode, lines in said.items() if lines}


def _facts(results: Results) -> list[tuple[str, str]]:
    first = results.runs[0]
    models = dict.fromkeys(str(run.model.get("name", "")) for run in results.runs)
    texts = dict.fromkeys(_text(run.told) for run in results.runs)
    where = dict.fromkeys(
        f"{run.model.get('dtype', '?')} on {run.model.get('device', '?')}" for run in results.runs
    )
    return [
        ("Model", " / ".join(models)),
        ("Revision", str(first.model.get("revision", "unknown"))),
        ("Run in", " / ".join(where)),
        ("Text", " / ".join(texts)),
        ("Modes", ", ".join(run.mode for run in results.runs)),
        ("Folder", str(results.folder)),
    ]


def _text(told: Mapping[str, Any]) -> str:
    texts = told.get("texts")
    first = told.get("text")
    if not isinstance(first, dict):
        return "unknown text"
    number = f" #{first['index']}" if first.get("index") not in (None, "") else ""
    title = f": {first['title']}" if first.get("title") else ""
    more = f" and {len(texts) - 1} more" if isinstance(texts, list) and len(texts) > 1 else ""
    read = first.get("tokens_read")
    tokens = f", {read:,} tokens" if isinstance(read, int) else ""
    return f"{first.get('source', 'unknown source')}{number}{title}{tokens}{more}"


def _size(runs: list[Run]) -> str:
    """In plain words, of the first run that knows it."""
    for run in runs:
        cache, tokens = run.told.get("cache"), run.text.get("tokens_read")
        plain = cache.get("keys_and_values_bytes_in_16_bits") if isinstance(cache, dict) else None
        if not isinstance(plain, int) or not isinstance(tokens, int) or not plain or not tokens:
            continue
        each = plain / tokens
        longer = " and ".join(f"{nbytes(each * n)} at {n:,} tokens" for n in SIZES)
        return (
            f"A KV cache is what a model keeps of every token that it has read, so as not to "
            f"compute it again. Here it takes {nbytes(plain)} for {tokens:,} tokens, "
            f"{each:,.0f} bytes each in 16 bits; at that rate {longer}."
        )
    return "No run here says how large the cache is."
