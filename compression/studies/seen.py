"""What each study decides and sees of a cache alone, without the model that made it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch

import pandas as pd

import config
from analysis.measures import sweep
from compression.base import Calibration, Compressor, Uncompressed
from compression.costs import relative_errors, tried
from compression.registry import learns, make
from compression.studies import error_words as words
from compression.studies import presets
from compression.studies.base import Learned, Study, Tables
from compression.studies.compare import CompareStudy
from compression.studies.comparison_words import by_reason
from compression.studies.compress import CompressStudy
from compression.studies.prune import PrunePlan, PruneStudy
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from compression.studies.tucker_tables import components, other_ranks
from config import UsageError
from data.cache import KVCache

Labels = dict[Compressor, tuple[str, str]]  # method -> (family, label)
NONE: Labels = {Uncompressed(): ("none", "none")}


@dataclass(frozen=True)
class Seen:
    """labels: method -> (family, label), to be scored. folder: where the tables of their scores go.
    tables: what was seen. left_out: label -> why. told: sentences from the scored settings, as
    `from_cache` has them."""

    folder: str
    labels: Labels
    tables: Tables
    told: Callable[[pd.DataFrame], list[str]]
    left_out: dict[str, str] = field(default_factory=dict)


@singledispatch
def look(study: Study, cache: KVCache, calibration: Calibration | None) -> Seen:
    """Look at a cache in 16 bits, and decide what to score. calibration: what `coded` has kept of
    the model, if anything."""
    raise ValueError(f"{type(study).__name__} cannot do without a model")


@look.register
def _(study: SimilarityStudy, cache: KVCache, calibration: Calibration | None) -> Seen:
    plan = study.plan(cache)
    labels = {method: (level, level) for level, method in plan.merges.items()}

    def told(rows: pd.DataFrame) -> list[str]:
        return plan.lines(plan.savings(rows))

    return Seen("similarity", NONE | labels, dict(plan.looked), told)


@look.register
def _(study: TuckerStudy, cache: KVCache, calibration: Calibration | None) -> Seen:
    method = study.method
    method.refuse_idle(cache)
    layers = relative_errors(cache, tried(method, cache).restored)
    layers = layers[["layer", "kind", "relative_error"]].assign(kl_mean_nats=float("nan"))
    worst = layers["layer"][layers["relative_error"].idxmax()]
    place = [layer.index for layer in cache.layers].index(worst)
    others = other_ranks(method, config.TOKEN_RANKS, config.EMBEDDING_RANKS)
    ranks: Labels = {other: ("other ranks", _ranks(other)) for other in others}
    kind = "keys before rotary embedding" if method.unrotated_keys else "as asked"
    asked: Labels = {
        replace(method, unrotated_keys=False): ("as asked", "keys as stored"),
        method: (kind, kind),
    }
    tables = {
        "tucker/tucker_components": components(method, cache, place).assign(layer=worst),
        "tucker/layer_sensitivity": layers,
    }
    return Seen("tucker", NONE | ranks | asked, tables, partial(words.of_tucker, layers))


def _ranks(method: Compressor) -> str:
    chosen = method.settings()
    return f"{chosen['token_rank']}/{chosen['embedding_rank']}"


@look.register
def _(study: CompressStudy, cache: KVCache, calibration: Calibration | None) -> Seen:
    plan = study.plan(cache, Learned())
    labels = {method: _way(method) for method in plan.methods[1:]}
    left_out = {"calibrated_pca": "its basis is fitted on caches of other texts"}
    tables = {"similarity/embedding_dimension_groups": plan.groups}
    told = partial(words.of_levels, study.shares)
    return Seen("embeddings", NONE | labels, tables, told, left_out)


def _way(method: Compressor) -> tuple[str, str]:
    """A way to keep fewer dimensions, and at which share."""
    chosen = method.settings()
    family = method.name + (" of unrotated keys" if chosen["unrotated_keys"] else "")
    alike = chosen.get("similarity")
    share = f"alike {alike:g}" if alike else f"{chosen['keep']:.0%}"
    return family, f"{family} {share}"


@look.register
def _(study: PruneStudy, cache: KVCache, calibration: Calibration | None) -> Seen:
    choices = study.chosen(sweep(cache, config.SPARSITY_THRESHOLD_PERCENTAGE))
    labels: Labels = {}
    for choice in choices:
        for i, control in enumerate(choice.controls):
            labels[control] = ("as much at random", f"{choice.what}, at random {i + 1}")
    labels |= {choice.method: (choice.what, choice.what) for choice in choices}

    def told(rows: pd.DataFrame) -> list[str]:
        scored = set(zip(rows["method"], rows["settings"], strict=True))
        fit = [c for c in choices if (c.method.name, c.method.words()) in scored]
        return words.of_choices(PrunePlan(fit, None).impact(rows))

    return Seen("pruning", labels, {}, told)


@look.register
def _(study: CompareStudy, cache: KVCache, calibration: Calibration | None) -> Seen:
    named = {
        label: (family, setting)
        for family, settings in study.settings.items()
        for label, setting in settings.items()
    }
    known = {"", "coded"} if calibration else {""}
    left_out = _uncalibrated(named, known, cache.model)
    labels = {
        make(*setting, calibration): (family, label)
        for label, (family, setting) in named.items()
        if label not in left_out
    }
    why = {method: presets.unfit(method, cache) for method in labels}
    left_out |= {labels[method][1]: reason for method, reason in why.items() if reason}
    fit = {method: each for method, each in labels.items() if not why[method]}
    if {family for family, _ in fit.values()} == {"none"}:
        raise UsageError(
            f"Of `methods` nothing can be compared on this cache of {cache.n_tokens} tokens, "
            f"{by_reason(left_out)}",
            "give others",
        )
    return Seen("compare", fit, {}, partial(words.of_budget, study.budget), left_out)


def _uncalibrated(
    named: dict[str, tuple[str, presets.Setting]], known: set[str], model: str
) -> dict[str, str]:
    """label -> why, of those that need another calibration than the `known` ones."""
    of = model or "its model"
    why = {
        "coded": f"no calibration of {of} is kept on this machine",
        "kvtc": f"what it has learned of {of} is not looked for without the model",
    }
    needed = {label: learns(*setting) for label, (_, setting) in named.items()}
    return {label: why[which] for label, which in needed.items() if which not in known}
