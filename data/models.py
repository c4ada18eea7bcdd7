"""A name, hub id, folder or .gguf file in; a causal model out, or one sentence why not."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

import config
from config import UsageError
from data import downloads, gguf_models, hub, model_files, placement, refusals
from data.downloads import Listing
from data.model_classes import auto_class
from data.refusals import said, strangers_code
from data.sources import Arguments, Source, resolve
from data.texts import printable
from data.token_ids import Reader, Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Settings that say where a copy of a model comes from or how it was loaded, not what it computes.
OF_A_COPY = {
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
RENEWED = ("inv_freq", "cos_cached", "sin_cached")


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
        """A hash of what the model computes, wherever it was loaded from: its settings, its weights
        and buffers by name, and the dtype they run in."""
        digest = hashlib.sha256(self.dtype.encode())
        digest.update(self._settings().encode())
        parts = chain(self._weights(), self._buffers())
        for _, hashed in sorted({name: _hashed(name, x) for name, x in parts}.items()):
            digest.update(hashed)
        return digest.hexdigest()

    def _settings(self) -> str:
        return json.dumps(
            {k: v for k, v in self.settings.to_dict().items() if k not in OF_A_COPY},
            sort_keys=True,
            default=str,
        )

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """By name, those that are kept elsewhere too, each brought back for as long as it is looked
        at."""
        for path, module in self.model.named_modules(remove_duplicate=False):
            with placement.at_hand(module):
                for name, weights in module.state_dict(keep_vars=True).items():
                    if "." not in name:
                        yield f"{path}.{name}".removeprefix("."), weights

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that no checkpoint holds too. Rotary modules renew some of theirs for a long text:
        what these follow from is among the settings."""
        for name, buffer in self.model.named_buffers():
            if not name.endswith(RENEWED) or name.endswith("original_inv_freq"):
                yield name, buffer


def _hashed(name: str, weights: torch.Tensor) -> bytes:
    digest = hashlib.sha256(repr((name, str(weights.dtype), tuple(weights.shape))).encode())
    content = weights.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest.update(content.numpy().data)
    return digest.digest()


def pick_device(wanted: str) -> torch.device:
    """The device asked for, or the best there is; one that is missing is refused."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, is_there in available.items() if is_there))
    if not available[wanted]:
        names = ", ".join(name for name, is_there in available.items() if is_there)
        raise UsageError(f"`device` {wanted} is not available on this machine", f"it has {names}")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype | str:
    """`auto` is float32 on the CPU, where 16-bit arithmetic is slow, else the checkpoint's own."""
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def load(
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    prefill_chunk: int | None = None,
    cache_offload: str | None = None,
    trust_remote_code: bool | None = None,
) -> LoadedModel:
    """A causal model by name, hub id, folder or .gguf file, on a device, or a wrapper that shows
    images to one, which is given text alone; encoder-decoders and others are refused in a sentence.
    What is not given is as config.py says.

    device: auto, cpu, cuda or mps. dtype: auto (float32 on the cpu, elsewhere the checkpoint's),
    float32, bfloat16 or float16. device_map: "auto" spreads a model over all cards, then memory,
    then disk, and leaves no use for `device`. prefill_chunk: tokens that are read at a time.
    cache_offload: none, memory or disk.
    """
    name = config.DEFAULT_MODEL if model is None else model
    trust = config.TRUST_REMOTE_CODE if trust_remote_code is None else trust_remote_code
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    spread = (device_map or config.DEVICE_MAP) is not None
    place = pick_device("auto" if spread else device or config.DEVICE)
    source = resolve(name, trust)
    listing = Listing()
    if source.folder is None:
        listing = downloads.fetch_settings(name)
    else:
        model_files.refuse_endless(source.folder)
    in_one_sentence = partial(strangers_code, refusals.of_loading(name, source, listing.refused))
    with hub.offline():
        with in_one_sentence():
            settings = AutoConfig.from_pretrained(**source.arguments)
        _refuse_settings(name, settings)
        if source.gguf is not None and source.folder is not None:
            with in_one_sentence():
                source = _converted(source, source.folder / source.gguf)
    downloads.fetch(name, listing.files, trust)
    with hub.offline(), in_one_sentence():
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        # Weights come from safetensors or GGUF: a pickle could run any code.
        safe = {} if source.gguf else {"use_safetensors": True}
        weights, report = auto_class(settings).from_pretrained(
            **source.arguments,
            **safe,
            dtype=pick_dtype(dtype or config.DTYPE, place),
            output_loading_info=True,
            **(placement.spread() if spread else {}),
        )
        refusals.refuse_incomplete(name, report)
    weights = weights.eval().requires_grad_(False)
    return LoadedModel(
        weights if spread else weights.to(place),
        tokenizer,
        printable(source.name),
        source.revision or downloads.revision(name),
        prefill_chunk or config.PREFILL_CHUNK,
        cache_offload or config.CACHE_OFFLOAD,
    )


def _converted(source: Source, file: Path) -> Source:
    """A .gguf file as the folder that it was converted into, under its own name; the file itself
    where that cannot be kept."""
    made = gguf_models.kept(file)
    if made is None:
        return source
    folder: Arguments = {"pretrained_model_name_or_path": str(made), "local_files_only": True}
    return replace(source, arguments=folder)


def _refuse_settings(name: str, settings: "PretrainedConfig") -> None:
    if settings.is_encoder_decoder or settings.get_text_config().is_encoder_decoder:
        raise UsageError(
            f"`model` {name} is an encoder-decoder ({settings.model_type})",
            "its cache belongs to two texts at once; give a decoder-only causal model",
        )
    model_files.refuse_absurd(name, settings.get_text_config().to_dict())
