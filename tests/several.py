"""The tables of random texts, and of several of them as one."""

from functools import cache

import pandas as pd
import torch

from analysis import over_texts
from analysis.embeddings import ByPosition, by_position
from analysis.generation import generation_stages
from analysis.measures import sweep, thresholds
from analysis.tables import Subject, tables
from compression.studies.similarity import _looked_at
from tests import caches


@cache
def one(seed: int, n_tokens: int = 30) -> tuple[dict[str, pd.DataFrame], ByPosition]:
    """The tables of one text, and what adds up."""
    layers = (caches.layer(i, 3, n_tokens, (8, 8), seed=seed) for i in range(4))
    held = caches.cache(*layers, n_prompt=n_tokens - 5)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(x.n_heads, x.n_tokens) for x in held.layers]
    watched = caches.with_attention(held, [torch.rand(s, generator=generator) for s in shapes])
    swept = sweep(watched, 1.0)
    words = ["the", *(f"w{seed}{i}" for i in range(held.n_tokens - 1))]
    found = tables(Subject(swept, words), "all")
    text = held.before(held.n_prompt)
    stages = generation_stages(text, held, thresholds(text, 1.0))
    found["tokens/generation_stages_comparison"] = stages
    rotary = ("key", "unrotated_key", "value")
    return found | _looked_at(held, rotary), by_position(swept)


@cache
def over(*seeds: int) -> dict[str, pd.DataFrame]:
    texts = [one(seed) for seed in seeds]
    total = texts[0][1]
    for _, more in texts[1:]:
        total = total + more
    return over_texts.combined([found for found, _ in texts], total)
