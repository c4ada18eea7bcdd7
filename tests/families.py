"""Tiny random models of every kind of cache, and a tokenizer for them; nothing to download."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 300
WINDOW = 16
CONTEXT, SCORED = 40, 6  # tokens of `scored`; the window has forgotten some

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
WITHOUT_PROBE = {"falcon"}
SHARED_CACHE = {"gemma4"}
UNHIDDEN = {"falcon", "minimax_m3", "deepseek_v4"}  # evictions are refused
LINEAR_AFTER = ("qwen3_next_after", "qwen3_5", "olmo_hybrid", "kimi_linear", "bailing")
INDEXED = ("deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4")
MORE_THAN_KEYS_AND_VALUES = {
    "falcon_h1",
    "qwen3_next",
    *LINEAR_AFTER,
    *INDEXED,
    "qwen4",
    "minimax_m3",
    "deepseek_v4",
}
UNKNOWN_ROTATION = {"qwen4", "deepseek_v4"}
COMPRESSED = {"deepseek_v4"}  # attends to entries of several tokens as well
UNCALIBRATED = {"deepseek_v4"}  # its values are its keys, and never read


def model(name: str, settings: dict | None = None, **changes) -> torch.nn.Module:
    """A tiny model of a family with the same random weights each time, with other `settings`."""
    model_type, usual = SETTINGS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **usual | (settings or {})), **changes
    ).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: ids below 256 are its alphabet, no merges, nothing added to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def save(a_model: torch.nn.Module, folder) -> None:
    a_model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def loaded(name: str, **changes):
    """A family's model as the toolkit holds it after loading."""
    from data.models import LoadedModel

    return LoadedModel(model(name, **changes), tokenizer(), name, "random weights, seed 0")


def token_ids(n: int, seed: int = 0) -> torch.Tensor:
    """(n,) ids that are no special tokens of any family."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 250, (n,), generator=generator)


def scored(name: str):
    """A family's model, the prefill of a context, and the continuation after it."""
    from data.extraction import prefill
    from data.scoring import Continuation

    a_model, ids = loaded(name), token_ids(CONTEXT + SCORED + 1)
    start = prefill(a_model, ids[:CONTEXT])
    return a_model, ids, start, Continuation(a_model, start.past, ids[CONTEXT:])
