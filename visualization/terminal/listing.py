"""What samples there are to choose from, in lines; knows neither torch nor weights."""

from collections.abc import Callable, Iterator
from pathlib import Path

from config import UsageError
from data import sources, texts


def listing(model: str, use_wikitext: bool) -> Iterator[str]:
    """A line for each sample of the corpus, with its length in tokens where the model's tokenizer
    is on this machine."""
    corpus = texts.samples(use_wikitext)
    count = _token_counter(sources.tokenizer_file(model))
    yield f"{corpus[0].source}: {len(corpus)} samples" if corpus else "no samples"
    yield f"{'index':>5}  {'characters':>10}  {'tokens':>6}  title and first words"
    for sample in corpus:
        words = texts.first_line(sample.text.split("\n", 1)[-1], 60)
        title = texts.first_line(sample.title, 60)
        tokens = "" if count is None else count(sample.text)
        yield f"{sample.index:>5}  {len(sample.text):>10}  {tokens:>6}  {title} | {words}"
    if count is None:
        yield f"(no token counts: the tokenizer of {model} is not on this machine yet)"


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
