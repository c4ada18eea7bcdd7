"""The text of a run: a prompt, a file, a WikiText article, or a topic of Python's own reference.

Deterministic by index, and every sample knows where it comes from. Knows no model and no torch.
"""

import hashlib
import json
import logging
import re
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import config
from config import UsageError
from data import hub

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT_FILE = "wikitext-103-raw-v1/test-00000-of-00001.parquet"  # this split only: 0.7 MB
WIKITEXT_SOURCE = "WikiText-103 test"
TEXT_PATIENCE_S = 5.0  # seconds for the download of the split, 0.7 MB
PIPE_PATIENCE_S = 30.0  # seconds in which a pipe that is given as a file has to end
LARGEST_FILE = 2**28  # bytes; as text in memory up to four times that
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

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "source": self.source,
            "index": self.index,
            "title": self.title,
            "sha256": self.sha256,
            "characters": len(self.text),
        }


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


def read_text_file(path: str) -> str:
    """A UTF-8 text: the whole of a .txt file, or the `text` fields of a .jsonl file, joined."""
    file = config.user_path(path, "`text_file`")
    try:
        text = _content(file, path).decode("utf-8-sig")  # with or without a byte order mark
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"`text_file` {path} cannot be read", f"{reason}") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"`text_file` {path} is not UTF-8 text", "give a .txt or .jsonl file in UTF-8"
        ) from None
    if "\0" in text:
        raise UsageError(f"`text_file` {path} is binary", "give a .txt or .jsonl file in UTF-8")
    if file.suffix.lower() == ".jsonl":
        text = "\n\n".join(_jsonl_texts(text, path))
    if not text.strip():
        raise UsageError(f"`text_file` {path} holds no text")
    _refuse_surrogates(text, f"`text_file` {path}")
    return text


def _content(file: Path, path: str) -> bytes:
    """Its bytes; a pipe, which may never end, has a deadline."""
    mode = file.stat().st_mode
    if stat.S_ISFIFO(mode):
        content = hub.in_time(PIPE_PATIENCE_S, lambda: _beginning(file))
        if content is None:
            raise UsageError(
                f"`text_file` {path} is a pipe that did not end in {PIPE_PATIENCE_S:.0f} s",
                "give a file",
            )
    elif stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        content = _beginning(file)
    else:
        raise UsageError(f"`text_file` {path} is a device", "give a .txt or .jsonl file in UTF-8")
    if len(content) > LARGEST_FILE:
        raise UsageError(
            f"`text_file` {path} is larger than {LARGEST_FILE // 2**20} MiB", "give a part of it"
        )
    return content


def _beginning(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(LARGEST_FILE + 1)


def _refuse_surrogates(text: str, name: str) -> None:
    """Half of a character is no text: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} holds broken characters", "give valid UTF-8") from None


def _jsonl_texts(content: str, path: str) -> Iterable[str]:
    # Lines end at \n alone: JSON strings may hold other characters that str.splitlines cuts at.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # also numbers and nestings beyond all measure
            raise UsageError(f"`text_file` {path}, line {number} is not JSON") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UsageError(f"`text_file` {path}, line {number} has no text field `text`")
        yield record["text"]


def candidates(
    prompt: str | None = None,
    text_file: str | None = None,
    use_wikitext: bool | None = None,
    wikitext_index: int | None = None,
) -> tuple[Sample, ...]:
    """The texts that a run may use, in order: its prompt, its file, or the samples of the corpus
    from an index on; what is not given is as config.py says."""
    if prompt is not None and text_file is not None:
        raise UsageError("`prompt` and `text_file` were both given", "keep the one to be read")
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("`prompt` holds no text")
        _refuse_surrogates(prompt, "`prompt`")
        return (Sample(0, first_line(prompt), "prompt", prompt),)
    if text_file is not None:
        name = printable(Path(text_file).name)
        return (Sample(0, name, "file", read_text_file(text_file)),)
    return _corpus_from(
        samples(config.USE_WIKITEXT if use_wikitext is None else use_wikitext),
        config.WIKITEXT_INDEX if wikitext_index is None else wikitext_index,
    )


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
