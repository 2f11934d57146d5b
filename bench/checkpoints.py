"""Random-weight checkpoints in the shapes of real models, as ordinary folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPE_135M: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


def write(folder: Path, *, dtype: str, shape: dict[str, Any] = SHAPE_135M, seed: int = 1) -> None:
    """Write a Llama checkpoint with random weights and a tokenizer of words ``t0 t1 ...``.

    Args:
        folder: where to; made if need be.
        dtype: ``float32`` or ``bfloat16``.
        shape: fields of transformers' `LlamaConfig`.
        seed: of the weights.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(**shape, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
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


def prompt(tokens: int, vocabulary: int) -> tuple[str, list[int]]:
    """Return a prompt of so many tokens, as text and as ids."""
    ids = [(index * 7919 + 13) % vocabulary for index in range(tokens)]
    return " ".join(f"t{index}" for index in ids), ids
