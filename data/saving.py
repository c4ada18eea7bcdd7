"""`save_cache`: the cache of a text that a model has just read, kept in a file."""

from pathlib import Path

from data import extraction, memory, plain_files
from data.cache import KVCache
from data.loaded_model import LoadedModel
from data.own_files import SAVED_CACHE
from data.texts import Sample, visible


def words_of(loaded: LoadedModel, cache: KVCache) -> list[str]:
    """Its tokens as visible text."""
    ids = cache.token_ids.tolist()
    words = {i: visible(loaded.tokenizer.decode([i])) for i in set(ids)}
    return [words[i] for i in ids]


def save_text(
    loaded: LoadedModel, sample: Sample, save_cache: str, context_tokens: int | None = None
) -> str:
    """Prefill the first `context_tokens` of a text, or all, and save the cache, with the attention
    that its tokens receive; what was done, in a line."""
    ids = extraction.tokenise(loaded, sample, context_tokens)
    with memory.told(loaded, len(ids)):
        start = extraction.prefill(loaded, ids, probe=True)
    return save(loaded, start.cache, sample, save_cache)


def save(loaded: LoadedModel, cache: KVCache, sample: Sample, save_cache: str) -> str:
    """Write a cache to the file `save_cache`; what was done, in a line. Raises UsageError where
    that cannot be, with any earlier file there as it was."""
    file = SAVED_CACHE.to_write(save_cache)
    model = loaded.facts | {"identity": loaded.identity}
    text = {"source": sample.source, "index": str(sample.index), "title": sample.title}
    text |= {"sha256": sample.sha256}
    try:
        plain_files.save(file, cache, words_of(loaded, cache), model, text)
    except OSError as error:
        raise SAVED_CACHE.not_written(file, error.strerror or error) from None
    return _said(cache, sample, file)


def _said(cache: KVCache, sample: Sample, file: Path) -> str:
    watched = any(layer.attention is not None for layer in cache.layers)
    beside = ", with the attention that its tokens receive" if watched else ""
    return (
        f"{cache.n_tokens} tokens of {sample.name}: {cache.nbytes:,} bytes of keys and values in "
        f"16 bits{beside}, in {file}."
    )
