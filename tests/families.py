"""Tiny random models of every kind of cache, and a tokenizer for them; nothing to download."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 300
WINDOW = 16
SHARPNESS = 20  # by which an output layer is larger than a random one
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
}
WITHOUT_PROBE = {"falcon", "gptj", "codegen"}
SHARED_CACHE = {"gemma4"}
# The first cycles of the one run without by its own code; the other writes its state in place.
WITHOUT_GRADIENTS = {"hrm_text", "zamba"}
CHUNKED = {"llama4"}  # a query sees its own chunk, not a window that moves with it


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


def sharp(name: str):
    """A family's model whose predictions are: a random model's hardly move, whatever is wrong."""
    a_model = loaded(name)
    head = a_model.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(SHARPNESS * head.weight.detach())
    return a_model


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
