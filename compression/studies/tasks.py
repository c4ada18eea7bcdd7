"""What a study's run consists of: tasks that stand alone, each on one text."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compression.base import Compressor
from compression.coded.kept_calibrations import calibration_of
from compression.evaluate import Judge, Scored
from compression.kvtc_calibration import kvtc_calibration_of
from compression.stored import refuse_left
from compression.studies.base import Learned, Plan, Study, Tables
from compression.studies.kept_tables import Keepable, Kept
from compression.studies.needle import Needle, needles
from compression.studies.work import T, Task, Worker
from config import UsageError
from data import extraction, scored_texts
from data.clock import now
from data.inventory import Inventory
from data.loaded_model import LoadedModel
from data.resume import side_by_side
from data.scored_texts import Text
from data.texts import Sample

CALIBRATIONS = {"coded": calibration_of, "kvtc": kvtc_calibration_of}  # by `registry.learns`


@dataclass(frozen=True, eq=False)
class Choice(Task[tuple[list[Text], list[Text]]]):
    """The texts that are scored, and those that are learned from."""

    study: Study
    candidates: Sequence[Sample]
    continuation: str | None

    def run(self, worker: Worker) -> tuple[list[Text], list[Text]]:
        study, loaded = self.study, worker.loaded
        with worker.phase("text"):
            texts = scored_texts.long_enough(
                loaded,
                self.candidates,
                study.context,
                study.n_scored,
                study.n_texts,
                self.continuation,
                study.n_shown,
            )
            samples = [sample for sample, _ in texts]
            return texts, scored_texts.others(loaded, samples, study.context, study.n_learned)


@dataclass(frozen=True, eq=False)
class OfText(Task[T]):
    """ids: (tokens,) of a text: its context, the token after it, and those that are scored."""

    study: Study
    ids: torch.Tensor

    @property
    def n_tokens(self) -> int:
        return self.study.context + self.study.n_scored

    @property
    def context(self) -> int:
        return self.study.context

    @property
    def place(self) -> object:
        return tuple(self.ids.tolist())

    def judge(self, worker: Worker) -> Judge:
        return worker.judge(self.ids, self.context, self.study.probes)


@dataclass(frozen=True, eq=False)
class Look(OfText[tuple[Plan, Inventory]]):
    """What the study decides on the first text, and what the model keeps of that."""

    others: list[Text]

    def run(self, worker: Worker) -> tuple[Plan, Inventory]:
        with worker.phase("calibration"):
            learned = _learned(self.study, worker.loaded, self.others)
        judge = self.judge(worker)
        with worker.phase("scoring"):
            return self.study.look(judge, learned), judge.inventory


@dataclass(frozen=True, eq=False)
class Prefilled(OfText[float], Keepable[float]):
    """The seconds that reading the context takes by itself, once it has been read before. Kept, as
    those are that methods take."""

    @property
    def asked(self) -> list[str | int]:
        return ["prefilled"]

    def to_kept(self, result: float) -> Kept:
        return Kept({}, words=result)

    def from_kept(self, kept: Kept) -> float:
        if not isinstance(kept.words, float):
            raise ValueError("it holds no seconds")
        return kept.words

    def run(self, worker: Worker) -> float:
        loaded, ids = worker.loaded, self.ids[: self.context]
        with worker.phase("prefill"):
            began = now(loaded.device)
            extraction.prefill(loaded, ids)
            return now(loaded.device) - began


@dataclass(frozen=True, eq=False)
class See(OfText[Tables], Keepable[Tables]):
    """What the study sees in another text than the first."""

    @property
    def asked(self) -> list[str | int]:
        alone = replace(self.study, num_samples=None)  # the same, however many texts there are
        return ["see", type(alone).__name__, repr(alone)]

    def run(self, worker: Worker) -> Tables:
        judge = self.judge(worker)
        with worker.phase("scoring"):
            return self.study.see(judge)

    def to_kept(self, result: Tables) -> Kept:
        return Kept(result)

    def from_kept(self, kept: Kept) -> Tables:
        refuse_left(kept.tensors)
        return kept.tables


def _learned(study: Study, loaded: LoadedModel, others: list[Text]) -> Learned:
    caches = (
        (sample.name, extraction.prefill(loaded, ids).cache.in_16_bits()) for sample, ids in others
    )
    calibrations, uncalibrated = {}, {}
    for which in sorted(study.learns):
        try:
            calibrations[which] = CALIBRATIONS[which](loaded)
        except UsageError as refusal:  # of methods that need it alone, which the study leaves out
            uncalibrated[which] = refusal
    return Learned(calibrations, tuple(caches), uncalibrated)


@dataclass(frozen=True, eq=False)
class OfMethod(OfText[Scored]):
    """What comes of one method on one text."""

    method: Compressor

    @property
    @abstractmethod
    def what(self) -> str:
        """Tells apart rows that measure something else on the same text."""


@dataclass(frozen=True, eq=False)
class Score(OfMethod):
    """What a method stores and costs."""

    @property
    def what(self) -> str:
        return "scores"

    def run(self, worker: Worker) -> Scored:
        judge = self.judge(worker)
        with worker.phase("scoring"):
            return judge.scored(self.method)


@dataclass(frozen=True, eq=False)
class Recall(OfMethod):
    """method, settings, depth, right, probability: whether a fact hidden in the text is still found
    through a method."""

    depth: float
    n_answer: int

    @property
    def what(self) -> str:
        return "needle"

    def run(self, worker: Worker) -> Scored:
        judge = self.judge(worker)
        with worker.phase("scoring"):
            restored = self.method.compress(judge.cache).restore()
            right, probability = judge.recall(restored, self.n_answer)
        named = {"method": self.method.name, "settings": self.method.words(), "depth": self.depth}
        return Scored(named | {"right": right, "probability": probability})


@dataclass(frozen=True, eq=False)
class Hidden(OfText[list[Needle]]):
    """The facts that are hidden in the text."""

    def run(self, worker: Worker) -> list[Needle]:
        return needles(worker.loaded, self.ids, self.study.context)


@dataclass(frozen=True, eq=False)
class SideBySide(OfText[dict[str, str]]):
    """What follows the text greedily, from the untouched cache and through a method."""

    label: str
    method: Compressor

    def run(self, worker: Worker) -> dict[str, str]:
        judge, n = self.judge(worker), self.study.n_shown
        with worker.phase("scoring"):
            restored = self.method.compress(judge.cache).restore()
            full, other = (judge.continuation.greedy(each, n) for each in (judge.cache, restored))
        return dict(side_by_side(worker.loaded, full, other, self.label))
