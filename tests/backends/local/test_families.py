"""What each family's configuration means: switches, defaults that depend on others, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isonomy.backends.local import DamagedModel, NotCovered
from isonomy.backends.local.architecture import Architecture, Rope
from isonomy.backends.local.config import FAMILIES, architecture

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
SLIDING, FULL = "sliding_attention", "full_attention"
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2, 3],
    "long_factor": [1.0, 4.0, 8, 9],
}


def read(family: str, *, context: int | None = None, **changes: Any) -> Architecture:
    config = {"model_type": family} | (GPT2 if family == "gpt2" else SIZES) | changes
    return architecture(json.dumps(config).encode(), "here/config.json", context)


def test_gemma2() -> None:
    model = read("gemma2")
    assert (model.norm_offset, model.pre_norm, model.post_norm) == (True, True, True)
    assert (model.head_dim, model.scale, model.activation) == (256, 1 / 16, "gelu_tanh")
    assert model.embedding_multiplier**2 == pytest.approx(32)
    assert (model.attention_softcap, model.logit_softcap) == (50.0, 30.0)
    assert model.windows == (4096, 0, 4096, 0)
    assert model.tied
    assert model.layer_ropes == ()
    uncapped = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (uncapped.attention_softcap, uncapped.logit_softcap) == (0.0, 0.0)
    assert {"attention_soft_cap", "logit_soft_cap"} <= set(model.operations())
    assert not any("soft_cap" in name for name in uncapped.operations())
    assert read("gemma2", hidden_act="anything") == model
    with pytest.raises(NotCovered, match="hidden_activation"):
        read("gemma2", hidden_activation="relu")
    with pytest.raises(DamagedModel, match="sliding_window is null"):
        read("gemma2", sliding_window=None)
    assert read("gemma2", sliding_window=None, layer_types=[FULL] * 4).windows == (0, 0, 0, 0)


def test_gemma3() -> None:
    model = read("gemma3_text", num_hidden_layers=7, head_dim=8)
    assert model.windows == (4096,) * 5 + (0, 4096)
    assert model.layer_ropes == (1, 1, 1, 1, 1, 0, 1)
    assert model.ropes == (Rope(theta=1e6, rotary_dim=8), Rope(theta=1e4, rotary_dim=8))
    assert (model.qk_norm, model.attention_softcap) == ("head", 0.0)
    assert read("gemma3_text", sliding_window_pattern=2).layer_ropes == (1, 0, 1, 0)
    assert read("gemma3_text", _sliding_window_pattern=6).layer_ropes == (1, 1, 1, 1)
    with pytest.raises(NotCovered, match="_sliding_window_pattern"):
        read("gemma3_text", _sliding_window_pattern=2)
    typed = [FULL, SLIDING, FULL, SLIDING]
    assert read("gemma3_text", _sliding_window_pattern=2, layer_types=typed).layer_ropes == (
        0,
        1,
        0,
        1,
    )
    with pytest.raises(NotCovered, match="does not apply in Gemma 3"):
        read("gemma3_text", attn_logit_softcapping=50.0)
    assert read("gemma3_text", final_logit_softcapping=30.0).logit_softcap == 30.0


def test_ropes_of_gemma3() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = read(
        "gemma3_text", head_dim=8, rope_theta=5e5, rope_local_base_freq=2e4, rope_scaling=linear
    )
    assert [rope.theta for rope in old.ropes] == [5e5, 2e4]
    assert [rope.kind for rope in old.ropes] == ["linear", "default"]
    parts = {
        FULL: linear | {"rope_theta": 5e5},
        SLIDING: {"rope_type": "default", "rope_theta": 2e4},
    }
    assert read("gemma3_text", head_dim=8, rope_parameters=parts) == old
    assert read("gemma3_text", rope_parameters={FULL: linear}).ropes[1].theta == 1e4
    with pytest.raises(NotCovered, match=r"rope_parameters holds 'rope_theta'"):
        read("gemma3_text", rope_parameters={"rope_theta": 1e6})
    with pytest.raises(NotCovered, match="truncate"):
        read("gemma3_text", rope_parameters={FULL: {"truncate": False}})
    with pytest.raises(DamagedModel, match="is not an object"):
        read("gemma3_text", rope_parameters={FULL: 3})


def test_phi3() -> None:
    model = read("phi3", partial_rotary_factor=0.75)
    assert model.ropes[0] == Rope(theta=10000.0, rotary_dim=6)
    assert "rope_partial" in model.operations()
    inner = {"rope_type": "default", "partial_rotary_factor": 0.5}
    assert read("phi3", rope_parameters=inner, partial_rotary_factor=0.75).ropes[0].rotary_dim == 4
    assert read("phi3", sliding_window=16).windows == (16,) * 4
    for factor, said in ((0.4, "over 3 of 8"), (0.1, "over 0 of 8")):
        with pytest.raises(NotCovered, match=said):
            read("phi3", partial_rotary_factor=factor)
    with pytest.raises(NotCovered, match="linear"):
        read("phi3", rope_scaling={"type": "linear", "factor": 2.0})
    code = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    assert read("phi3", auto_map=code) == read("phi3")
    with pytest.raises(NotCovered, match="lm_head_bias"):
        read("phi3", lm_head_bias=True)


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_longrope_where_it_can_not_matter(name: str) -> None:
    scaling = LONGROPE | {"rope_type": name}
    short = read("phi3", rope_scaling=scaling)  # its original length is 4096 by default
    assert short.max_positions == 128
    assert short.ropes[0].scaling == {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "original_max_position_embeddings": 4096,
        "factor": 128 / 4096,
    }
    original: dict[str, Any] = {"rope_scaling": scaling, "original_max_position_embeddings": 64}
    with pytest.raises(NotCovered, match="depend on the total length once that is above 64"):
        read("phi3", **original)
    assert read("phi3", context=64, **original).max_positions == 64
    assert read("phi3", context=3, **original) == read("phi3", context=64, **original)
    with pytest.raises(DamagedModel, match="short_factor has 4 numbers, not 3"):
        read("phi3", rope_scaling=scaling, partial_rotary_factor=0.75)
    with pytest.raises(NotCovered, match=r"longrope.*depend on the total length"):
        read("llama", rope_scaling=LONGROPE)


def test_yarn() -> None:
    yarn = {"type": "yarn", "factor": 4}
    assert read("qwen3", rope_scaling=yarn).ropes[0].scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "truncate": True,
    }
    every = {
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.1,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "truncate": False,
    }
    model = read("llama", rope_parameters={"rope_type": "yarn", **every})
    assert model.ropes[0].scaling == {"rope_type": "yarn", **every}
    assert {"rope_yarn", "rope_attention_factor"} <= set(model.operations())
    with pytest.raises(DamagedModel, match="must be above 1 for yarn"):
        read("llama", rope_theta=1.0, rope_scaling=yarn)
    with pytest.raises(DamagedModel, match="mscale"):
        read("llama", rope_scaling=yarn | {"mscale": -1.0})
    with pytest.raises(DamagedModel, match="factor"):
        read("llama", rope_scaling={"type": "yarn"})


def test_olmo2() -> None:
    model = read("olmo2", attention_bias=True)
    assert (model.pre_norm, model.post_norm, model.qk_norm) == (False, True, "projection")
    assert (model.qkv_bias, model.o_bias, model.mlp_bias) == (True, True, False)
    assert "qk_norm_projection" in model.operations()


def test_granite() -> None:
    assert read("granite").scale == 1.0
    scalars: dict[str, Any] = {
        "embedding_multiplier": 12,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 8,
    }
    model = read("granite", **scalars)
    assert (model.embedding_multiplier, model.scale) == (12.0, 0.015625)
    assert (model.residual_multiplier, model.logit_divisor) == (0.22, 8.0)
    assert {"multiply_embedding", "multiply_residual", "divide_logits"} <= set(model.operations())
    assert "divide_logits" not in read("granite").operations()
    for key in scalars:
        with pytest.raises(DamagedModel, match=key):
            read("granite", **dict[str, Any]({key: 0.0}))


def test_smollm3() -> None:
    assert read("smollm3").layer_ropes == (0, 0, 0, -1)
    assert read("smollm3", no_rope_layer_interval=2).layer_ropes == (0, -1, 0, -1)
    assert read("smollm3", no_rope_layers=[0, 1, 1, 0]).layer_ropes == (-1, 0, 0, -1)
    assert read("smollm3", sliding_window=16).windows == (0,) * 4
    assert read("smollm3", sliding_window=16, use_sliding_window=True).windows == (0, 0, 0, 16)
    assert read("smollm3").ropes[0].theta == 2e6
    with pytest.raises(DamagedModel, match="no_rope_layers names 1 layers"):
        read("smollm3", no_rope_layers=[1])
    none = read("smollm3", no_rope_layers=[0] * 4).operations()
    assert not any(name.startswith("rope") for name in none)


def test_gpt2() -> None:
    model = read("gpt2")
    assert (model.norm, model.positions, model.gated) == ("layer", "learned", False)
    assert (model.intermediate, model.scale, model.activation) == (128, None, "gelu_tanh")
    assert model.ropes == ()
    assert read("gpt2", scale_attn_weights=False).scale == 1.0
    assert read("gpt2", n_inner=40).intermediate == 40
    used = set(model.operations())
    assert {"layer_norm", "learned_positions", "linear_bias", "tied_output"} <= used
    assert not used & {"mul", "rms_norm", "silu"}
    for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        with pytest.raises(NotCovered, match=key):
            read("gpt2", **{key: True})
    with pytest.raises(NotCovered, match="hidden_size"):
        read("gpt2", hidden_size=32)
    with pytest.raises(DamagedModel, match="n_embd"):
        read("gpt2", n_head=5)


def test_mixtral() -> None:
    model = read("mixtral", num_local_experts=3)
    assert (model.experts, model.experts_per_token, model.expert_intermediate) == (3, 2, 48)
    assert model.normalise_experts
    assert model.sparse_layers == ()
    assert {"mixture_of_experts", "softmax"} <= set(model.operations())
    assert read("mixtral", num_experts=3) == model
    with pytest.raises(DamagedModel, match="two names of one number"):
        read("mixtral", num_experts=3, num_local_experts=4)
    with pytest.raises(DamagedModel, match="above the number of experts"):
        read("mixtral", num_local_experts=1)


def test_qwen3_moe() -> None:
    model = read("qwen3_moe", moe_intermediate_size=20)
    assert (model.experts, model.experts_per_token, model.expert_intermediate) == (128, 8, 20)
    assert (model.normalise_experts, model.qk_norm, model.head_dim) == (False, "head", 8)
    assert model.windows == (0,) * 4
    assert read("qwen3_moe", use_sliding_window=True, sliding_window=9).windows == (9,) * 4
    assert read("qwen3_moe", norm_topk_prob=True).normalise_experts
    assert read("qwen3_moe", decoder_sparse_step=2).sparse_layers == (False, True, False, True)
    assert read("qwen3_moe", mlp_only_layers=[0, 2]).sparse_layers == (False, True, False, True)
    dense = read("qwen3_moe", mlp_only_layers=[0, 1, 2, 3])
    assert dense.experts == 0
    assert "mixture_of_experts" not in dense.operations()
    assert read("qwen3_moe", num_local_experts=0) == dense


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_ask_for_what_is_not_there(family: str) -> None:
    foreign: dict[str, Any] = {
        "quantization_config": {"bits": 4},
        "is_encoder_decoder": True,
        "use_bidirectional_attention": True,
        "add_cross_attention": True,
        "shared_expert_intermediate_size": 8,
        "something_new": None,
    }
    for key, value in foreign.items():
        with pytest.raises(NotCovered) as caught:
            read(family, **{key: value})
        assert caught.value.feature == key
