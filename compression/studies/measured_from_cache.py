"""`--mode compare` of a saved cache with its model at hand: what each method costs its predictions
of the later tokens of the same text, on top of the saved keys and values of the first ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from compression.studies import presets
from compression.studies.base import Study
from compression.studies.compare import CompareStudy
from compression.studies.from_cache import Found, Sight
from compression.studies.in_place import ROUNDED, Off, in_place
from compression.studies.run import Outcome, carry_out_on
from compression.studies.saved_names import SavedText
from compression.studies.tasks import OfText
from compression.studies.work import Here, Identity, Phase, Worker, untimed
from config import UsageError
from data import chosen_texts
from data.cache import KVCache
from data.loaded_model import LoadedModel
from data.saved_cache import SavedCache
from data.texts import Sample

LEAST_SCORED = 8  # where a cache is too short for as many as config.py says
MOST_SCORED = 4  # one in so many of its tokens, where nothing else was asked for


class OnSaved(Here):
    """In this process, where saved keys and values take the place of the model's own. off: how far
    they are off, once the text is read."""

    off: Off

    def __init__(self, loaded: LoadedModel, saved: KVCache, phase: Phase = untimed) -> None:
        super().__init__(loaded, phase, self._in_place)
        self._saved = saved

    def _in_place(self, own: KVCache) -> KVCache:
        put, self.off = in_place(own, self._saved)
        return put

    @cached_property
    def identity(self) -> str:
        """Of the model and of what was saved: rows that are kept follow from both."""
        digest = hashlib.sha256(self.one(Identity()).encode())
        for layer in self._saved.layers:
            for x in (layer.positions, layer.keys, layer.values):
                digest.update(repr((layer.index, str(x.dtype), tuple(x.shape))).encode())
                digest.update(x.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Reading(OfText[None]):
    """The context is read, and what was saved held against it, before anything else is done."""

    def run(self, worker: Worker) -> None:
        self.judge(worker)


@dataclass(frozen=True)
class OnSavedCache:
    """What was asked of a saved cache. study: of as many tokens as there are. given: the text that
    it is of, where a person gave that."""

    study: CompareStudy
    saved: SavedCache
    file: str
    given: Sample | None

    @classmethod
    def of(
        cls,
        study: Sight | Study,
        saved: SavedCache,
        file: str,
        candidates: Sequence[Sample] | None,
    ) -> "OnSavedCache":
        """Raises UsageError for what cannot be measured, before any model is loaded."""
        if not isinstance(study, CompareStudy):
            raise ValueError(f"{type(study).__name__} compares nothing")
        if study.tasks:
            raise UsageError(
                "`tasks` are set to the model anew, and no saved cache is of them",
                "leave `load_cache` or `tasks` out",
            )
        given = None if candidates is None else chosen_texts.only_first(candidates)
        if given is None and not _are_known(saved):
            raise UsageError(
                "The token ids of the saved cache are not known, and its model can only be asked "
                "with its text",
                "give that as `prompt` or `text_file`, or `token_ids` in `cache_layout`",
            )
        return cls(of_length(study, saved.cache.n_tokens), saved, file, given)

    def run(self, loaded: LoadedModel, phase: Phase = untimed) -> Found:
        study = replace(self.study, needles=False)
        with phase("text"):
            ids = self._ids(loaded)[: study.context + 1 + study.n_scored]
            asked = f"A context of {study.context} tokens and what follows it"
            longest = study.context + 1 + max(study.n_scored, study.n_shown)
            loaded.refuse_beyond(longest, asked, "`context_tokens`")
            text = SavedText(self.file, self._known, study.context)
            sample = self.given or _sample(text, loaded.tokenizer.decode(ids.tolist()))
        work = OnSaved(loaded, self.saved.cache, phase)
        work.one(Reading(study, ids))
        outcome = carry_out_on([(sample, ids)], study, work)
        return self._found(outcome, text, work.off)

    def _ids(self, loaded: LoadedModel) -> torch.Tensor:
        """(tokens,) of the cache."""
        known, n = self.saved.cache.token_ids, self.saved.cache.n_tokens
        if self.given is None:
            loaded.refuse_unknown(known)
            return known
        ids = loaded.ids_of(self.given.text, n)
        if len(ids) < n:
            raise UsageError(
                f"The text {self.given.name} has {len(ids)} tokens, and the saved cache holds {n}",
                "give the text that it is of",
            )
        if _are_known(self.saved) and not torch.equal(ids, known):
            first = int((ids != known).nonzero()[0])
            raise UsageError(
                f"The text {self.given.name} is not that of the saved cache, from token {first} on",
                "give that, or none: the cache says which tokens it is of",
            )
        return ids

    @property
    def _known(self) -> dict[str, str]:
        """What is known of the text."""
        if self.saved.text or self.given is None:
            return self.saved.text
        given = self.given
        named = {"source": given.source, "index": str(given.index), "title": given.title}
        return named | {"sha256": given.sha256}

    def _found(self, outcome: Outcome, text: SavedText, off: Off) -> Found:
        report = outcome.report
        lines = [*report.lines, *self._said(off, outcome.model.name)]
        outcome = replace(outcome, report=replace(report, lines=lines))
        model = outcome.model
        title = f"{self.study.title} on {model.name}, {text.name}, {text.tokens_read:,} tokens"
        facts = outcome.facts | {"saved_cache": off.facts}
        said = {title: lines}
        return Found(model, text, report.tables, said, facts, report.refused, report.continued)

    def _said(self, off: Off, model: str) -> list[str]:
        """What was measured on what."""
        n, study = self.saved.cache.n_tokens, self.study
        lines = [
            f"What is called untouched is the saved cache: of its {n:,} tokens the first "
            f"{study.context:,} are compressed, and after the next one {study.n_scored:,} are "
            f"scored. It is off from what {model} makes of this text here by a relative error of "
            f"{off.words}."
        ]
        if off.worst > ROUNDED:
            lines.append(
                f"That is more than storing it in 8 or 16 bits explains ({ROUNDED:g} in any "
                "layer): some of its tokens may be others than those of the text, or weights or "
                "positions may differ, or it was stored in fewer bits."
            )
        if off.n_own:
            lines.append(
                f"The cache does not hold {off.n_own / off.n_entries:.1%} of the entries, as where "
                "a sliding window has forgotten them since; the model's own stand in for those."
            )
        if study.seeks:
            lines.append("No needles were sought: they cannot be hidden in a saved cache.")
        return lines


def of_length(study: CompareStudy, n_tokens: int) -> CompareStudy:
    """The study of one text of so many tokens: where nothing else was asked for, at most a quarter
    of them is scored, but not fewer than 8, and all before those is compressed. Raises UsageError
    where that does not go."""
    room, least = n_tokens - 1, presets.smallest_context()  # one token is fed and not scored
    scored = study.n_scored
    if study.score_tokens is None:
        after = room - (study.context_tokens or max(least, room - n_tokens // MOST_SCORED))
        scored = min(scored, max(after, LEAST_SCORED))
    context = study.context_tokens or room - scored
    if context < least or context + scored > room:
        raise UsageError(
            f"The saved cache holds {n_tokens} tokens, and a context of {max(context, least)}, one "
            f"more and {scored} scored ones take {max(context, least) + 1 + scored}",
            "lower `context_tokens` or `score_tokens`, or give the cache of a longer text",
        )
    return replace(study, context_tokens=context, score_tokens=scored, num_samples=1)


def _are_known(saved: SavedCache) -> bool:
    return bool((saved.cache.token_ids >= 0).all())


def _sample(text: SavedText, words: str) -> Sample:
    """The text as far as it is known; of its words those that are read."""
    index = text.known.get("index", "")
    place = int(index) if index.isdecimal() else 0
    return Sample(place, text.title, text.source, words)
