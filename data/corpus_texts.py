"""Texts of many kinds that were written for this toolkit, in data/corpus: articles, essays,
stories, news, records, source code and eight languages. Nobody's own, and nothing to download."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
CORPUS_SOURCE = "texts of many kinds in data/corpus"
# Kinds that read alike are apart: whoever takes stretches at even distances meets all of them.
ORDER = ("encyclopedia", "essays", "code", "fiction", "languages", "lexicon", "news", "records")


@cache
def corpus_text() -> str:
    """All of them, one after the other."""
    texts = ((FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip() for name in ORDER)
    return "\n\n".join(texts)
