"""Models whose answers are known, for the path from a cache to an answer: what they have read they
know from their cache alone, so that a damaged cache is a damaged memory."""

from types import SimpleNamespace

import torch
from transformers import DynamicCache, PretrainedConfig

from data.loaded_model import LoadedModel
from tests import families

BITS = 8  # of a token id: the tokenizer of the tests has one for each byte
VOCABULARY = 2**BITS
SURE = 30.0  # the logit of what is said, others being 0


class Reader(torch.nn.Module):
    """One layer caches the bits of each token id as keys and values. What comes next is said by
    `follows`, of the text that the values still tell."""

    def __init__(self, follows) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = PretrainedConfig(vocab_size=VOCABULARY, num_hidden_layers=1)
        self.follows = follows

    @property
    def device(self):
        return self.weight.device

    @property
    def dtype(self):
        return self.weight.dtype

    def forward(self, input_ids, past_key_values=None, use_cache=True, position_ids=None):
        past = DynamicCache() if past_key_values is None else past_key_values
        bits = (input_ids[..., None] >> torch.arange(BITS)) & 1
        held = (2.0 * bits - 1)[:, None]  # (texts, 1, tokens, BITS)
        _, values = past.update(held, held.clone(), 0)
        known = ((values[:, 0] > 0) * 2 ** torch.arange(BITS)).sum(-1)  # (texts, tokens)
        n = input_ids.shape[1]
        logits = torch.stack(
            [self._logits(text, text.shape[0] - n + i + 1) for text in known for i in range(n)]
        )
        logits = logits.view(*input_ids.shape, VOCABULARY)
        return SimpleNamespace(logits=logits, past_key_values=past)

    def _logits(self, text, n):
        logits = torch.zeros(VOCABULARY)
        token = self.follows(bytes(text[:n].tolist()))
        if token is not None:
            logits[token] = SURE
        return logits


def loaded(follows, name="reader") -> LoadedModel:
    return LoadedModel(Reader(follows).eval(), families.tokenizer(), name, "made for tests")


def ids_of(text: str) -> list[int]:
    return families.tokenizer()(text)["input_ids"]


def knowing(answers: dict[str, tuple[str, str]]):
    """A model that copies: to each question, as it ends, it says what it has read. answers: the end
    of a question -> what must still be readable in the text, and what is said then, byte by byte.
    """
    table = {
        bytes(ids_of(asked)): (bytes(ids_of(read)), bytes(ids_of(said)))
        for asked, (read, said) in answers.items()
    }

    def follows(text: bytes) -> int | None:
        for asked, (read, said) in table.items():
            place = text.rfind(asked)
            if place < 0 or read not in text[:place]:
                continue
            so_far = text[place + len(asked) :]
            if said.startswith(so_far) and len(so_far) < len(said):
                return said[len(so_far)]
        return None

    return follows


def guessing(text: bytes) -> None:
    """A model to which all tokens are as likely."""
    return None
