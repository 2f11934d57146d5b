"""The checkpoint folder: tokenizer, chat template and configuration, in Hugging Face's usual files.

The tokenizer is a byte-level BPE whose vocabulary holds the 256 bytes, the special tokens and the
world's frequent words as whole entries (``ignore_merges``), and no merges. So a word of the world
is one token, and everything else, names and numbers above all, is spelled byte by byte: copying a
name into an e-mail address is copying letters, and any Unicode text can be encoded.
"""

from __future__ import annotations

import collections
import itertools
import json
import pathlib
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from demo_model import records, world

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

VOCAB_SIZE = 1536
MAX_POSITIONS = 1024

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(seed: int, dialogues: int = 20_000) -> Tokenizer:
    """Builds the tokenizer from the words of training dialogues, the most frequent first.

    Args:
        seed: Of the dialogues that are counted.
        dialogues: How many of them.

    Returns:
        A tokenizer of `VOCAB_SIZE` entries; special tokens have the highest identifiers.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    counts: collections.Counter[str] = collections.Counter()
    for dialogue in itertools.islice(world.dialogues(seed, held_out=False), dialogues):
        for message in dialogue.messages():
            text = f"{message['role']}\n{message['content']}"
            counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    names = {name.lower() for name in (*records.FIRST_NAMES, *records.LAST_NAMES)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(
        (word for word in counts if len(word) > 1 and word.lstrip("Ġ").lower() not in names),
        key=lambda word: (-counts[word], word),
    )
    entries = [*alphabet, *words[: VOCAB_SIZE - len(alphabet) - len(SPECIAL_TOKENS)]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={entry: index for index, entry in enumerate(entries)},
            merges=[],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of ``config.json``: a Llama of 1.9 million parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": MAX_POSITIONS,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "eos_token_id": tokenizer.token_to_id(IM_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "torch_dtype": "bfloat16",
    }


def write_texts(folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Writes every file of the checkpoint but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": IM_END, "pad_token": END_OF_TEXT}
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    settings = config(tokenizer)
    _write(folder / "config.json", settings)
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": added,
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            **special,
            "unk_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_POSITIONS,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write(
        folder / "special_tokens_map.json",
        {"additional_special_tokens": [IM_START, IM_END], **special},
    )
    _write(
        folder / "generation_config.json",
        {
            "bos_token_id": settings["bos_token_id"],
            "eos_token_id": settings["eos_token_id"],
            "pad_token_id": settings["pad_token_id"],
            "do_sample": False,
        },
    )


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
