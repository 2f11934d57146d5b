"""``python -m bench.contenders.gguf_file FOLDER FILE TYPE``: a checkpoint's weights as GGUF.

Runs in the peers' environment. TYPE is F32, BF16 or Q8_0 (of the matrices; norms are F32).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(folder: Path, file: Path, kind: str) -> None:
    """Write the file."""
    config = json.loads((folder / "config.json").read_text())
    model = config["model_type"]
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(file, model)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    quantised = gguf.GGMLQuantizationType[kind]
    for name, values in tensors(folder):
        if model == "llama":  # its rope turns neighbours, Hugging Face's turns halves
            part = name.split(".")[-2]
            if part in heads:
                values = interleaved(values, config[heads[part]])
        if values.ndim == 1:
            writer.add_tensor(renamed(name), values.astype(np.float32))
        else:
            data = gguf.quants.quantize(values.astype(np.float32), quantised)
            writer.add_tensor(renamed(name), data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def renamed(name: str) -> str:
    """Return GGUF's name of a tensor."""
    if name in NAMES:
        return NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return the rows of each head with its halves interleaved."""
    rows, columns = values.shape
    split = values.reshape(heads, 2, rows // heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Read a safetensors file of float32 or bfloat16, as float32."""
    for file in sorted(folder.glob("*.safetensors")):
        data = np.memmap(file, mode="r")
        size = int(data[:8].view("<u8")[0])
        header = json.loads(data[8 : 8 + size].tobytes())
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                words = data[start:end].view("<u2").astype("<u4") << 16
                values = words.view("<f4")
            else:
                values = data[start:end].view("<f4")
            yield name, values.reshape(entry["shape"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
