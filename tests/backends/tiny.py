"""One tiny configuration of every family, with all its switches on and sizes that leave a rest."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 400,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": None,
}
WINDOW = 37
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = [SLIDING, FULL]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

TINY: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3},
    "mistral": SIZES | {"sliding_window": WINDOW},
    "qwen2": SIZES
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    | {"rope_scaling": YARN},
    "qwen3": SIZES | {"attention_bias": True, "tie_word_embeddings": True},
    "gemma2": SIZES
    | {"query_pre_attn_scalar": 7, "sliding_window": WINDOW}
    | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3_text": SIZES
    | {"sliding_window": WINDOW, "layer_types": MIXED, "final_logit_softcapping": 5.0}
    | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": SIZES | {"partial_rotary_factor": 0.6, "sliding_window": WINDOW},
    "olmo2": SIZES | {"attention_bias": True, "tie_word_embeddings": True},
    "granite": SIZES
    | {"embedding_multiplier": 12.0, "attention_multiplier": 0.8}
    | {"residual_multiplier": 0.22, "logits_scaling": 0.7},
    "smollm3": SIZES
    | {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": WINDOW},
    "gpt2": {
        "vocab_size": 83,
        "n_embd": 45,
        "n_inner": 70,
        "n_layer": 2,
        "n_head": 5,
        "n_positions": 400,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "mixtral": SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": SIZES
    | {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 34}
    | {"norm_topk_prob": True, "mlp_only_layers": [0]},
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    """Return a ``config.json``."""
    return {"model_type": family} | TINY[family] | changes
