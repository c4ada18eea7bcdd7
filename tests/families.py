"""Tiny random models of every kind of cache, and a tokenizer for them; nothing to download."""

from types import MethodType

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from tests.family_settings import (  # noqa: F401 (for who reads families.SETTINGS and so on)
    CHUNKED,
    COMPRESSED,
    INDEXED,
    KEEPS_MORE,
    LINEAR_AFTER,
    SETTINGS,
    SHARED_CACHE,
    UNCALIBRATED,
    UNHIDDEN,
    UNKNOWN_ROTATION,
    VOCABULARY,
    WINDOW,
    WITH_STATES,
    WITHOUT_GRADIENTS,
    WITHOUT_PROBE,
    WRAPPERS,
)

SHARPNESS = 20  # by which an output layer is larger than a random one
shared: dict = {}  # name -> what `loaded` gives
CONTEXT, SCORED = 40, 6  # tokens of `scored`; the window has forgotten some


def model(name: str, settings: dict | None = None, **changes) -> torch.nn.Module:
    """A tiny model of a family with the same random weights each time, with other `settings`."""
    model_type, usual = (SETTINGS | KEEPS_MORE | WRAPPERS)[name]
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if name in WRAPPERS else AutoModelForCausalLM
    return auto.from_config(
        AutoConfig.for_model(model_type, **usual | (settings or {})), **changes
    ).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: ids below 256 are its alphabet, no merges, nothing added to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def save(a_model: torch.nn.Module, folder) -> None:
    a_model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def loaded(name: str):
    """A family's model as the toolkit holds it after loading: one for all tests, so that what it is
    like is found out once. It may not be changed, which conftest.py watches over; `fresh` may."""
    if name not in shared:
        shared[name] = fresh(name)
    torch.manual_seed(0)  # whether it was there or not
    return shared[name]


def fresh(name: str, **changes):
    """The same for one test alone."""
    from data.loaded_model import LoadedModel

    return LoadedModel(model(name, **changes), tokenizer(), name, "random weights, seed 0")


def is_as_it_was(a_model) -> bool:
    """Whether a shared model still is what it was made as."""
    new = model(a_model.name)
    ours, theirs = a_model.model.state_dict(), new.state_dict()
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in a_model.model.modules())
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[key], theirs[key]) for key in ours)
        and a_model.model.config.to_diff_dict() == new.config.to_diff_dict()
        and not hooked
        and a_model.model.forward == MethodType(type(a_model.model).forward, a_model.model)
        and not a_model.model.training
    )


def sharp(name: str):
    """A family's model whose predictions are: a random model's hardly move, whatever is wrong."""
    a_model = fresh(name)
    head = a_model.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(SHARPNESS * head.weight.detach())
    return a_model


def token_ids(n: int, seed: int = 0) -> torch.Tensor:
    """(n,) ids that are no special tokens of any family."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 250, (n,), generator=generator)


def scored(name: str, make=loaded):
    """A family's model, the prefill of a context, and the continuation after it."""
    from data.extraction import prefill
    from data.scoring import Continuation

    a_model, ids = make(name), token_ids(CONTEXT + SCORED + 1)
    start = prefill(a_model, ids[:CONTEXT])
    return a_model, ids, start, Continuation(a_model, start.past, ids[CONTEXT:])
