"""A prompt whose compressed cache is kept in a file, and gone on from later."""

import os
from pathlib import Path

from compression import files, presets
from compression.learned import learned
from config import RunConfig, UsageError, user_path
from data import extraction, texts
from data.models import LoadedModel
from data.resume import as_past, greedy, printable

USUAL = "coded 3.5e-05"


def refuse(run: RunConfig) -> None:
    """Raise UsageError for flags that cannot work, before any work is done."""
    if (run.save_compressed is None) == (run.load_compressed is None):
        raise UsageError("--mode store takes either --save_compressed FILE or --load_compressed.")
    _setting(run)


def _setting(run: RunConfig) -> presets.Setting:
    """The setting that --methods names, a family (its first) or a label; `USUAL` without."""
    wanted = run.methods[0] if run.methods else USUAL
    for family, settings in presets.FAMILIES.items():
        if wanted in settings:
            return settings[wanted]
        if wanted == family:
            return next(iter(settings.values()))
    raise UsageError(f"--methods: {wanted} is none of {', '.join(presets.FAMILIES)}.")


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
    method = presets.made(setting, learned(loaded, identity) if needs else None)
    cache = extraction.prefill(loaded, ids[:-1], probe=True).cache.in_16_bits()
    compressed = method.compress(cache)
    as_past(loaded, compressed.restore())  # refuses what could not be gone on from
    file = user_path(run.save_compressed, "--save_compressed")
    facts = {"model": identity, "model_name": loaded.name, "last": str(int(ids[-1]))}
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        files.save(compressed, part, **facts, text=sample.name)
        part.replace(file)
    except OSError as error:
        raise UsageError(f"--save_compressed {file} cannot be written: {error}.") from None
    finally:
        part.unlink(missing_ok=True)
    ratio = cache.nbytes / compressed.nbytes
    return [
        f"{len(ids)} tokens of {sample.name}: {compressed.nbytes:,} bytes as {method.name}, "
        f"{ratio:.2f} x smaller than {cache.nbytes:,} in 16 bits, in {file}."
    ]


def go_on(run: RunConfig, loaded: LoadedModel, identity: str) -> list[str]:
    """Greedy generation after a stored prompt; what the model says, in one line."""
    file: Path = user_path(run.load_compressed, "--load_compressed")
    facts = files.read_facts(file)
    if facts.get("model") != identity:
        raise UsageError(
            f"{file} was made with {facts.get('model_name', 'another model')} in other weights or "
            f"another dtype than {loaded.name}: load that model."
        )
    side = learned(loaded, identity) if "model_side" in facts else None
    past = as_past(loaded, files.load(file, side).restore())
    found = greedy(loaded, past, int(facts["last"]), run.new_tokens)
    return [printable(loaded.tokenizer.decode(found))]
