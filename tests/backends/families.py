"""Tiny random models of every family, made by transformers; shared by the tests that compare.

A case is a model type and the changes to `SMALL` that its configuration has. Sequences of `LENGTH`
tokens leave every window of the cases, and two blocks of 256; MLPs are wider than a block, too.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")

LENGTH = 620
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 272,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 700,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
SMALL_GPT2: dict[str, Any] = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 272,
    "n_positions": 700,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 128,
}
LONGROPE = {  # within its original length
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 2.0, 3.5, 6.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": 700,
}
ALL_BIASES = {"attention_bias": True, "mlp_bias": True}
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-llama3": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama-biases-linear": ("llama", {**ALL_BIASES, "rope_parameters": LINEAR}),
    "llama-gelu": ("llama", {"hidden_act": "gelu", "head_dim": 24}),
    "smollm": (
        "llama",
        {
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-yarn-weighted": (
        "llama",
        {
            "rope_parameters": YARN
            | {"mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 20.0, "truncate": False}
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-biases": (
        "qwen3",
        {"head_dim": 16, "attention_bias": True, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 20}),
    "mistral-window": ("mistral", {"sliding_window": 96}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 20,
            "query_pre_attn_scalar": 24,
            "sliding_window": 96,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "layer_types": MIXED_LAYERS,
        },
    ),
    "gemma2-uncapped": (
        "gemma2",
        {
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 96,
            "layer_types": MIXED_LAYERS,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "phi3": (
        "phi3",
        {
            "sliding_window": 96,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "gemma3-biases": (
        "gemma3_text",
        {
            "head_dim": 20,
            "sliding_window": 64,
            "layer_types": MIXED_LAYERS,
            "attention_bias": True,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 20,
            "tie_word_embeddings": False,
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 700,
            "rope_parameters": LONGROPE,
        },
    ),
    "olmo2": ("olmo2", {"num_key_value_heads": 4}),
    "olmo2-grouped": ("olmo2", {"tie_word_embeddings": True}),
    "olmo2-biases": ("olmo2", {"attention_bias": True, "rope_parameters": YARN}),
    "granite-biases": ("granite", {**ALL_BIASES, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}),
    "smollm3-windows": (
        "smollm3",
        {
            **ALL_BIASES,
            "no_rope_layers": [1, 0, 0],
            "use_sliding_window": True,
            "sliding_window": 96,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False, "n_inner": 100}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "mixtral-window": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 96},
    ),
    "qwen3-moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3-moe-plain": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": False,
        },
    ),
}


def random_model(name: str, *, bf16: bool = False) -> Any:
    """A model of transformers whose every parameter is random, biases and norms included."""
    family, changes = CASES[name]
    small = SMALL_GPT2 if family == "gpt2" else SMALL
    config = transformers.AutoConfig.for_model(family, **small | changes)
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    around_one = not family.startswith("gemma")  # its norms multiply by 1 + weight
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = ("norm" in key or ".ln_" in key) and key.endswith(".weight")
            parameter.copy_(1 + 0.1 * noise if is_norm and around_one else 0.1 * noise)
    return model.to(torch.bfloat16) if bf16 else model
