"""How the cache of one text looks: the part of `analyze` that is done for each of its texts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

import config
from analysis.cached_entries import USUAL, Shown, cached_entries
from analysis.embeddings import ByPosition, by_position
from analysis.generation import generation_stages
from analysis.inventory import inventory_table
from analysis.measures import Sweep, sweep, thresholds
from analysis.norms_in_time import norms_in_time
from analysis.spectrum import Spectrum
from analysis.tables import Subject, tables
from compression.evaluate import Judge, summary
from compression.stored import Tensors, refuse_left, taken, under
from compression.studies.base import INVENTORY, Learned, Tables
from compression.studies.kept_tables import Keepable, Kept
from compression.studies.prune import PruneStudy
from compression.studies.work import Model, Worker
from data import extraction, headers, saving
from data.cache import KINDS, KVCache
from data.extraction import Prefill
from data.inventory import Inventory
from data.loaded_model import LoadedModel
from data.scoring import Continuation
from data.texts import Sample, printable
from data.watchers import TokenAttention

STAGES, NORMS = "tokens/generation_stages_comparison", "cache/norms_in_time"
PLACES, SPECTRUM = "by_position", "spectrum"  # of `OneText.sums`
ATTENTION = "attention"  # the tensors of one begin so
NBYTES = "inventory/nbytes"  # beside the words of an inventory, whose numbers are small


@dataclass(frozen=True)
class OneText:
    """thresholds: kind -> the magnitude below which an entry of this text counts as sparse.
    measured: what its recommendations cost, in sentences. inventory: what the model keeps of it.
    saved: that its cache was kept in a file, if so. generated: what the model went on with. sums:
    what is added up over texts with `+`, by name, where there are to be more. attention: what its
    tokens receive of whom, where that was asked for and the model shows it."""

    tables: Tables
    thresholds: dict[str, float]
    measured: list[str]
    inventory: Inventory
    saved: list[str]
    generated: str
    sums: dict[str, Any]
    attention: TokenAttention | None = None

    def to_kept(self) -> Kept | None:
        """None of a text that was measured or saved as well, and of unknown sums."""
        if self.measured or self.saved or not self.sums.keys() <= {PLACES}:
            return None
        held = self.inventory.held
        tensors = {NBYTES: torch.tensor([each.nbytes for each in held], dtype=torch.int64)}
        if PLACES in self.sums:
            tensors |= _of_places(self.sums[PLACES])
        if self.attention is not None:
            tensors |= _of_attention(self.attention)
        slots = Inventory(tuple(replace(each, nbytes=0) for each in held), self.inventory.n_slots)
        words = {
            "inventory": asdict(slots),
            "thresholds": self.thresholds,
            "generated": self.generated,
        }
        return Kept(self.tables, tensors, words)

    @classmethod
    def of_kept(cls, kept: Kept) -> "OneText":
        """Raises ValueError for what is kept of another task."""
        match kept.words:
            case {
                "inventory": inventory,
                "thresholds": {"key": float(key), "value": float(value)},
                "generated": str(generated),
            }:
                slots: Inventory = headers.fitting(Inventory, inventory, "inventory")
            case _:
                raise ValueError("it holds no look at a text")
        tensors = dict(kept.tensors)
        nbytes = taken(tensors, NBYTES, (torch.int64,), len(slots.held)).tolist()
        pairs = zip(slots.held, nbytes, strict=True)
        held = tuple(replace(each, nbytes=n) for each, n in pairs)
        sums = {PLACES: _places(tensors)} if f"{PLACES}/positions" in tensors else {}
        attention = _attention(tensors) if f"{ATTENTION}/layers" in tensors else None
        refuse_left(tensors)
        limits = {"key": key, "value": value}
        return cls(
            kept.tables, limits, [], Inventory(held, slots.n_slots), [], generated, sums, attention
        )


def _of_places(places: ByPosition) -> Tensors:
    """Of one text, whose squared distances from its mean are 0."""
    means = {f"{PLACES}/{kind}": torch.tensor(places.means[kind]) for kind in KINDS}
    return {f"{PLACES}/positions": torch.tensor(places.positions), **means}


def _places(tensors: Tensors) -> ByPosition:
    positions = taken(tensors, f"{PLACES}/positions", (torch.int64,), None).numpy()
    means = {
        kind: taken(tensors, f"{PLACES}/{kind}", (torch.float64,), len(positions), None).numpy()
        for kind in KINDS
    }
    return ByPosition(1, positions, means, {kind: np.zeros_like(x) for kind, x in means.items()})


def _of_attention(attention: TokenAttention) -> Tensors:
    layers = torch.tensor(attention.layers, dtype=torch.int64)
    named = {"layers": layers, **attention.tensors}
    return {f"{ATTENTION}/{name}": tensor for name, tensor in named.items()}


def _attention(tensors: Tensors) -> TokenAttention:
    held = under(tensors, f"{ATTENTION}/")
    layers = taken(held, "layers", (torch.int64,), None).tolist()
    received = taken(held, "received", (torch.float16,), len(layers), None, None)
    sizes = (len(layers), received.shape[2])
    watcher = taken(held, "watcher", (torch.int32,), *sizes)
    weight = taken(held, "watcher_weight", (torch.float16,), *sizes)
    refuse_left(held)
    return TokenAttention(tuple(layers), received, watcher, weight)


@dataclass(frozen=True, eq=False)
class ReadText(Keepable[OneText]):
    """ids: (tokens,) of which the first `n_read` are read; the others are scored, if `measure`.
    n_new: tokens generated after them. kept: the text, and the file to keep its cache in. made: is
    given tables as soon as there are some. text: the hash of the text, whose words tables hold.
    told_by_token: whether the attention of its tokens is told one by one. shown: whose entries are
    shown, None for nobody's."""

    focus: str
    ids: torch.Tensor
    n_read: int | None
    n_new: int
    measure: bool = False
    of_several: bool = False
    kept: tuple[Sample, str] | None = None
    made: Callable[[Tables], None] | None = None
    text: str = ""
    told_by_token: bool = False
    shown: Shown | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def place(self) -> object:
        return tuple(self.ids.tolist())

    def run(self, worker: Worker) -> OneText:
        loaded, made = worker.loaded, self.made or (lambda tables: None)
        with worker.phase("prefill"):
            probes = self.measure or self.focus in ("all", "tokens")
            start = extraction.prefill(loaded, self.ids[: self.n_read], probe=probes)
            inventory = Inventory.of(start.past)  # now: generation goes on in the same object
            saved = [saving.save(loaded, start.cache, *self.kept)] if self.kept else []
        with worker.phase("analysis"):
            found, sums, limits = self._looked(loaded, start.cache)
            every = found | {INVENTORY: inventory_table(inventory)}
            made(every)
        measured: list[str] = []
        if self.measure:
            with worker.phase("scoring"):
                costs, measured = _measured(loaded, start, self.ids[self.n_read :])
            made(costs)
            every |= costs
        generated, cache = "", start.cache
        if self.n_new:
            stages, generated, cache = self._stages(worker, start, limits)
            made(stages)
            every |= stages
        if self.focus in ("all", "tokens", "layers"):
            with worker.phase("analysis"):
                in_time = {NORMS: norms_in_time(start.cache, cache)}
            made(in_time)
            every |= in_time
        attention = start.attention if self.told_by_token else None
        return OneText(every, limits, measured, inventory, saved, generated, sums, attention)

    @property
    def context(self) -> int:
        return len(self.ids[: self.n_read])

    @property
    def asked(self) -> list[str | int]:
        told = (self.told_by_token, repr(self.shown))
        return ["read", self.focus, self.n_new, self.of_several, self.text, *told]

    def to_kept(self, result: OneText) -> Kept | None:
        return result.to_kept()

    def from_kept(self, kept: Kept) -> OneText:
        return OneText.of_kept(kept)

    def _looked(
        self, loaded: LoadedModel, cache: KVCache
    ) -> tuple[Tables, dict[str, Any], dict[str, float]]:
        """Tables, what adds up over texts, and the thresholds of sparsity."""
        if self.focus in ("generation", "spectrum", "cache"):
            spectrum = self.focus == "spectrum"
            sums: dict[str, Any] = {SPECTRUM: Spectrum.of(cache)} if spectrum else {}
            limits = thresholds(cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
            if self.focus == "cache" and self.shown is not None:
                return cached_entries(cache, saving.words_of(loaded, cache), self.shown), {}, limits
            return {}, sums, limits
        swept = sweep(cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
        adds_up = self.of_several and self.focus in ("all", "embeddings")
        sums = {PLACES: by_position(swept)} if adds_up else {}
        found = tables(_subject(loaded, swept, self.shown), self.focus)
        return found, sums, swept.thresholds

    def _stages(
        self, worker: Worker, start: Prefill, limits: dict[str, float]
    ) -> tuple[Tables, str, KVCache]:
        """The stages of generation, what was generated, and the cache after it."""
        loaded = worker.loaded
        with worker.phase("generation"):
            cache = extraction.generate(loaded, start, self.n_new)
            generated = printable(
                loaded.tokenizer.decode(cache.token_ids[cache.n_prompt :].tolist())
            )
        with worker.phase("analysis"):
            return {STAGES: generation_stages(start.cache, cache, limits)}, generated, cache


def look(loaded: LoadedModel, cache: KVCache, focus: str = "all") -> Tables:
    """The tables of a focus, by the names of the pictures that they feed."""
    if focus == "spectrum":
        return Spectrum.of(cache).tables(config.SUBSPACE_RANK)
    swept = sweep(cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
    return tables(_subject(loaded, swept, USUAL), focus)


def _subject(loaded: LoadedModel, swept: Sweep, shown: Shown | None) -> Subject:
    return Subject(swept, saving.words_of(loaded, swept.cache), shown)


def _measured(
    loaded: LoadedModel, start: Prefill, follows: torch.Tensor
) -> tuple[Tables, list[str]]:
    """What the recommendations of `analyze` really cost, and the trial of the heuristics."""
    judge = Judge(start.cache, Continuation(loaded, start.past, follows))
    plan = PruneStudy(trial=True).look(judge, Learned())
    rows = pd.DataFrame([judge.score(method) for method in dict.fromkeys(plan.methods)])
    report = plan.report(rows, summary(rows), pd.DataFrame(), Model.of(loaded))
    return report.tables, report.lines
