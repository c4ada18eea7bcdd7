"""Who looks at each token of a text: the later query that puts the largest weight on it, found
while blocks of attention weights pass by."""

from dataclasses import dataclass

import torch


@dataclass
class Watchers:
    """weight: (tokens,) the largest so far, mean over heads, of a later query on each token. query:
    (tokens,) the position of that query; -1 while there is none with any weight."""

    weight: torch.Tensor
    query: torch.Tensor

    @classmethod
    def none(cls, n_tokens: int, device: torch.device) -> "Watchers":
        query = torch.full((n_tokens,), -1, device=device)
        return cls(torch.zeros(n_tokens, device=device), query)

    def see(self, weights: torch.Tensor, query: int, key: int) -> None:
        """weights: (queries, keys), mean over heads, which is used up; query, key: the position in
        the text of the first of each."""
        most, row = weights.tril_(query - key - 1).max(0)
        places = slice(key, key + weights.shape[1])
        more = most > self.weight[places]
        self.weight[places] = torch.where(more, most, self.weight[places])
        self.query[places] = torch.where(more, row + query, self.query[places])


@dataclass(frozen=True)
class TokenAttention:
    """What the queries of a text give to each of its tokens, forgotten ones too.

    layers: of the model, by number. received: float16 (layers, kv_heads, tokens), the mean weight
    from the queries that see a token; NaN where it was not measured, or a layer has fewer heads.
    watcher: int32 (layers, tokens), see `Watchers.query`. watcher_weight: float16 (layers, tokens),
    NaN where it was not measured.
    """

    layers: tuple[int, ...]
    received: torch.Tensor
    watcher: torch.Tensor
    watcher_weight: torch.Tensor

    @classmethod
    def of(
        cls, measured: dict[int, tuple[torch.Tensor, Watchers] | None], n_tokens: int
    ) -> "TokenAttention | None":
        """measured: of each layer, what its tokens receive (kv_heads, tokens) and who watches them,
        None where nothing was seen. None where nothing was seen in any layer."""
        seen = {layer: found for layer, found in measured.items() if found is not None}
        if not seen:
            return None
        n, most = len(measured), max(len(received) for received, _ in seen.values())
        attention = cls(
            tuple(measured),
            torch.full((n, most, n_tokens), torch.nan, dtype=torch.float16),
            torch.full((n, n_tokens), -1, dtype=torch.int32),
            torch.full((n, n_tokens), torch.nan, dtype=torch.float16),
        )
        for place, layer in enumerate(measured):
            if layer in seen:
                received, watchers = seen[layer]
                attention.received[place, : len(received)] = received
                attention.watcher[place] = watchers.query
                attention.watcher_weight[place] = watchers.weight
        return attention

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("received", "watcher", "watcher_weight")
        return {name: getattr(self, name) for name in names}
