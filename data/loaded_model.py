"""A model that is there to be run, with its tokenizer: what it is called, reads and refuses."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from config import UsageError
from data import identities, placement
from data.refusals import said, strangers_code
from data.token_ids import Reader, Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, what outputs call it, and how it reads a text:
    `prefill_chunk` tokens at a time, or all at once where that is None; its cache kept where the
    model runs ("none"), or moved to "memory" or "disk" as it is made."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    name: str
    revision: str
    prefill_chunk: int | None = None
    cache_offload: str = "none"

    @property
    def device(self) -> torch.device:
        """Where it takes its tokens."""
        return placement.of_input(self.model) or cast(torch.device, self.model.device)

    @property
    def place(self) -> str:
        """Where its parts are, in words."""
        return placement.words(self.model) or str(self.device)

    def chunk_for(self, n_tokens: int) -> int | None:
        """How many tokens of such a text it reads at a time; None for all at once."""
        chunk = self.prefill_chunk
        return None if chunk is None or chunk >= n_tokens else chunk

    def reading(self, n_tokens: int) -> list[str | int | None]:
        """What the numbers of a run on such a text follow from beside the identity: the times it
        takes, and how sums are rounded."""
        where = placement.words(self.model) or self.device.type
        return [where, self.chunk_for(n_tokens), self.cache_offload]

    @property
    def torch_dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.model.dtype)

    @property
    def dtype(self) -> str:
        return str(self.torch_dtype).removeprefix("torch.")

    @property
    def settings(self) -> "PretrainedConfig":
        """The model's own settings, those of its language part where it has others."""
        return cast("PretrainedConfig", self.model.config).get_text_config()

    @property
    def max_positions(self) -> int | None:
        """The longest text in tokens; None where the model sets no limit."""
        settings = self.settings
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            limit: int | None = getattr(settings, name, None)
            if limit:
                return limit
        return None

    @property
    def vocabulary(self) -> int | None:
        """How many token ids it has embeddings for; None where its settings do not say."""
        size: int | None = getattr(self.settings, "vocab_size", None)
        return size

    def ids_of(
        self, text: str, most: int | None = None, special_tokens: bool = True
    ) -> torch.Tensor:
        """(tokens,): the first `most` token ids of a text, or all; the one way from text to ids.
        It begins as the tokenizer begins every text, and does not end as it ends one: a text here
        is always gone on from. special_tokens: False for a piece that is put after another.

        Raises UsageError for a text that the tokenizer cannot read, and for ids that the model does
        not know.
        """

        with strangers_code(
            lambda error: UsageError(
                f"The tokenizer of {self.name} cannot read the text ({said(error)})",
                "give another text, or mend the model",
            )
        ):
            ids = torch.tensor(self._reader.ids(text, most, special_tokens), dtype=torch.long)
        self.refuse_unknown(ids)
        return ids

    @property
    def beginning(self) -> torch.Tensor:
        """(tokens,) ids that the tokenizer puts before every text, such as a BOS token."""
        return torch.tensor(self._reader.around[0], dtype=torch.long)

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.tokenizer, self.name)

    def refuse_unknown(self, token_ids: torch.Tensor) -> None:
        """Raise UsageError for token ids that the model has no embedding for."""
        largest = int(token_ids.max()) if len(token_ids) else 0
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise UsageError(
                f"Token id {largest} is beyond the vocabulary of {self.name}, ids 0 to "
                f"{self.vocabulary - 1}",
                "its tokenizer belongs to another model",
            )

    def likeliest(self, logits: torch.Tensor) -> torch.Tensor:
        """(1, 1): the most likely token by the last of (1, tokens, vocabulary) logits."""
        last = logits[:, -1:]
        if not last.amax().isfinite():  # NaN wins a maximum
            raise UsageError(
                f"The logits of {self.name} hold NaN or Inf in {self.dtype}",
                "try `dtype` float32, or check the weights of its head",
            )
        return last.argmax(-1)

    def refuse_beyond(self, n_tokens: int, asked: str, lower: str) -> None:
        """Raise UsageError where `n_tokens`, which were `asked` for, are more than there are
        positions; `lower` says what to lower."""
        limit = self.max_positions
        if limit is not None and n_tokens > limit:
            raise UsageError(
                f"{asked} are beyond the {limit} positions of {self.name}", f"lower {lower}"
            )

    @property
    def facts(self) -> dict[str, str]:
        """What outputs say of it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "dtype": self.dtype,
            "device": self.place,
        }

    @property
    def device_peak_nbytes(self) -> int:
        """The most memory that this process has held on an accelerator; 0 without one."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0

    @property
    def weight_nbytes(self) -> int:
        """Bytes of its weights in 16 bits, those that two parts share once."""
        # Weights on disk are not known to be the same by being one tensor.
        spread = placement.is_offloaded(self.model)
        tied = getattr(self.model, "all_tied_weights_keys", {}) if spread else {}
        return 2 * sum(w.numel() for name, w in self.model.named_parameters() if name not in tied)

    @cached_property
    def identity(self) -> str:
        """A hash of what the model computes, wherever it was loaded from."""
        return identities.identity(self.model, self.settings, self.dtype)
