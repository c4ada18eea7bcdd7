"""Settings of tiny models of every kind of cache, and what is known of each kind."""

VOCABULARY = 300
WINDOW = 16

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_TWO_KINDS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_FOUR_SHARED = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
_SHARED_BLOCK = {  # one attention block, read at several depths
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
_PARTIAL["rope_parameters"]["partial_rotary_factor"] = 0.5
_LINEAR_AFTER = {
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "initializer_range": 0.2,
}
_SPARSE_MLP = {
    "num_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts_per_tok": 2,
}
_INDEXED = {
    "q_lora_rank": 32,
    "index_topk": 8,
    "index_n_heads": 16,  # of few, none may like a key: ties at zero, broken by chance
    "index_head_dim": 16,
    "initializer_range": 0.2,
}

# name -> (model type of transformers, settings)
SETTINGS = {
    "gpt2": ("gpt2", {**_GPT2_SIZES, "n_positions": 256}),  # MHA, learned positions
    "llama_gqa": ("llama", _SIZES),
    "llama_mqa": ("llama", {**_SIZES, "num_key_value_heads": 1}),
    "mistral": ("mistral", {**_SIZES, "sliding_window": WINDOW}),
    "gemma2": (  # soft-capped scores, eager attention, every other layer sliding
        "gemma2",
        {**_SIZES, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    ),
    "gemma3": (
        "gemma3_text",
        {**_SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, **_TWO_KINDS},
    ),
    "gpt_oss": (  # learned sinks in the softmax
        "gpt_oss",
        {**_SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **_TWO_KINDS},
    ),
    "qwen3": ("qwen3", {**_SIZES, "head_dim": 32}),
    "phi3": ("phi3", _SIZES),
    "gpt_neox": ("gpt_neox", _SIZES),  # partial rotary
    "opt": (
        "opt",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 64,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {**_SIZES, **_MLA, "q_lora_rank": None, "topk_method": "greedy"},
    ),
    "deepseek_v3": ("deepseek_v3", {**_SIZES, **_MLA, "q_lora_rank": 32}),
    "falcon_h1": (  # every layer attends and holds a state
        "falcon_h1",
        {
            **_SIZES,
            "head_dim": 16,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
        },
    ),
    "qwen3_next": (  # hybrid: the first layer has no keys and values
        "qwen3_next",
        {
            **_SIZES,
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "gemma4": (  # two layers read the others' cache; layers differ in head_dim
        "gemma4_text",
        {**_SIZES, "head_dim": 16, "global_head_dim": 32, "sliding_window": WINDOW, **_FOUR_SHARED},
    ),
    "mimo": (  # keys wider than values, layers differ in heads
        "mimo_v2_flash",
        {
            **_SIZES,
            "head_dim": 24,
            "v_head_dim": 16,
            "sliding_window": WINDOW,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "falcon": (  # old style: no attention interface to probe
        "falcon",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    # Positions that have to be said, slots that no module names, keys that tables do not tell of:
    "bamba": (  # counts positions from 0 on every call that does not say them
        "bamba",
        {**_SIZES, **_MAMBA2, "attn_layer_indices": [1], **_PARTIAL},
    ),
    "zamba": (  # no positions; the shared block has no layer_idx
        "zamba",
        {
            **_SIZES,
            **_SHARED_BLOCK,
            "mamba_d_state": 8,
            "n_mamba_heads": 2,
            "initializer_range": 0.1,  # such that its attention matters
        },
    ),
    "zamba2": (  # the shared block's layer_idx is -1
        "zamba2",
        {**_SIZES, **_SHARED_BLOCK, "use_mem_rope": True, "mamba_d_state": 16, "chunk_size": 16},
    ),
    "hrm_text": (  # two modules fill eight slots
        "hrm_text",
        {**_SIZES, "num_hidden_layers": 1, "head_dim": 16, "embedding_scale": 1.0},
    ),
    "smollm3": ("smollm3", {**_SIZES, "no_rope_layers": [1, 0]}),  # given tables, not used
    "cohere2": ("cohere2", {**_SIZES, "logit_scale": 1.0, **_TWO_KINDS}),
    "exaone4": ("exaone4", {**_SIZES, **_TWO_KINDS}),
    "afmoe": ("afmoe", {**_SIZES, "head_dim": 16, **_EXPERTS, **_TWO_KINDS}),
    "flint": (
        "flint",
        {
            **_SIZES,
            "head_dim": 16,
            **_EXPERTS,
            "shared_expert_intermediate_size": 32,
            "mlp_only_layers": [0],
            **_TWO_KINDS,
        },
    ),
    "phi": ("phi", {**_SIZES, **_PARTIAL}),  # partial rotary, sliced in `forward`
    "stablelm": ("stablelm", {**_SIZES, **_PARTIAL}),
    "persimmon": ("persimmon", {**_SIZES, **_PARTIAL}),
    "llama4": (  # complex tables, and a layer without positions
        "llama4_text",
        {
            **_SIZES,
            "head_dim": 16,
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "no_rope_layers": [1, 0],
            "attention_chunk_size": WINDOW,
        },
    ),
    "nanochat": ("nanochat", _SIZES),  # turns the other way, and norms after
    "gptj": ("gptj", {**_GPT2_SIZES, "n_positions": 256, "rotary_dim": 8}),  # sinusoidal tables
    "codegen": ("codegen", {**_GPT2_SIZES, "n_positions": 256, "rotary_dim": 8}),
    "granite_hybrid": (  # rope settings, but no rotary embedding
        "granitemoehybrid",
        {
            **_SIZES,
            **_MAMBA2,
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 2,
            "shared_intermediate_size": 32,
        },
    ),
    # Hybrids whose linear attention follows attention, and models with an index of keys. Wide
    # weights make their predictions sharp, so that a wrong position or mask is seen in them.
    "qwen3_next_after": ("qwen3_next", {**_SIZES, **_LINEAR_AFTER, **_SPARSE_MLP, "head_dim": 16}),
    "qwen3_5": ("qwen3_5_text", {**_SIZES, **_LINEAR_AFTER, "head_dim": 16}),
    "olmo_hybrid": ("olmo_hybrid", {**_SIZES, **_LINEAR_AFTER}),
    "kimi_linear": (  # all experts are taken, for a choice that turns over has no derivative
        "kimi_linear",
        {
            **_SIZES,
            **_MLA,
            **_LINEAR_AFTER,
            "linear_num_heads": 4,
            "linear_head_dim": 16,
            "num_experts_per_tok": 4,
        },
    ),
    "bailing": ("bailing_hybrid", {**_SIZES, **_MLA, **_LINEAR_AFTER, "num_local_experts": 4}),
    "deepseek_v32": ("deepseek_v32", {**_SIZES, **_MLA, **_INDEXED}),
    "glm_moe_dsa": (  # the second layer takes the places that the first has chosen
        "glm_moe_dsa",
        {**_SIZES, **_MLA, **_INDEXED, "indexer_types": ["full", "shared"]},
    ),
    "axk2": ("axk2", {**_SIZES, **_MLA, **_INDEXED, "n_group": None, "topk_group": None}),
    "hy_v4": ("hy_v4", {**_SIZES, **_MLA, **_INDEXED}),
    "qwen4": (  # its index takes blocks of the tokens that can be seen
        "qwen4_exp_text",
        {
            **_SIZES,
            **_LINEAR_AFTER,
            **_SPARSE_MLP,
            "head_dim": 16,
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        },
    ),
    "minimax_m3": (  # its index takes blocks of places, and is given no mask
        "minimax_m3_vl_text",
        {
            **_SIZES,
            "head_dim": 16,
            "rotary_dim": 8,
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_block_size": 4,
            "index_topk_blocks": 3,
            "index_local_blocks": 1,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "initializer_range": 0.2,
        },
    ),
    "deepseek_v4": (  # compressed entries stand beside the window's
        "deepseek_v4",
        {
            **_SIZES,
            **_INDEXED,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "layer_types": [
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "sliding_attention",
            ],
            "compress_rates": {
                "heavily_compressed_attention": 8,
                "compressed_sparse_attention": 4,
            },
            "sliding_window": WINDOW,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "o_groups": 2,
            "o_lora_rank": 16,
            "hc_mult": 2,
        },
    ),
}
# Caches that hold more than keys and values.
KEEPS_MORE = {
    "lfm2": ("lfm2", {**_SIZES, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
}
# Wrappers that show images to a causal model: (model type, settings).
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WRAPPERS = {
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            "text_config": {
                **_SIZES,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 3, 3],
                },
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 32,
                "out_hidden_size": 64,
            },
            "image_token_id": 290,
            "video_token_id": 291,
            "vision_start_token_id": 292,
            "vision_end_token_id": 293,
        },
    ),
    "mistral3": (
        "mistral3",
        {
            "text_config": {"model_type": "mistral", **_SIZES, "sliding_window": None},
            "vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 16},
            "image_token_index": 290,
        },
    ),
    "gemma3_wrapped": (
        "gemma3",
        {
            "text_config": SETTINGS["gemma3"][1],
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 290,
            "boi_token_index": 291,
            "eoi_token_index": 292,
        },
    ),
    "gemma4_wrapped": (
        "gemma4",
        {
            "text_config": SETTINGS["gemma4"][1],
            "vision_config": {**_VISION, "num_key_value_heads": 2, "head_dim": 16},
            "audio_config": None,
            "image_token_id": 290,
            "boi_token_id": 291,
            "eoi_token_id": 292,
            "audio_token_id": 293,
        },
    ),
    "llama4_wrapped": (
        "llama4",
        {
            "text_config": {
                **_SIZES,
                "head_dim": 16,
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
                "intermediate_size_mlp": 64,
                "interleave_moe_layer_step": 2,
                "attention_chunk_size": WINDOW,
                "no_rope_layers": [1, 0],
                "layer_types": ["chunked_attention", "full_attention"],
            },
            "vision_config": {
                **_VISION,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
            "image_token_index": 290,
            "boi_token_index": 291,
            "eoi_token_index": 292,
        },
    ),
    "llava": (
        "llava",
        {
            "text_config": {"model_type": "llama", **_SIZES},
            "vision_config": {
                "model_type": "clip_vision_model",
                **_VISION,
                "projection_dim": 32,
            },
            "image_token_index": 290,
        },
    ),
}
WITHOUT_PROBE = {"falcon", "gptj", "codegen"}
SHARED_CACHE = {"gemma4"}
# The first cycles of the one run without by its own code; the other writes its state in place.
WITHOUT_GRADIENTS = {"hrm_text", "zamba"}
CHUNKED = {"llama4"}  # a query sees its own chunk, not a window that moves with it
UNHIDDEN = {"falcon", "gptj", "codegen", "minimax_m3", "deepseek_v4"}  # evictions are refused
LINEAR_AFTER = ("qwen3_next_after", "qwen3_5", "olmo_hybrid", "kimi_linear", "bailing")
INDEXED = ("deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4")
UNKNOWN_ROTATION = {"minimax_m3", "deepseek_v4"}
COMPRESSED = {"deepseek_v4"}  # attends to entries of several tokens as well
UNCALIBRATED = {"deepseek_v4"}  # its values are its keys, and never read
WITH_STATES = sorted(
    {"falcon_h1", "qwen3_next", "bamba", "zamba", "zamba2", "granite_hybrid"}
    | {*LINEAR_AFTER, *INDEXED, *COMPRESSED, "qwen4", "minimax_m3", *KEEPS_MORE}
)
