"""`coded_fixed`: what `coded` stores, without its entropy coder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from compression.coded import fixed_rate
from compression.coded.blocks import Block
from compression.coded.method import Coded
from compression.coded.transform import Transform
from compression.stored import Tensors, refuse_left, taken


@dataclass(frozen=True)
class CodedFixed(Coded):
    """The same integers in blocks of one width, bit-packed, with no entropy coder to run through:
    for an accelerator, at more bytes. Decoded by operations on tensors alone, where the levels are:
    on the device of the cache, unless what is stored has been through a file."""

    name: ClassVar[str] = "coded_fixed"

    def written_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return codes

    def read_codes(self, stored: Tensors, n_columns: int) -> torch.Tensor:
        return taken(stored, "codes", (torch.uint8,), n_columns)

    def written(
        self, integers: np.ndarray, symbol_classes: np.ndarray, transform: Transform
    ) -> Tensors:
        return fixed_rate.encode(integers)

    def read(self, stored: Tensors, blocks: Sequence[Block], transform: Transform) -> torch.Tensor:
        device = blocks[0].rows.device
        names = [name for name in stored if name == "widths" or name.startswith("bits.")]
        part = {name: stored.pop(name).to(device) for name in names}
        integers = fixed_rate.decode(part, sum(block.n_coded for block in blocks))
        refuse_left(part)
        return integers

    def costs(self, stored: Tensors, blocks: Sequence[Block], transform: Transform) -> torch.Tensor:
        widths = {"widths": stored["widths"].to(blocks[0].rows.device)}
        return fixed_rate.costs(widths, sum(block.n_coded for block in blocks))
