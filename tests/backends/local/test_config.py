"""Every key of config.json is understood, harmless, or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isonomy.backends.local import DamagedModel, NotCovered
from isonomy.backends.local.architecture import Rope
from isonomy.backends.local.config import FAMILIES, Architecture, architecture
from isonomy.backends.local.config_keys import HARMLESS
from isonomy.backends.local.layout import arrange

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(**changes: Any) -> Architecture:
    config = {key: value for key, value in (BASE | changes).items() if value is not ...}
    return architecture(json.dumps(config).encode(), "here/config.json")


def test_plain_llama() -> None:
    model = read()
    assert (model.head_dim, model.kv_heads, model.windows) == (8, 2, (0, 0, 0))
    assert model.ropes == (Rope(theta=10000.0, rotary_dim=8),)
    assert model.eos_ids == (2,)
    assert not model.tied
    assert "lm_head.weight" in arrange(model).stored
    assert model.operations() == sorted(model.operations())


@pytest.mark.parametrize(
    ("key", "value", "feature"),
    [
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("auto_map", {"AutoModel": "x.Y"}, "auto_map"),
        ("is_encoder_decoder", True, "is_encoder_decoder"),
        ("rope_interleaved", True, "rope_interleaved"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("final_logit_softcapping", 30.0, "final_logit_softcapping"),
        ("sliding_window", 4096, "sliding_window"),
        ("layer_types", ["full_attention"] * 3, "layer_types"),
        ("use_sliding_window", True, "use_sliding_window"),
        ("num_experts", 8, "num_experts"),
        ("embedding_multiplier", 1.0, "embedding_multiplier"),
        ("hidden_act", "relu2", "hidden_act: relu2"),
        ("model_type", "gpt_neox", "model_type: gpt_neox"),
        ("model_type", None, "model_type: None"),
        ("architectures", ["LlamaForSequenceClassification"], "architectures: Llama"),
        ("head_dim", 7, "head_dim"),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}, "rope_type: dynamic"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0, "gamma": 1.0}, "rope_scaling.gamma"),
        ("use_bidirectional_attention", True, "use_bidirectional_attention"),
        ("auto_map", {"AutoModelForCausalLM": "modeling.OtherForCausalLM"}, "auto_map"),
        ("rope_parameters", {"rope_type": "longrope"}, "rope_type: longrope"),
        ("rope_parameters", {"full_attention": {}}, "rope_parameters.full_attention"),
        ("rope_parameters", {"rope_type": "default", "factor": 2.0}, "rope_parameters.factor"),
        ("rope_scaling", {"type": "linear", "factor": 2.0, "mscale": 1.0}, "rope_scaling.mscale"),
        (
            "rope_parameters",
            {"rope_type": "default", "partial_rotary_factor": 0.25},
            "partial_rotary_factor",
        ),
    ],
)
def test_refused_by_name(key: str, value: Any, feature: str) -> None:
    with pytest.raises(NotCovered) as caught:
        read(**{key: value})
    assert caught.value.feature.startswith(feature)
    assert "here/config.json" in str(caught.value)
    assert key in str(caught.value) or feature.split(": ")[-1] in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": ...}, "vocab_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rope_theta": 1e18}, "rope_theta"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 33}, "head_dim"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ],
)
def test_wrong_values_name_the_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DamagedModel, match=said):
        read(**changes)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"\xff\xfe", b"[" * 9999]
)
def test_not_a_json_object(data: bytes) -> None:
    with pytest.raises(DamagedModel, match="not a JSON object"):
        architecture(data, "config.json")


def test_harmless_keys_change_nothing() -> None:
    assert read(**dict.fromkeys(HARMLESS, "anything")) == read()


def test_each_harmless_key_has_a_reason() -> None:
    assert all(HARMLESS.values())
    fields = {field for family in FAMILIES.values() for field in family.__struct_fields__}
    assert not fields & set(HARMLESS)


def test_old_and_new_ways_to_write_rope() -> None:
    old = read(rope_theta=500000.0, rope_scaling=LLAMA3)
    new = read(rope_theta=..., rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    assert old == new
    assert old.ropes[0].scaling is not None
    assert read(rope_scaling={"type": "linear", "factor": 2}).ropes[0].scaling == {
        "rope_type": "linear",
        "factor": 2.0,
    }
    assert read(rope_theta=...).ropes[0].theta == 10000.0
    both = {"rope_type": "default", "rope_theta": 5.0}
    assert read(rope_theta=7.0, rope_parameters=both).ropes[0].theta == 5.0


def test_both_ways_at_once_are_refused() -> None:
    with pytest.raises(NotCovered, match="both rope_scaling and rope_parameters"):
        read(rope_scaling=LLAMA3, rope_parameters={"rope_type": "default"})


def test_llama3_takes_the_length_from_the_model_where_it_is_absent() -> None:
    given = {key: LLAMA3[key] for key in LLAMA3 if not key.startswith("original")}
    scaling = read(rope_scaling=given).ropes[0].scaling
    assert scaling is not None
    assert scaling["original_max_position_embeddings"] == 128


def test_windows_of_every_family() -> None:
    assert read(model_type="mistral", sliding_window=16).windows == (16, 16, 16)
    assert read(model_type="mistral", sliding_window=None).windows == (0, 0, 0)
    assert read(model_type="mistral").windows == (4096,) * 3
    qwen = {"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True}
    assert read(**qwen, max_window_layers=2).windows == (0, 0, 16)
    assert read(**qwen | {"use_sliding_window": False}, max_window_layers=0).windows == (0, 0, 0)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(**qwen, layer_types=kinds).windows == (16, 0, 16)
    with pytest.raises(DamagedModel, match="layer_types names 2 layers"):
        read(**qwen, layer_types=kinds[:2])
    with pytest.raises(NotCovered, match="chunked_attention"):
        read(**qwen, layer_types=["chunked_attention"] * 3)
    with pytest.raises(DamagedModel, match="sliding_attention"):
        read(model_type="qwen3", layer_types=kinds)


def test_biases_norms_and_ties_of_every_family() -> None:
    def flags(**changes: Any) -> tuple[bool, ...]:
        model = read(**changes)
        return model.qkv_bias, model.o_bias, model.mlp_bias, model.qk_norm == "head"

    assert flags() == (False, False, False, False)
    assert flags(attention_bias=True) == (True, True, False, False)
    assert flags(mlp_bias=True) == (False, False, True, False)
    assert flags(model_type="mistral") == (False, False, False, False)
    assert flags(model_type="qwen2") == (True, False, False, False)
    assert flags(model_type="qwen3") == (False, False, False, True)
    assert flags(model_type="qwen3", attention_bias=True) == (True, True, False, True)
    tied = read(tie_word_embeddings=True)
    assert "lm_head.weight" not in arrange(tied).stored
    assert "tied_output" in tied.operations()
    with pytest.raises(NotCovered, match="attention_bias"):
        read(model_type="qwen2", attention_bias=True)


def test_operations_name_what_is_used() -> None:
    used = read(model_type="mistral", sliding_window=8, rope_scaling=LLAMA3).operations()
    assert "attention_sliding" in used
    assert "attention" not in used
    assert "rope_llama3" in used
    mixed = read(
        model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1
    ).operations()
    assert {"attention", "attention_sliding", "linear_bias", "rope_default"} <= set(mixed)
