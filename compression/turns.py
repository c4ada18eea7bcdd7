"""A stored prompt that is gone on from: something may be added to it and stored with it."""

import torch

from compression import files, prompt_file
from compression.base import Compressed
from compression.coded.kept_calibrations import earlier_calibration
from compression.serving import conversation
from compression.serving.compressed_cache import CompressedCache
from config import UsageError
from data import memory
from data.cache import Past
from data.extraction import refuse_non_finite
from data.headers import shown
from data.loaded_model import LoadedModel
from data.own_cache import OwnCache
from data.reading import step
from data.resume import as_past, likeliest_after
from data.texts import Sample, printable

DIGITS = 10  # of a token id, and more than any has
FACTS = ("model", "model_name", "text")  # of a file, that hold for the longer one too


def go_on(
    loaded: LoadedModel,
    load_compressed: str,
    new_tokens: int,
    sample: Sample | None = None,
    save_compressed: str | None = None,
) -> tuple[str, list[str]]:
    """Greedy generation after a stored prompt, and after the text of `sample` behind it: what the
    model says, and what was stored in lines. save_compressed: the file for the prompt, what was
    added and what the model said.

    Raises UsageError for a file that is damaged or of another model, for what is beyond the model's
    positions, and for a prompt that cannot be stored again.
    """
    content = files.read(prompt_file.to_read(load_compressed))
    _refuse_another(loaded, content)
    last = _last(loaded, content)
    more = [] if sample is None else loaded.ids_of(sample.text, special_tokens=False).tolist()
    fed = torch.tensor([last, *more])
    _refuse_too_long(loaded, content.n_tokens + 1, len(more), new_tokens)
    own = OwnCache.of(loaded, content.n_tokens, last)
    _refuse_misfit(loaded, content, own)
    wanted = content.calibration
    calibration = None if wanted is None else earlier_calibration(loaded, wanted)
    compressed = content.compressed(calibration)
    past: Past
    if save_compressed is None:
        past = as_past(loaded, compressed.restore(), content.states, own)
    else:
        past = conversation.opened(loaded.model.config, compressed, own.past.layers)
    with memory.told(loaded, content.n_tokens + len(fed) + new_tokens):
        said = _said(loaded, past, content.n_tokens, fed, new_tokens)
    words = printable(loaded.tokenizer.decode(said))
    if not isinstance(past, CompressedCache) or save_compressed is None:
        return words, []
    ids = torch.tensor([*content.shape.token_ids, *fed.tolist(), *said[:-1]])
    try:
        closed = conversation.closed(past, content.shape, ids)
        return words, [_stored(closed, said[-1], content, save_compressed)]
    except UsageError as error:  # what the model took long to say is not lost with it
        heard = f"the model had said {words!r}"
        raise UsageError(error.reason, "; ".join(filter(None, (error.advice, heard)))) from None


def _said(
    loaded: LoadedModel, past: Past, n_past: int, fed: torch.Tensor, new_tokens: int
) -> list[int]:
    """What the model says after (tokens,) token ids, read some at a time where it reads so."""
    read, last = fed[:-1], fed[-1:]
    for part in read.split(loaded.chunk_for(len(read)) or len(read)) if len(read) else ():
        step(loaded, part, past, n_past)
        n_past += len(part)
    return list(likeliest_after(loaded, past, n_past, last, new_tokens))


def _stored(compressed: Compressed, last: int, content: files.Content, save_compressed: str) -> str:
    """Keeps a conversation; what was kept, in a sentence."""
    file = prompt_file.to_write(save_compressed)
    refuse_non_finite(compressed.restore(), "16 bits, as it is stored", "store the text anew")
    n_tokens = len(compressed.shape.token_ids)
    facts = {name: content.facts[name] for name in FACTS if name in content.facts}
    try:
        files.save(compressed, file, {}, **facts, cached=str(n_tokens), last=str(last))
    except OSError as error:
        raise prompt_file.not_written(file, error) from None
    return (
        f"{n_tokens + 1} tokens, {n_tokens - content.n_tokens} of them new: "
        f"{compressed.stored_nbytes:,} bytes as {compressed.compressor.name}, "
        f"{compressed.ratio:.2f} x smaller than {compressed.shape.nbytes:,} in 16 bits, in {file}."
    )


def _refuse_too_long(loaded: LoadedModel, n_stored: int, n_added: int, new_tokens: int) -> None:
    added = f", {n_added} that are added" if n_added else ""
    asked = f"A stored prompt of {n_stored} tokens{added} and `new_tokens` {new_tokens}"
    loaded.refuse_beyond(n_stored + n_added + new_tokens, asked, "`new_tokens`")


def _refuse_another(loaded: LoadedModel, content: files.Content) -> None:
    if content.facts.get("model") != loaded.identity:
        made_with = shown(content.facts.get("model_name", "another model"))
        raise UsageError(
            f"{content.file} was made with {made_with}, whose weights, settings or dtype are not "
            f"those of {loaded.name} here",
            "load that model",
        )


def _last(loaded: LoadedModel, content: files.Content) -> int:
    """The token that follows what is cached, which generation goes on with."""
    cached, last = (content.facts.get(name, "") for name in ("cached", "last"))
    if cached != str(content.n_tokens) or not (last.isdecimal() and len(last) < DIGITS):
        raise files.damaged(content.file, "it does not say what follows its tokens")
    n_known = int(loaded.settings.vocab_size)
    largest = max(int(last), *content.shape.token_ids)
    if largest >= n_known:
        raise files.damaged(content.file, f"token {largest} is beyond the {n_known} of the model")
    return int(last)


def _refuse_misfit(loaded: LoadedModel, content: files.Content, own: OwnCache) -> None:
    """Raise UsageError for layers or states other than those that the model keeps of so many
    tokens."""
    held = [
        (x.index, x.kind, x.n_heads, x.n_tokens, x.key_dim, x.value_dim)
        for x in content.shape.layers
        if x.start + x.n_tokens == content.n_tokens
    ]
    if held != own.sizes:
        raise files.damaged(content.file, f"its layers are not those of {loaded.name}")
    if not own.fit(content.states):
        raise files.damaged(content.file, f"its states are not those of {loaded.name}")
