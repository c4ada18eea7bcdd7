"""A prompt whose compressed cache is kept in a file; turns.py goes on from it."""

from collections.abc import Sequence

from compression import files, prompt_file
from compression.base import Compressor
from compression.coded.kept_calibrations import calibration_of
from compression.registry import learns, make, needs_calibration
from compression.stored import Tensors, nbytes
from compression.studies import presets
from config import UsageError
from data import extraction, memory, own_files, saving
from data.cache import KVCache, Past
from data.loaded_model import LoadedModel
from data.own_cache import OwnCache, states_of
from data.resume import as_past
from data.texts import Sample

USUAL = "coded 3.5e-05"


def chosen(methods: Sequence[str] | None) -> presets.Setting:
    """The setting that a prompt is stored in: the one that is named, a label or a family of
    presets.py; `USUAL` without. Raises UsageError for one that cannot be gone on from."""
    wanted, *more = methods or (USUAL,)
    if more:
        raise UsageError(
            f"`methods`: {', '.join(methods or ())} were given, and a prompt is stored in one way",
            "keep one of them",
        )
    name, settings = presets.one(wanted, USUAL)
    if learns(name) == "kvtc":
        raise UsageError(
            f"`methods`: {wanted} is there to be compared with, and stores no prompts",
            "take another such as coded or kivi-4",
        )
    if presets.evicts(name):
        raise UsageError(
            f"`methods`: {wanted} evicts tokens, which a model that goes on cannot be told of",
            "take a method that keeps them all, such as coded or kivi-4",
        )
    return name, settings


def refuse(
    save_compressed: str | None,
    load_compressed: str | None,
    methods: Sequence[str] | None,
    text_file: str | None = None,
    model: str | None = None,
    save_cache: str | None = None,
) -> None:
    """Raise UsageError for what cannot work, before any work is done."""
    files_of = {
        "save_compressed": save_compressed,
        "load_compressed": load_compressed,
        "save_cache": save_cache,
    }
    given = {name for name, file in files_of.items() if file is not None}
    if len(given) != 1 and given != {"save_compressed", "load_compressed"}:
        raise UsageError(
            "A prompt is stored, compressed or plain, or gone on from: give one of "
            "`save_compressed` FILE, `save_cache` FILE and `load_compressed` FILE, or the first "
            "and the last to store what is added as well"
        )
    chosen(methods)
    own_files.refuse(save_cache, text_file, model)
    if save_compressed is not None:
        prompt_file.to_write(save_compressed, text_file, model)
    if load_compressed is not None:
        prompt_file.to_read(load_compressed)


def save(
    loaded: LoadedModel,
    sample: Sample,
    save_compressed: str | None = None,
    methods: Sequence[str] | None = None,
    context_tokens: int | None = None,
    save_cache: str | None = None,
) -> list[str]:
    """Prefill the first `context_tokens` of a text, or all, and keep the cache in a file, that
    of `save_compressed` or plainly that of `save_cache`; what was done, in lines."""
    if save_compressed is not None:
        return _compressed(loaded, sample, save_compressed, methods, context_tokens)
    if save_cache is None:
        raise ValueError("a prompt is kept in one of two files")
    return [saving.save_text(loaded, sample, save_cache, context_tokens)]


def _compressed(
    loaded: LoadedModel,
    sample: Sample,
    save_compressed: str,
    methods: Sequence[str] | None,
    context_tokens: int | None,
) -> list[str]:
    """The last token is not cached but kept beside: it is what generation goes on with."""
    prompt_file.to_write(save_compressed)
    ids = extraction.tokenise(loaded, sample, context_tokens)
    if len(ids) < 2:
        raise UsageError("A prompt of one token leaves nothing to store", "give a longer one")
    name, settings = chosen(methods)
    calibration = calibration_of(loaded, True) if needs_calibration(name, settings) else None
    method = make(name, settings, calibration)
    with memory.told(loaded, len(ids)):
        start = extraction.prefill(loaded, ids[:-1], probe=True, recent_only=True)
        cache, states = start.cache, states_of(start.past)
        compressed = method.compress(cache)
    restored = compressed.restore()
    advice = "give another of `methods`"
    extraction.refuse_non_finite(restored, "16 bits, as it is stored", advice)
    own = OwnCache.of(loaded, cache.n_tokens, int(ids[-1]))
    _refuse_other_states(loaded, own, start.past, states)
    as_past(loaded, restored, states, own)  # refuses what could not be gone on from
    file = prompt_file.to_write(save_compressed)  # again: it was free before the work
    facts = {"model": loaded.identity, "model_name": loaded.name, "text": sample.name}
    facts |= {"cached": str(cache.n_tokens), "last": str(int(ids[-1]))}
    try:
        files.save(compressed, file, states, **facts)
    except OSError as error:
        raise prompt_file.not_written(file, error) from None
    said = (
        f"{len(ids)} tokens of {sample.name}: {compressed.stored_nbytes:,} bytes as {method.name}, "
        f"{compressed.ratio:.2f} x smaller than {cache.nbytes:,} in 16 bits{_with(states)}, in "
        f"{file}."
    )
    return [said, *_idle(method, cache)]


def _with(states: Tensors) -> str:
    if not states:
        return ""
    return f" of keys and values, with {nbytes(states):,} bytes of states beside them as they are"


def _refuse_other_states(loaded: LoadedModel, own: OwnCache, past: Past, states: Tensors) -> None:
    """Raise UsageError for a cache object that could not be made again of its states."""
    if not own.fits(past):
        raise UsageError(
            f"{loaded.name} keeps something beside keys and values of which it is not known how it "
            "grows with the text",
            "it can be analysed and compressed, not stored",
        )
    if not all(state.isfinite().all() for state in states.values()):
        raise UsageError(
            f"The states of {loaded.name} hold NaN or Inf in {loaded.dtype}",
            "try `dtype` float32, or check the model's weights",
        )


def _idle(method: Compressor, cache: KVCache) -> list[str]:
    """That a method compressed nothing, where all tokens are within the ends that stay plain."""
    plain = sum(getattr(method, name, 0) for name in ("sink_tokens", "recent_tokens"))
    if not plain or any(layer.n_tokens > plain for layer in cache.layers):
        return []
    return [
        f"All of it is within the {plain} tokens that {method.name} leaves plain, so nothing was "
        "compressed: give a longer text, or another of `methods`."
    ]
