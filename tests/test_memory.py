"""Running out of memory: told apart from other errors, with what would fit."""

import re

import pytest
import torch

from compression.studies.analyze import Analysis
from compression.studies.run import run
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data import memory
from data.loaded_model import LoadedModel
from data.texts import Sample
from tests import families

CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate {} bytes. Error code 12"


def of(model: torch.nn.Module, chunk: int | None = None, offload: str = "none") -> LoadedModel:
    model.device, model.dtype = model.weight.device, model.weight.dtype
    return LoadedModel(model, families.tokenizer(), "linear", "", chunk, offload)


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (RuntimeError(CPU.format(8)), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_lack_of_memory_is_told_apart(error, lacks):
    assert memory.is_lack(error) == lacks


def test_bytes_asked_for_are_read_from_the_words_of_torch():
    assert memory._asked_nbytes(CPU.format(4096)) == 4096
    assert memory._asked_nbytes("Tried to allocate 1.50 GiB. GPU 0 has") == 3 * 2**29
    assert memory._asked_nbytes("Unable to allocate") == 0


@pytest.mark.parametrize(("free", "fits"), [(7_000, 500), (1_500, 200), (0, 80)])
def test_as_many_tokens_are_advised_as_fit_by_the_numbers(monkeypatch, free, fits):
    """1000 tokens hold 1000 bytes beside the weights and want 9000 more."""
    model = of(torch.nn.Linear(10, 10, bias=False))  # 400 bytes
    monkeypatch.setattr(memory, "_used_and_free", lambda device: (1_400, free))
    with pytest.raises(UsageError) as refusal, memory.told(model, 1000):
        raise RuntimeError(CPU.format(9_000))
    said = str(refusal.value)
    assert f"about {fits} would fit: lower `context_tokens` to that, or `dtype` bfl" in said
    assert "Memory ran out at 1000 tokens in float32" in said


def test_half_precision_is_not_advised_to_who_has_it():
    with pytest.raises(UsageError) as refusal, memory.told(of(torch.nn.Linear(2, 2).bfloat16()), 9):
        raise MemoryError
    assert "in bfloat16" in str(refusal.value) and "`dtype`" not in str(refusal.value)


@pytest.mark.parametrize(
    ("n", "chunk", "offload", "says"),
    [
        (8192, None, "none", "or `prefill_chunk` 2048, for masks"),
        (8192, 2048, "none", "or `prefill_chunk` 512, for masks"),
        (300, 2048, "none", "or `prefill_chunk` 256, for masks"),
        (8192, 256, "none", "`cache_offload` disk, for the cache, or `device_map` auto"),
        (8192, 256, "disk", "`device_map` auto, for the weights"),
    ],
)
def test_what_is_not_done_yet_and_takes_less_is_named(n, chunk, offload, says):
    with (
        pytest.raises(UsageError) as refusal,
        memory.told(of(torch.nn.Linear(2, 2), chunk, offload), n),
    ):
        raise MemoryError
    said = str(refusal.value)
    assert says in said
    assert ("`prefill_chunk`" in said) == (chunk != 256)
    assert ("`cache_offload`" in said) == (offload != "disk")


def test_other_errors_pass():
    with pytest.raises(KeyError), memory.told(of(torch.nn.Linear(2, 2)), 9):
        raise KeyError("x")


@pytest.mark.parametrize("study", ["tucker", "analyze"])
def test_a_model_that_runs_out_of_memory_is_told_in_tokens(monkeypatch, study):
    loaded = families.loaded("llama_gqa")

    def full(*_, **__):
        raise RuntimeError(CPU.format(10**12))

    monkeypatch.setattr(loaded.model, "forward", full)
    sample = (Sample(0, "a", "prompt", "Some words and more of them. " * 9),)
    with pytest.raises(UsageError, match=r"Memory ran out at (60|65) tokens in float32") as refusal:
        if study == "analyze":
            Analysis(context_tokens=60).run(loaded, sample)
        else:
            run(TuckerStudy(context_tokens=60, score_tokens=5), loaded, sample)
    assert int(re.search(r"about (\d+) would fit", str(refusal.value))[1]) <= 32
