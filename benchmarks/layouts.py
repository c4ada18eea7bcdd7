"""What holds for which model: every kind of cache in transformers that the tests have a model of.

    python -m benchmarks.layouts [--long]

Prints a table in Markdown, the one of docs/models.md: families of models with the same outcomes, by
the names that transformers gives them; with --long a row for each. The models are tiny and random
(tests/families.py), and each column is tried on them: tables of `analyze`; in how many layers the
attention that tokens receive is seen, and rotary embedding can be undone; the KL of an eviction;
`coded` calibrated, restored and its KL measured; a prompt stored and gone on from, as from the
cache that was never stored. tests/test_layouts.py holds that page to it.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compression import prompts, turns
from compression.coded.calibration import calibrate
from compression.coded.method import Coded
from compression.evaluate import Judge
from compression.methods.evictions import Recent
from compression.studies import analyze
from config import UsageError
from data.cache import LayerKV
from data.extraction import prefill
from data.loaded_model import LoadedModel
from data.scoring import Continuation
from data.sensitivity import sensitivities, windows
from data.texts import Sample, printable
from tests import families

TEXT = "The cache of a model holds the keys and values of every token that it has read. " * 6
CONTEXT, SCORED, NEW = 64, 8, 6
CALLED = "the model"  # in sentences
Row = dict[str, str]


@dataclass(frozen=True)
class Tried:
    """A model, and a text that it has read the beginning of."""

    loaded: LoadedModel
    judge: Judge

    @property
    def layers(self) -> tuple[LayerKV, ...]:
        return self.judge.cache.layers


def row(loaded: LoadedModel) -> Row:
    """Column -> what holds, and under `refused` the sentences of what does not."""
    try:
        start = prefill(loaded, loaded.ids_of(TEXT, CONTEXT), probe=True)
        ids = loaded.ids_of(TEXT, CONTEXT + SCORED + 1)
        judge = Judge(start.cache, Continuation(loaded, start.past, ids[CONTEXT:]))
    except UsageError as refusal:
        return dict.fromkeys(COLUMNS, "no") | {REFUSED: refusal.reason}
    tried = Tried(loaded, judge)
    found, sentences = {}, []
    for name, holds in COLUMNS.items():
        try:
            found[name] = holds(tried)
        except UsageError as refusal:
            found[name] = "no"
            sentences.append(refusal.reason)
    return found | {REFUSED: "; ".join(dict.fromkeys(sentences))}


def _analysed(tried: Tried) -> str:
    return _yes(bool(analyze.look(tried.loaded, tried.judge.cache, "all")))


def _attention(tried: Tried) -> str:
    return _share([layer.attention is not None for layer in tried.layers])


def _unrotated(tried: Tried) -> str:
    return _share([layer.rotary is not None for layer in tried.layers])


def _evicted(tried: Tried) -> str:
    restored = Recent(keep=0.5, sink_tokens=2).compress(tried.judge.cache).restore()
    return _yes(tried.judge.verdict(restored)["kl_mean_nats"] > 0)


def _coded(tried: Tried) -> str:
    chosen = windows(tried.loaded, TEXT, contexts=(48, 32), n_scored=SCORED)
    calibration = calibrate(sensitivities(tried.loaded, chosen, n_draws=1), "a text")
    restored = Coded(step=1e-3, calibration=calibration).compress(tried.judge.cache).restore()
    cost = tried.judge.verdict(restored)["kl_mean_nats"]
    return _yes(abs(cost) > 0)  # of random weights it may be within rounding, of either sign


def _resumed(tried: Tried) -> str:
    """In 16 bits, and against the same in 16 bits that was never stored."""
    loaded, sample = tried.loaded, Sample(0, "a text", "given", TEXT)
    ids = loaded.ids_of(TEXT, CONTEXT + 1)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "prompt.kv")
        prompts.save(loaded, sample, file, methods=("none",), context_tokens=len(ids))
        said, _ = turns.go_on(loaded, file, NEW)
    start = prefill(loaded, ids[:-1])
    uninterrupted = Continuation(loaded, start.past, ids[-1:]).greedy(start.cache.in_16_bits(), NEW)
    return _yes(said == printable(loaded.tokenizer.decode(uninterrupted)))


def _yes(holds: bool) -> str:
    return "yes" if holds else "wrong"


def _share(layers: list[bool]) -> str:
    """In which layers something holds."""
    if all(layers) or not any(layers):
        return "yes" if all(layers) else "no"
    return f"{sum(layers)} of {len(layers)} layers"


COLUMNS: dict[str, Callable[[Tried], str]] = {
    "analysed": _analysed,
    "attention seen": _attention,
    "keys unrotated": _unrotated,
    "evicted": _evicted,
    "`coded`": _coded,
    "stored, resumed": _resumed,
}
REFUSED = "refused with"


def called(name: str) -> str:
    """A family as transformers calls it, or as the tests do where they have several of a type."""
    types = [model_type for model_type, _ in families.SETTINGS.values()]
    own = families.SETTINGS[name][0]
    return own if types.count(own) == 1 else name


def of_family(name: str) -> Row:
    return row(LoadedModel(families.model(name), families.tokenizer(), CALLED, ""))


def grouped(rows: dict[str, Row]) -> dict[str, Row]:
    """Families of the same outcomes in one row, by their names; most families first."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, found in rows.items():
        names.setdefault(tuple(found.values()), []).append(name)
    several = sorted(names.values(), key=len, reverse=True)
    return {", ".join(sorted(each)): rows[each[0]] for each in several}


def markdown(rows: dict[str, Row]) -> str:
    head = ["model", *COLUMNS, REFUSED]
    lines = [head, ["---"] * len(head), *([name, *found.values()] for name, found in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="a row for each family")
    rows = {called(name): of_family(name) for name in families.SETTINGS}
    print(markdown(rows if parser.parse_args().long else grouped(rows)))


if __name__ == "__main__":
    main()
