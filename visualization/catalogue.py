"""Which picture each table feeds: the file's name without its ending -> how it is drawn.

The function that draws a picture bears the picture's name; here stands the module that it is in,
which is imported when it first draws: to ask which tables have pictures takes no matplotlib.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Draw: TypeAlias = Callable[["pd.DataFrame", str], "Figure"]

MODULES = {
    "layers/layer_statistics": "layers",
    "layers/layer_pruning_potential": "layers",
    "heads/head_sparsity": "heads",
    "heads/head_pruning_potential": "heads",
    "heads/pruning_heatmap_by_layer_head": "heads",
    "weight_magnitude_distribution": "magnitudes",
    "tokens/token_position_importance": "tokens",
    "tokens/attention_sinks": "attention",
    "tokens/generation_stages_comparison": "generation",
    "tokens/attended_text": "words",
    "cache/keys": "entries",
    "cache/values": "entries",
    "embeddings/embedding_consistency": "embeddings",
    "embeddings/sparse_dense_embedding_patterns": "embeddings",
    "embeddings/dimension_compression": "dimensions",
    "similarity/layer_similarity_matrix": "similarity",
    "similarity/head_similarity_matrix": "similarity",
    "similarity/token_similarity_matrix": "similarity",
    "similarity/token_kv_similarity_matrices": "similarity",
    "similarity/token_embedding_patterns": "similarity",
    "similarity/embedding_dimension_correlations": "similarity",
    "similarity/embedding_dimension_groups": "dimensions",
    "spectrum/energy_spectrum": "spectrum",
    "spectrum/ranks": "spectrum",
    "spectrum/effective_rank_by_head": "spectrum",
    "spectrum/subspace_overlap": "spectrum",
    "pruning/pruning_impact": "pruning",
    "pruning/heuristics_on_trial": "pruning",
    "pruning/cost_of_each_part": "pruning",
    "compare/pareto": "compare",
    "compare/perplexity": "compare",
    "compare/needle": "compare",
    "tasks/accuracy": "tasks",
    "tasks/going_on": "tasks",
    "tucker/tucker_components": "tucker",
    "tucker/layer_sensitivity": "tucker",
    "tucker/rank_sensitivity": "tucker",
    "models/models": "models",
    **{
        f"{folder}/bits_and_errors": "errors"
        for folder in ("embeddings", "similarity", "pruning", "compare", "tucker")
    },
}


def _draw(module: str, picture: str, table: "pd.DataFrame", about: str) -> "Figure":
    draw: Draw = getattr(import_module(f"visualization.{module}"), picture)
    return draw(table, about)


PICTURES: dict[str, Draw] = {
    stem: partial(_draw, module, stem.split("/")[-1]) for stem, module in MODULES.items()
}


def draw(stem: str, table: "pd.DataFrame", about: str = "") -> "Figure":
    """The picture that a table feeds, by its name; a notebook shows it as it is. about: the model
    and the text, for the line below the title."""
    return PICTURES[stem](table, about)
