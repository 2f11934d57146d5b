"""Tiny checkpoints with random weights, written the way Hugging Face folders are, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from isonomy.backends.local.config import architecture
from isonomy.backends.local.layout import arrange

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Hello! How can I help you today?",
    "Order 12345 is on its way and should arrive on Monday.",
    "Please write to support@example.com or call +1 202-555-0100.",
    "The quick brown fox jumps over the lazy dog. 你好，世界 👍🏽 naïve café Ω≈ç√",
]


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE of 320 ids, the special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def tiny_config(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "transformers_version": "5.0.0",
    }
    return config | changes


def random_tensors(config: Mapping[str, Any], seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    model = architecture(json.dumps(config).encode(), "config.json")
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in arrange(model).stored.items():
        if "norm" in name:
            values = 1 + 0.1 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * (0.5 if "embed" in name else 0.15)
        tensors[name] = values.astype(np.float32)
    return tensors


def to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves of float32 numbers: bf16, rounded towards zero."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write tensors; uint16 arrays are stored as bf16."""
    kept = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype="bfloat16" if values.dtype == np.uint16 else values.dtype.name,
            shape=values.shape,
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
        for name, values in kept.items()
    }
    serialize_file(specs, str(path), metadata={"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 1,
    bf16: bool = False,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """Write a complete checkpoint with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config() if config is None else config
    write_json(folder / "config.json", config)
    if tensors is None:
        tensors = random_tensors(config, seed)
        if bf16:
            tensors = {name: to_bf16(values) for name, values in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> None:
    """Write the tokenizer and its configuration; `changes` are keys of the latter."""
    (tokenizer or byte_level_tokenizer()).save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "chat_template": TEMPLATE,
            "model_max_length": 256,
        }
        | changes,
    )


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """The functions above, for tests (modules of tests can't import each other)."""
    return SimpleNamespace(
        checkpoint=write_checkpoint,
        config=tiny_config,
        tensors=random_tensors,
        bf16=to_bf16,
        write_tensors=write_tensors,
        write_json=write_json,
        tokenizer=byte_level_tokenizer,
        write_tokenizer=write_tokenizer,
        template=TEMPLATE,
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A fresh checkpoint that a test may damage."""
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="session")
def shared_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("shared") / "tiny")
