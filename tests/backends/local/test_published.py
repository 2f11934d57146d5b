"""Published configurations are read, and have as many parameters as they are known for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tests.backends.published import PUBLISHED

from isonomy.backends.local import NotCovered
from isonomy.backends.local.architecture import Architecture
from isonomy.backends.local.config import FAMILIES, architecture
from isonomy.backends.local.layout import arrange, shapes
from isonomy.sdk.errors import ModelError

CONTEXT = 4096
TIED = ("gemma2", "gemma3_text", "gpt2", "smollm3")
# Of parameters, as the models' cards give them: a mistake in any shape would change one.
MILLIONS = {
    "SmolLM2-135M-Instruct": 135,
    "Llama-3.2-1B-Instruct": 1236,
    "Qwen2.5-0.5B-Instruct": 494,
    "Qwen3-0.6B": 596,
    "Mistral-7B-Instruct-v0.3": 7248,
    "gemma-2-2b-it": 2614,
    "gemma-3-1b-it": 1000,
    "Phi-3-mini-4k-instruct": 3821,
    "phi-4": 14660,
    "Phi-4-mini-instruct": 3836,
    "OLMo-2-0425-1B-Instruct": 1485,
    "granite-3.1-2b-instruct": 2534,
    "SmolLM3-3B": 3075,
    "gpt2": 124,
    "Mixtral-8x7B-Instruct-v0.1": 46703,
    "Qwen3-30B-A3B": 30532,
}
LAYERS = "num_hidden_layers", "n_layer"


def read(name: str, context: int | None = CONTEXT) -> Architecture:
    return architecture(json.dumps(PUBLISHED[name]).encode(), "config.json", context)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str) -> None:
    config = PUBLISHED[name]
    model = read(name)
    assert model.vocab == config["vocab_size"]
    assert model.tied == config.get("tie_word_embeddings", model.family in TIED)
    assert len(model.windows) == model.layers == next(config[k] for k in LAYERS if k in config)
    if "rope_theta" in config:
        assert model.ropes[0].theta == config["rope_theta"]
    assert round(sum(math.prod(shape) for shape in shapes(model).values()) / 1e6) == MILLIONS[name]
    layout = arrange(model)
    assert {source.tensor for source in layout.sources.values()} == set(layout.stored)


def test_every_family_is_among_them() -> None:
    assert {config["model_type"] for config in PUBLISHED.values()} == set(FAMILIES)


def test_longrope_is_covered_within_its_original_length() -> None:
    for context in (None, 4097, 131072):
        with pytest.raises(NotCovered, match="Pass context=4096") as caught:
            read("Phi-4-mini-instruct", context)
        assert caught.value.feature == "rope_type: longrope"
    model = read("Phi-4-mini-instruct", 4096)
    assert model.max_positions == 4096
    assert model.ropes[0].rotary_dim == 96
    assert model.ropes[0].scaling == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 48,
        "original_max_position_embeddings": 4096,
        "factor": 32.0,
    }


def test_layers_of_gemma() -> None:
    second = read("gemma-2-2b-it")
    assert second.windows == (4096, 0) * 13
    assert (second.attention_softcap, second.logit_softcap) == (50.0, 30.0)
    assert (second.scale, second.embedding_multiplier) == (1 / 16, 48.0)
    third = read("gemma-3-1b-it")
    assert third.windows == ((512,) * 5 + (0,)) * 4 + (512, 512)
    assert [rope.theta for rope in third.ropes] == [1e6, 1e4]
    assert all(
        (rope == 1) == (window > 0)
        for rope, window in zip(third.layer_ropes, third.windows, strict=True)
    )


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    0.5,
    1e300,
    1 << 40,
    "x",
    [],
    [1],
    {},
    {"rope_type": "yarn"},
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_odd_values_are_no_crash(name: str) -> None:
    """Whatever a key is set to, it is read or refused."""
    refused = 0
    for key in [*PUBLISHED[name], "rope_parameters", "layer_types", "num_experts"]:
        for value in ODD:
            data = json.dumps(PUBLISHED[name] | {key: value}).encode()
            try:
                model = architecture(data, "config.json", CONTEXT)
            except ModelError:
                refused += 1
            else:
                assert len(model.windows) == model.layers
                assert len(model.layer_ropes) in (0, model.layers)
                assert model.operations()
    assert refused > 50
