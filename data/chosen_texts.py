"""The texts that a run may use: its prompt, those of its own files, or samples of a corpus."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import config
from config import UsageError
from data import corpora, text_files
from data.text_files import Document, refuse_surrogates
from data.texts import Sample, first_line, printable

log = logging.getLogger(__name__)


class OwnTexts(Sequence[Sample]):
    """Texts of a person's own files, each read when it comes to it."""

    def __init__(self, documents: Iterable[Document], source: str) -> None:
        self._documents = documents
        self._source = source

    def __iter__(self) -> Iterator[Sample]:
        for index, (title, text) in enumerate(self._documents):
            yield Sample(index, printable(title), self._source, text)

    def __len__(self) -> int:
        return sum(1 for _ in self._documents)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(place, slice):
            return tuple(self)[place]
        found = next(islice(self, place, None), None)
        if found is None:
            raise IndexError(place)
        return found


def candidates(
    prompt: str | None = None,
    text_file: str | None = None,
    use_wikitext: bool | None = None,
    wikitext_index: int | None = None,
) -> Sequence[Sample]:
    """The texts that a run may use, in order: its prompt, those of its own files, or the samples of
    the corpus from an index on; what is not given is as config.py says."""
    if prompt is not None and text_file is not None:
        raise UsageError("`prompt` and `text_file` were both given", "keep the one to be read")
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("`prompt` holds no text")
        refuse_surrogates(prompt, "`prompt`")
        return (Sample(0, first_line(prompt), "prompt", prompt),)
    if text_file is not None:
        return _own_texts(text_file)
    return _corpus_from(
        corpora.samples(config.USE_WIKITEXT if use_wikitext is None else use_wikitext),
        config.WIKITEXT_INDEX if wikitext_index is None else wikitext_index,
    )


def _own_texts(text_file: str) -> Sequence[Sample]:
    """One file is one text, under the name of the file; those of a folder or a .jsonl file are
    under its name."""
    documents = text_files.documents(text_file)
    if isinstance(documents, tuple):
        return [Sample(0, printable(title), "file", text) for title, text in documents]
    return OwnTexts(documents, printable(Path(text_file).resolve().name))


def refuse_several_of_one(candidates: Sequence[Sample], num_samples: int | None) -> None:
    """Raise UsageError where several texts were asked for and one was given."""
    if num_samples is not None and num_samples > 1 and not are_several(candidates):
        raise UsageError(
            f"`num_samples` is {num_samples}, and there is one text, {candidates[0].name}",
            "give a folder of texts, a .jsonl file with one in each line, or leave it out",
        )


def are_several(samples: Iterable[Sample]) -> bool:
    return len(tuple(islice(samples, 2))) == 2


def only_first(candidates: Sequence[Sample]) -> Sample:
    """The first of these texts, for a run that reads one; of a person's own it says so."""
    sample = candidates[0]
    if isinstance(candidates, OwnTexts) and are_several(candidates):
        log.warning("`text_file` holds more than one text: reading the first, %s.", sample.name)
    return sample


def _corpus_from(corpus: tuple[Sample, ...], index: int) -> tuple[Sample, ...]:
    if not corpus:
        raise UsageError(
            "No sample of the corpus is as long as MIN_SAMPLE_CHARACTERS in config.py, "
            f"{config.MIN_SAMPLE_CHARACTERS}",
            "lower it",
        )
    if not 0 <= index < len(corpus):
        raise UsageError(
            f"`wikitext_index` is {index}",
            f"{corpus[0].source} has samples 0 to {len(corpus) - 1}; `--mode list_samples` shows "
            "them",
        )
    return corpus[index:]
