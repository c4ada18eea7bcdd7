"""How precise products are, and where."""

from types import SimpleNamespace

import pytest
import torch

from compression.coded import coefficients, products
from compression.coded.coefficients import FAST_FROM

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_products_are_in_16_bits_where_the_cpu_multiplies_in_them(told, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert products.fast_dtype(CPU) == dtype


def test_a_torch_that_does_not_tell_and_a_device_that_is_not_known_multiply_in_32(monkeypatch):
    assert products.fast_dtype(torch.device("mps")) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert products.fast_dtype(CPU) == torch.float32


@pytest.mark.parametrize(
    ("step", "dtype"),
    [(0.99 * FAST_FROM, torch.float32), (FAST_FROM, torch.bfloat16), (1.0, torch.bfloat16)],
)
def test_fine_steps_are_taken_in_32_bits(step, dtype, monkeypatch):
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: torch.bfloat16)
    group = SimpleNamespace(products=lambda device, dtype: (device, dtype))
    assert coefficients._products(group, CPU, step) == (CPU, dtype)
