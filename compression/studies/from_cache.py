"""What a mode finds out from a cache in a file, with no model at hand: what it looks like, and what
each method stores of it and is off by. Nothing here brings in transformers but a model that is
handed in (see measured_from_cache.py); layers are read from the file as they are needed, one after
the other where a method treats them apart."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

import config
from analysis.advice import recommendations
from analysis.cached_entries import Shown, cached_entries
from analysis.findings import key_findings
from analysis.inventory import inventory_table, size, what_it_is
from analysis.measures import sweep, thresholds
from analysis.spectrum import Spectrum
from analysis.tables import Subject, tables
from compression.base import Calibration
from compression.coded import calibration_files
from compression.coded.learned_text import leak
from compression.costs import costs_on
from compression.studies import error_words as words
from compression.studies import presets
from compression.studies.base import INVENTORY, Study, Tables
from compression.studies.compare import CompareStudy
from compression.studies.comparison_words import by_reason
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.saved_names import SavedModel, SavedText, tokens
from compression.studies.seen import Seen, look
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data import saved_cache, sources
from data.cache import KVCache
from data.corpora import reference_samples
from data.inventory import Inventory
from data.saved_cache import SavedCache
from data.texts import Sample, visible
from data.vocabulary import FOCUSES

if TYPE_CHECKING:  # it brings in transformers
    from compression.studies.work import Model
    from data.loaded_model import LoadedModel

Phase = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Sight:
    """`--mode analyze` of a cache alone. analysis_focus: one of FOCUSES. layer, head: whose entries
    are shown, see `Shown`."""

    analysis_focus: str = "all"
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.analysis_focus not in FOCUSES:
            raise UsageError(
                f"`analysis_focus` is {self.analysis_focus}",
                f"of a cache alone it takes one of {', '.join(FOCUSES)}",
            )


ASKED: dict[str, type[Sight] | type[Study]] = {
    "analyze": Sight,
    "analyze_similarity": SimilarityStudy,
    "tucker": TuckerStudy,
    "compress": CompressStudy,
    "prune": PruneStudy,
    "compare": CompareStudy,
}


@dataclass(frozen=True)
class Found:
    """tables: by their file's name without its ending. said: sentences by headings. facts: for a
    manifest. refused: what was asked for and cannot be had, told after all results are written.
    continued: texts that the model goes on with, where it is there."""

    model: "SavedModel | Model"
    text: SavedText
    tables: Tables
    said: dict[str, list[str]]
    facts: dict[str, Any]
    refused: UsageError | None = None
    continued: Mapping[str, str] = field(default_factory=dict)


def run(
    asked: Sight | Study,
    load_cache: str,
    cache_layout: str | None = None,
    model: str | None = None,
    phase: Phase = nullcontext,
    load: "Callable[[], LoadedModel] | None" = None,
    candidates: Sequence[Sample] | None = None,
) -> Found:
    """Carry out what was asked on a saved cache. model: the name of the model that it must be of;
    any where that is not given. load: gives the model itself, by which the cost of what is compared
    is measured; the first of the candidates is then the text of the cache, where there are some."""
    with phase("load"):
        saved = saved_cache.load(load_cache, cache_layout)
    if load is not None:
        from compression.studies.measured_from_cache import OnSavedCache  # which needs transformers

        named = Path(load_cache).name
        return OnSavedCache.of(asked, saved, named, candidates).run(load(), phase)
    _refuse_another_model(saved, model)
    text = SavedText(Path(load_cache).name, saved.text, saved.cache.n_tokens)
    if isinstance(asked, Sight):
        with phase("analysis"):
            return _looked_at(asked, saved, text)
    return _studied(asked, saved, text, phase)


def _refuse_another_model(saved: SavedCache, model: str | None) -> None:
    if model is None:
        return
    made_by, called = saved.model.get("name"), sources.called(model)
    if made_by is None:
        raise UsageError(
            f"`model` is {model}, and it is not known which model made the cache",
            "leave `model` out",
        )
    if visible(called) != visible(made_by):
        raise UsageError(
            f"The cache is one of {visible(made_by)}, and `model` is {model}",
            "give a cache of that model, or leave `model` out",
        )


def _looked_at(asked: Sight, saved: SavedCache, text: SavedText) -> Found:
    model = SavedModel(saved.model)
    made, limits = _seen_of(asked, saved)
    sparse, dense = config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE
    inventory, kept = _kept(saved)
    findings = [*kept, *key_findings(made, sparse, dense, config.TOP_TOKENS)]
    advice = recommendations(made, sparse)
    said = {
        f"Key findings on {model.name}, {text.name}": findings,
        "Recommendations (heuristics, not measured)": advice,
    }
    facts = {
        "cache": inventory.facts,
        "thresholds": limits,
        "findings": findings,
        "recommendations_not_measured": advice,
    }
    made |= {INVENTORY: inventory_table(inventory)}
    return Found(model, text, made, said, facts)


def _seen_of(asked: Sight, saved: SavedCache) -> tuple[Tables, dict[str, float]]:
    """Tables, and the thresholds of sparsity; only the one layer is read where no more is shown."""
    cache, percentage = saved.cache, config.SPARSITY_THRESHOLD_PERCENTAGE
    shown = Shown(asked.layer, asked.head)
    shown.of(cache)  # refused before anything is read
    if asked.analysis_focus == "cache":
        limits = thresholds(cache, percentage, saved.largest)
        return cached_entries(cache, tokens(saved), shown), limits
    swept = sweep(cache, percentage, saved.largest)
    if asked.analysis_focus == "spectrum":
        return Spectrum.of(cache).tables(config.SUBSPACE_RANK), dict(swept.thresholds)
    return tables(Subject(swept, tokens(saved), shown), asked.analysis_focus), swept.thresholds


def _studied(study: Study, saved: SavedCache, text: SavedText, phase: Phase) -> Found:
    model, cache = SavedModel(saved.model), saved.cache.in_16_bits()
    with phase("analysis"):
        calibration = _kept_calibration(study, saved)
        seen = look(study, cache, calibration)
    with phase("scoring"):
        table, left_out = _scored(seen, cache)
    inventory, kept = _kept(saved)
    too_good = leak(_known(saved)) if calibration else []
    lines = [*too_good, *kept, *seen.told(table), *words.of_all(table)]
    lines += [f"Left out: {by_reason(left_out)}."] if left_out else []
    made = seen.tables | {
        f"{seen.folder}/bits_and_errors": table,
        INVENTORY: inventory_table(inventory),
    }
    facts = {
        "cache": inventory.facts,
        "verdict": lines,
        "left_out": left_out,
    }
    said = {f"{study.title} on {model.name}, {text.name}": lines}
    return Found(model, text, made, said, facts, _refused(study, table))


def _kept_calibration(study: Study, saved: SavedCache) -> Calibration | None:
    """What `coded` has kept of the model that made the cache, where the study asks for it."""
    identity = saved.model.get("identity", "")
    return calibration_files.kept(saved.cache, identity) if study.calibrates else None


def _known(saved: SavedCache) -> list[Sample]:
    """The text of the cache, where it is of the corpus that is at hand without a model."""
    said = saved.text.get("source"), saved.text.get("index")
    return [sample for sample in reference_samples() if (sample.source, str(sample.index)) == said]


def _scored(seen: Seen, cache: KVCache) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table of scored settings with their frontier, and label -> why of those left out."""
    rows, left_out = [], dict(seen.left_out)
    refused = UsageError("there are no settings")
    for method, (family, label) in tqdm(
        seen.labels.items(), desc="Score", unit="method", leave=False
    ):
        try:
            row = costs_on(cache, method)
        except UsageError as refusal:
            left_out[label], refused = refusal.reason, refusal
            continue
        named = {"family": family, "label": label, "evicts": presets.evicts(method.name)}
        rows.append(named | row)
    if all(row["method"] == "none" for row in rows):
        raise refused
    table = pd.DataFrame(rows)
    table = table.assign(bytes_per_token=table["stored_bytes"] / cache.n_tokens)
    return words.with_frontier(table), left_out


def _refused(study: Study, table: pd.DataFrame) -> UsageError | None:
    """That no setting fits the budget of bytes."""
    budget = study.budget if isinstance(study, CompareStudy) else {}
    if not budget or len(words.within(budget, table)):
        return None
    asked = " and ".join(f"`{name}` {value:g}" for name, value in budget.items())
    least = table.iloc[0]
    return UsageError(
        f"No setting fits {asked}; the smallest is {least['label']} with "
        f"{least['bits_per_value']:.2f} bits per value, {least['bytes_per_token']:.0f} bytes per "
        "token. All results were written"
    )


def _kept(saved: SavedCache) -> tuple[Inventory, list[str]]:
    """The keys and values of a file, and in sentences what they are and what is assumed of them."""
    inventory = Inventory.of_cache(saved.cache)
    n = len(inventory.layers)
    line = (
        f"Keys and values: {size(inventory.kv_nbytes)} in 16 bits, in {n} layers; what else its "
        "model keeps of a text is not in such a file."
    )
    return inventory, [what_it_is(inventory), line, *saved.assumed]
