"""What samples there are to choose from, in lines; knows neither torch nor weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import UsageError
from data import corpora, sources, texts


@dataclass(frozen=True)
class Listing:
    """count: text -> number of tokens, None where the tokenizer is not on this machine."""

    model: str
    corpus: Sequence[texts.Sample]
    count: Callable[[str], int] | None

    @property
    def source(self) -> str:
        return self.corpus[0].source if self.corpus else ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """index, characters, tokens, title, first_words of each sample."""
        for sample in self.corpus:
            yield {
                "index": sample.index,
                "characters": len(sample.text),
                "tokens": None if self.count is None else self.count(sample.text),
                "title": texts.first_line(sample.title, 60),
                "first_words": texts.first_line(sample.text.split("\n", 1)[-1], 60),
            }

    @property
    def head(self) -> str:
        said = f"{self.source}: {len(self.corpus)} samples" if self.corpus else "no samples"
        return f"{said}\n{'index':>5}  {'characters':>10}  {'tokens':>6}  title and first words"

    @staticmethod
    def line(row: dict[str, Any]) -> str:
        tokens = "" if row["tokens"] is None else row["tokens"]
        sizes = f"{row['index']:>5}  {row['characters']:>10}  {tokens:>6}"
        return f"{sizes}  {row['title']} | {row['first_words']}"

    @property
    def notes(self) -> list[str]:
        if self.count is not None:
            return []
        return [f"(no token counts: the tokenizer of {self.model} is not on this machine yet)"]


def listing(model: str, use_wikitext: bool) -> Listing:
    """The samples of the corpus, with their lengths in tokens where that can be known."""
    return Listing(
        model, corpora.samples(use_wikitext), _token_counter(sources.tokenizer_file(model))
    )


def _token_counter(tokenizer_file: Path | None) -> Callable[[str], int] | None:
    """text -> number of tokens, None without a tokenizer file."""
    if tokenizer_file is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # of no narrower type
        raise UsageError(f"{tokenizer_file} is no tokenizer ({error})", "mend the model") from None
    return lambda text: len(tokenizer.encode(text).ids)
