"""Corpora that need no files of one's own: WikiText articles, or topics of Python's own reference.

Deterministic by index, and every sample knows where it comes from. Knows no model and no torch.
"""

import logging
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import config
from data import hub
from data.texts import Sample, printable

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT_FILE = "wikitext-103-raw-v1/test-00000-of-00001.parquet"  # this split only: 0.7 MB
WIKITEXT_SOURCE = "WikiText-103 test"
TEXT_PATIENCE_S = 5.0  # seconds for the download of the split, 0.7 MB
REFERENCE_SOURCE = "Python language reference (offline)"

log = logging.getLogger(__name__)


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
