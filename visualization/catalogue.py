"""Which picture each table feeds: the file's name without its ending -> how it is drawn."""

from visualization import embeddings, generation, heads, layers, magnitudes, tokens, tucker

PICTURES = {
    "layers/layer_statistics": layers.layer_statistics,
    "layers/layer_pruning_potential": layers.layer_pruning_potential,
    "heads/head_sparsity": heads.head_sparsity,
    "heads/head_pruning_potential": heads.head_pruning_potential,
    "heads/pruning_heatmap_by_layer_head": heads.pruning_heatmap_by_layer_head,
    "weight_magnitude_distribution": magnitudes.weight_magnitude_distribution,
    "tokens/token_position_importance": tokens.token_position_importance,
    "tokens/attention_sinks": tokens.attention_sinks,
    "tokens/generation_stages_comparison": generation.generation_stages_comparison,
    "embeddings/embedding_consistency": embeddings.embedding_consistency,
    "embeddings/sparse_dense_embedding_patterns": embeddings.sparse_dense_embedding_patterns,
    "tucker/tucker_components": tucker.tucker_components,
    "tucker/layer_sensitivity": tucker.layer_sensitivity,
    "tucker/rank_sensitivity": tucker.rank_sensitivity,
}
