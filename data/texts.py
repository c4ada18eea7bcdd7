"""The texts of a run: a prompt, files of its own, WikiText articles, or topics of Python's own
reference.

Deterministic by index, and every sample knows where it comes from. Knows no model and no torch.
"""

import hashlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, overload

import config
from config import UsageError
from data import hub, text_files
from data.text_files import Document, refuse_surrogates

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT_FILE = "wikitext-103-raw-v1/test-00000-of-00001.parquet"  # this split only: 0.7 MB
WIKITEXT_SOURCE = "WikiText-103 test"
TEXT_PATIENCE_S = 5.0  # seconds for the download of the split, 0.7 MB
REFERENCE_SOURCE = "Python language reference (offline)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One text; `index` is its place in its source."""

    index: int
    title: str
    source: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.source} #{self.index}: {self.title}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def read(self, n_tokens: int) -> "TextRead":
        """What is left to say of it when so many tokens of it were read."""
        place = self.source, self.index, self.title
        return TextRead(*place, self.sha256, len(self.text), n_tokens)


@dataclass(frozen=True)
class TextRead:
    """A text that a result rests on, without its words: as a manifest has it."""

    source: str
    index: int
    title: str
    sha256: str
    characters: int
    tokens_read: int

    @property
    def number(self) -> str:
        """Its place in its source."""
        return f"#{self.index}"

    @property
    def name(self) -> str:
        return f"{self.source} {self.number}: {self.title}"

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def in_all(texts: Sequence[TextRead]) -> str:
    """How many texts and tokens a result rests on."""
    n = sum(text.tokens_read for text in texts)
    tokens = "1 token" if n == 1 else f"{n:,} tokens"
    return f"1 text of {tokens}" if len(texts) == 1 else f"{len(texts)} texts, {tokens} in all"


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


def visible(text: str) -> str:
    """`text` on one line, with blanks, control and other unprintable characters escaped.

    Text from models and files is data: shown this way it can neither move a terminal's cursor
    nor break a row of a table, nor turn the direction of what stands beside it.
    """
    return printable(text).replace(" ", "␣")


def printable(text: str) -> str:
    """`text` on one line, with control and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _articles(lines: Iterable[str]) -> list[tuple[str, str]]:
    """(title, text) of each article: a title is a ` = Title = ` line with blank lines around it."""
    rows = [line.rstrip("\n") for line in lines]
    blank = [not row.strip() for row in rows]
    starts = [
        i
        for i, row in enumerate(rows)
        if re.fullmatch(r" = [^=].*[^=] = ", row)
        and (i == 0 or blank[i - 1])
        and (i + 1 == len(rows) or blank[i + 1])
    ]
    return [
        (rows[start].strip(" ="), "\n".join(rows[start:end]).strip())
        for start, end in pairwise([*starts, len(rows)])
    ]


def _long_enough(documents: Iterable[tuple[str, str]], source: str) -> tuple[Sample, ...]:
    kept = [d for d in documents if len(d[1]) >= config.MIN_SAMPLE_CHARACTERS]
    return tuple(Sample(i, printable(t), source, text) for i, (t, text) in enumerate(kept))


def _wikitext_file() -> Path | None:
    """The downloaded split: from the local hub cache, else from the hub; None out of reach."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    split: dict[str, Any] = {
        "repo_id": WIKITEXT,
        "filename": WIKITEXT_FILE,
        "repo_type": "dataset",
        "revision": WIKITEXT_REVISION,
    }
    found = try_to_load_from_cache(**split)  # asks nobody, unlike a download that is here already
    if not isinstance(found, str):
        found = hub.within(TEXT_PATIENCE_S, lambda: hf_hub_download(**split))
    return None if found is None else Path(found)


@cache
def wikitext_samples() -> tuple[Sample, ...] | None:
    """Articles of the WikiText-103 test split (Merity et al., arXiv 1609.07843), joined from
    their lines; None when it is neither in the local cache nor within reach."""
    file = _wikitext_file()
    if file is None:
        return None
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            lines = Dataset.from_parquet(str(file), keep_in_memory=True, cache_dir=scratch)["text"]
    except (OSError, ValueError) as error:  # a damaged file, or a full disk
        log.warning("WikiText in %s cannot be read (%s).", file, type(error).__name__)
        return None
    return _long_enough(_articles(lines), WIKITEXT_SOURCE)


@cache
def reference_samples() -> tuple[Sample, ...]:
    """The long topics of the language reference inside every CPython, by topic name.

    Real, coherent English with nothing to download. Texts differ a little between Python
    versions, which is why a run records its text's hash.
    """
    from pydoc_data.topics import topics

    titled = (
        (name + ": " + text.strip().split("\n", 1)[0].strip(), text.strip())
        for name, text in sorted(topics.items())
    )
    return _long_enough(titled, REFERENCE_SOURCE)


def samples(use_wikitext: bool) -> tuple[Sample, ...]:
    """The corpus of a run, after a loud fallback where WikiText is out of reach."""
    if use_wikitext:
        wikitext = wikitext_samples()
        if wikitext is not None:
            return wikitext
        log.warning(
            "WikiText is neither in the local cache nor within reach: using the offline corpus, "
            "the Python language reference."
        )
    return reference_samples()


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
        samples(config.USE_WIKITEXT if use_wikitext is None else use_wikitext),
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


def first_line(text: str, length: int = 40) -> str:
    """The beginning of `text` on one line."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= length else words[: length - 1] + "…"
