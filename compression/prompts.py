"""A prompt whose compressed cache is kept in a file, and gone on from later."""

import os
from pathlib import Path

from safetensors import SafetensorError

from compression import files, presets
from compression.base import Compressor
from compression.composed import Composed
from compression.learned import learned, learned_before
from compression.methods import METHODS
from compression.pruning import Eviction
from config import RunConfig, UsageError, user_path
from data import extraction, texts
from data.cache import KVCache
from data.models import LoadedModel
from data.resume import as_past, greedy, printable
from data.scoring import refuse_beyond

USUAL = "coded 3.5e-05"


def refuse(run: RunConfig) -> None:
    """Raise UsageError for flags that cannot work, before any work is done."""
    if (run.save_compressed is None) == (run.load_compressed is None):
        raise UsageError("--mode store takes either --save_compressed FILE or --load_compressed.")
    name, _ = _setting(run)
    if issubclass(METHODS[name], Eviction | Composed):
        raise UsageError(
            f"--methods: {run.methods[0]} evicts tokens, which a model that goes on cannot be told "
            "of: take a method that keeps them all, such as coded or kivi-4."
        )
    if run.save_compressed is not None:
        _refuse_unwritable(_target(run))


def _setting(run: RunConfig) -> presets.Setting:
    """The setting that --methods names, a family (its first) or a label; `USUAL` without."""
    wanted, *more = run.methods or (USUAL,)
    if more:
        raise UsageError(
            f"--methods: {', '.join(run.methods)} were given, and a prompt is stored in one way: "
            "keep one of them."
        )
    for family, settings in presets.FAMILIES.items():
        if wanted in settings:
            return settings[wanted]
        if wanted == family:
            return next(iter(settings.values()))
    raise UsageError(f"--methods: {wanted} is none of {', '.join(presets.FAMILIES)}.")


def _target(run: RunConfig) -> Path:
    return user_path(run.save_compressed, "--save_compressed")


def _part(file: Path) -> Path:
    """Where a file is written before it takes its name."""
    return file.with_name(f".{file.name}.{os.getpid()}.part")


def _refuse_unwritable(file: Path) -> None:
    if not file.name or (file.exists() and not file.is_file()):
        raise UsageError(f"--save_compressed {file} is no file: give a name such as prompt.kv.")
    try:
        _part(file).touch()
        _part(file).unlink()
    except OSError as error:
        raise _not_written(file, error.strerror) from None


def _not_written(file: Path, reason: object) -> UsageError:
    return UsageError(
        f"--save_compressed {file} cannot be written ({reason}): give a file in a folder that "
        "exists and has room."
    )


def save(run: RunConfig, loaded: LoadedModel, identity: str) -> list[str]:
    """Prefill a text, compress its cache and write it; what was done, in lines.

    The last token is not cached but kept beside: it is what generation goes on with.
    """
    sample = texts.choose(run)
    ids = extraction.tokenise(loaded, sample, run.sequence_length or run.context_tokens, 0)
    if len(ids) < 2:
        raise UsageError("A prompt of one token leaves nothing to store: give a longer one.")
    setting = _setting(run)
    needs = presets.calibrated(setting[0])
    method = presets.made(setting, learned(loaded, identity, keep=True) if needs else None)
    cache = extraction.prefill(loaded, ids[:-1], probe=True, recent_only=True).cache.in_16_bits()
    compressed = method.compress(cache)
    as_past(loaded, compressed.restore())  # refuses what could not be gone on from
    file = _target(run)
    facts = {"model": identity, "model_name": loaded.name, "text": sample.name}
    facts |= {"cached": str(cache.n_tokens), "last": str(int(ids[-1]))}
    try:
        files.save(compressed, _part(file), **facts)
        _part(file).replace(file)
    except (OSError, SafetensorError) as error:
        raise _not_written(file, error) from None
    finally:
        _part(file).unlink(missing_ok=True)
    ratio = cache.nbytes / compressed.nbytes
    said = (
        f"{len(ids)} tokens of {sample.name}: {compressed.nbytes:,} bytes as {method.name}, "
        f"{ratio:.2f} x smaller than {cache.nbytes:,} in 16 bits, in {file}."
    )
    return [said, *_idle(method, cache)]


def _idle(method: Compressor, cache: KVCache) -> list[str]:
    """That a method compressed nothing, where all tokens are within the ends that stay plain."""
    plain = sum(getattr(method, name, 0) for name in ("sink_tokens", "recent_tokens"))
    if not plain or any(layer.n_tokens > plain for layer in cache.layers):
        return []
    return [
        f"All of it is within the {plain} tokens that {method.name} leaves plain, so nothing was "
        "compressed: give a longer text, or another of --methods."
    ]


def go_on(run: RunConfig, loaded: LoadedModel, identity: str) -> str:
    """Greedy generation after a stored prompt; what the model says, in one line."""
    file = user_path(run.load_compressed, "--load_compressed")
    facts = files.read_facts(file)
    if facts.get("model") != identity:
        raise UsageError(
            f"{file} was made with {facts.get('model_name', 'another model')}, whose weights, "
            f"settings or dtype are not those of {loaded.name} here: load that model."
        )
    prompt = int(facts["cached"]) + 1
    asked = f"A stored prompt of {prompt} tokens and --new_tokens {run.new_tokens}"
    refuse_beyond(loaded, prompt + run.new_tokens, asked, "--new_tokens")
    wanted = facts.get("model_side")
    side = learned_before(loaded, identity, wanted) if wanted else None
    past = as_past(loaded, files.load(file, side).restore())
    found = greedy(loaded, past, int(facts["last"]), run.new_tokens)
    return printable(loaded.tokenizer.decode(found))
