"""Random-weight checkpoints in the shapes of real models, as ordinary folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # SmolLM-135M
    "135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    },
    # Qwen3-0.6B
    "600M": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
    },
}

BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0}
"""Bytes a weight. What int8 adds (a scale a row here, one in 32 weights for Q8_0) is left out."""


def write(folder: Path, *, dtype: str, shape: dict[str, Any], seed: int = 1) -> None:
    """Write a checkpoint with random weights and a tokenizer of words ``t0 t1 ...``.

    Args:
        folder: where to; made if need be.
        dtype: ``float32`` or ``bfloat16``.
        shape: fields of a transformers configuration, its ``model_type`` included.
        seed: of the weights.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        **shape, eos_token_id=None, bos_token_id=None, pad_token_id=None, dtype=dtype
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    words = {f"t{index}": index for index in range(shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": "{{ messages[-1]['content'] }}",
            }
        )
    )


def write_apart(folder: Path, *, dtype: str, shape: str) -> None:
    """Write a checkpoint in a process of its own, which takes torch and its memory with it.

    Args:
        folder: where to.
        dtype: ``float32`` or ``bfloat16``.
        shape: its name in `SHAPES`.
    """
    program = (
        "import sys; from pathlib import Path; from bench import checkpoints as c; "
        "c.write(Path(sys.argv[1]), dtype=sys.argv[2], shape=c.SHAPES[sys.argv[3]])"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(folder), dtype, shape],
        check=True,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def weights(shape: dict[str, Any]) -> int:
    """Return the number of weights that one decode step reads: all matrices, the output's too."""
    inner = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    hidden = shape["hidden_size"]
    layer = hidden * (2 * inner + 2 * keys) + 3 * hidden * shape["intermediate_size"]
    return int(shape["num_hidden_layers"] * layer + hidden * shape["vocab_size"])


def operations(shape: dict[str, Any], tokens: int) -> float:
    """Return the operations of a prompt's linears (2 a weight and token), output of one row."""
    output = shape["hidden_size"] * shape["vocab_size"]
    return 2.0 * ((weights(shape) - output) * tokens + output)


def cache_bytes(shape: dict[str, Any], tokens: int) -> int:
    """Return the bytes of a float32 cache of keys and values."""
    row = shape["num_key_value_heads"] * shape["head_dim"]
    return int(2 * 4 * shape["num_hidden_layers"] * row * tokens)


def prompt(tokens: int, vocabulary: int, number: int = 0) -> list[int]:
    """Return the ids of a prompt; different numbers give prompts without a common beginning."""
    return [(index * 7919 + 13 + number * 104729) % vocabulary for index in range(tokens)]
