"""``python -m tests.foreign.demo_gguf FOLDER FILE``: a checkpoint with its tokenizer, as GGUF.

Runs in the peers' environment. The tokenizer must be byte-level BPE which takes whole words of its
vocabulary first (``ignore_merges``; what llama.cpp calls ``llama-bpe``), as the demo model's does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from bench.contenders.gguf_file import interleaved, renamed, tensors


def main(folder: Path, file: Path) -> None:
    """Write the file, with weights in F32."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_tokenizer(writer, folder, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in tensors(folder):
        part = name.split(".")[-2]
        if part in heads:  # llama.cpp's rope turns neighbours, Hugging Face's turns halves
            values = interleaved(values, heads[part])
        writer.add_tensor(renamed(name), values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, int]) -> None:
    """Add the tokenizer and the chat template."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    names = {**{number: text for text, number in tokenizer["model"]["vocab"].items()}, **special}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([names[number] for number in range(config["vocab_size"])])
    writer.add_token_types(
        [
            kinds.CONTROL if number in special else kinds.NORMAL
            for number in range(config["vocab_size"])
        ]
    )
    # llama.cpp wants a merge; the demo model has none. This one is of two control characters.
    merges = tokenizer["model"]["merges"] or ["Ā ā"]
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    writer.add_chat_template(template)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
