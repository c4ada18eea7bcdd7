"""What the model itself goes on to say after a text, from a restored cache as from the untouched
one: how many tokens stay the same, which is the first that differs, and the KL divergence along
the model's own words, which are where it is surest and a change is seen by a reader."""

from dataclasses import dataclass, replace

import torch

from compression.evaluate import Row, Scored
from compression.studies.tasks import OfMethod, OfText
from compression.studies.work import Worker
from data.cache import KVCache
from data.scoring import Continuation

LENGTHS = (64, 256)  # tokens, as far as the model has positions
TEXTS = 2  # that are gone on from


@dataclass(frozen=True, eq=False)
class OwnWords(OfText[list[int]]):
    """What the model says after the context and the token that follows it."""

    n_said: int

    def run(self, worker: Worker) -> list[int]:
        judge = self.judge(worker)
        with worker.phase("scoring"):
            return judge.continuation.greedy(judge.cache, self.n_said)


@dataclass(frozen=True, eq=False)
class GoOn(OfMethod):
    """Of each length `equal_share`, `first_difference` (tokens that are the same before it), and
    `kl_p50_nats`, `kl_p99_nats`, `kl_max_nats`, each with the length ahead."""

    own: tuple[int, ...]

    @property
    def what(self) -> str:
        return f"going on {len(self.own)}"

    def run(self, worker: Worker) -> Scored:
        judge = self.judge(worker)
        with worker.phase("scoring"):
            compressed = self.method.compress(judge.cache)
            restored = compressed.restore()
            own = torch.tensor(self.own)
            first = judge.continuation.token_ids[:1]
            along = replace(judge.continuation, token_ids=torch.cat([first, own]))
            full, other = (along.log_probabilities(each) for each in (judge.cache, restored))
            share = full.exp()  # where it is 0, so is its term
            kl = torch.where(share > 0, share * (full - other), 0.0).sum(-1).cpu()
            said = _said(along, restored, other.argmax(-1).cpu(), own)
        row: Row = {
            "method": self.method.name,
            "settings": self.method.words(),
            "bits_per_value": 16 / compressed.ratio,
        }
        for n in {length for length in LENGTHS if length <= len(own)} or {len(own)}:
            row |= {f"{n}.{name}": value for name, value in _compared(own[:n], said, kl).items()}
        return Scored(row)


def _said(
    along: Continuation, restored: KVCache, likeliest: torch.Tensor, own: torch.Tensor
) -> torch.Tensor:
    """(tokens,) that the model says from the restored cache: its own words up to the first where
    another token is likelier, and from there on by itself."""
    same = _until_first_difference(likeliest, own)
    if same + 1 >= len(own):
        return likeliest
    fed = torch.cat([along.token_ids[: same + 1], likeliest[same : same + 1]])
    rest = replace(along, token_ids=fed).said(restored, len(own) - same - 1)
    return torch.cat([likeliest[: same + 1], torch.tensor(rest)])


def _until_first_difference(one: torch.Tensor, two: torch.Tensor) -> int:
    different = (one != two).nonzero()
    return int(different[0]) if len(different) else len(one)


def _compared(own: torch.Tensor, said: torch.Tensor, kl: torch.Tensor) -> Row:
    n = len(own)
    return {
        "equal_share": (said[:n] == own).float().mean().item(),
        "first_difference": _until_first_difference(said[:n], own),
        "kl_p50_nats": kl[:n].quantile(0.5).item(),
        "kl_p99_nats": kl[:n].quantile(0.99).item(),
        "kl_max_nats": kl[:n].max().item(),
    }
