"""Whole int8 decoders: logits against exact arithmetic, every injected fault, equal ways to load.

The models are those of test_oracle_decoder: every switch of the graph, experts among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace
from tests.kernels.oracle import data, int8
from tests.kernels.oracle.decoder import Session
from tests.kernels.oracle.paths import every_path
from tests.kernels.test_oracle_decoder import LAYERS, MODELS, exact_session, weights

from isonomy import kernels
from isonomy.kernels import Decoder, Quantised, SamplingParams, StepItem, quantise_rows
from isonomy.kernels.faults import inject_linear
from isonomy.kernels.quantised import is_linear

TOKENS = (7, 0, 52, 7, 19)


class Int8Session(Session):
    """Section 7 with the int8 rule for every linear but the routers."""

    def __init__(self, plain: Session) -> None:
        matrices = {name: [row.bits for row in rows] for name, rows in plain.rows.items()}
        super().__init__(plain.shape, matrices, plain.vectors)
        tied = "lm_head.weight" not in matrices
        self.int8 = {
            name: [int8.quantise(row) for row in rows]
            for name, rows in matrices.items()
            if "router" not in name and (tied or "embed" not in name) and "positions" not in name
        }
        if tied:
            table = self.int8["model.embed_tokens.weight"]
            self.embedding = [int8.dequantised(row) for row in table]

    def _linear(self, x: Sequence[int], name: str) -> list[int]:
        rows = self.int8.get(f"{name}.weight")
        if rows is None:
            return super()._linear(x, name)
        bias = self.vectors.get(f"{name}.bias")
        q = int8.quantise(x)
        return [int8.linear(q, w, None if bias is None else bias[n]) for n, w in enumerate(rows)]


def configured(name, **switches):
    return replace(MODELS[name].config(), weights="int8", **switches)


def prepared(name):
    """The weights as a prepared checkpoint has them."""
    config = configured(name)
    return {
        key: quantise_rows(x) if is_linear(key, tied=config.tied) else x
        for key, x in weights(MODELS[name]).items()
    }


COMPARED = (
    *("llama", "qwen2", "all biases", "mixed storage", "gemma", "olmo2", "gpt2"),
    *("mixtral", "experts without a gate"),
)


@pytest.mark.parametrize("name", COMPARED)
def test_logits_are_those_of_exact_arithmetic(name):
    exact = Int8Session(exact_session(MODELS[name]))
    tokens = TOKENS[:3]
    want = [exact.feed(token) for token in tokens]
    loads = (
        Decoder(configured(name), weights(MODELS[name])),
        Decoder(configured(name, checksums=True), prepared(name)),
    )
    for path in every_path():
        for decoder in loads:
            whole = decoder.session(16).feed(tokens, all_logits=True)
            for position, row in enumerate(want):
                assert data.bits(whole[position]) == row, (path, position)
            session = decoder.session(16)
            for at, token in enumerate(tokens):
                assert session.feed([token]).tobytes() == whole[at].tobytes(), (path, at)
    assert kernels.faults() == []


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "mixtral"])
def test_memory_is_that_of_int8(name):
    tensors = weights(MODELS[name])
    config = configured(name)
    sizes = sum(
        x.size if is_linear(key, tied=config.tied) else 4 * x.size for key, x in tensors.items()
    )
    assert Decoder(config, tensors).weight_bytes < 3 * sizes + 200_000


def linears(name):
    """The packed linears of a model as faults name them, and their outputs and inputs."""
    config = configured(name)
    shapes = kernels.expected_shapes(config)

    def one(prefix, *parts):
        here = [f"{prefix}{part}" for part in parts]
        return here, sum(shapes[f"{h}.weight"][0] for h in here), shapes[f"{here[0]}.weight"][1]

    for i in range(LAYERS):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        yield one(attention, "q_proj", "k_proj", "v_proj")
        yield one(attention, "o_proj")
        if config.sparse(i):
            continue
        yield one(mlp, "gate_proj", "up_proj") if config.gated else one(mlp, "up_proj")
        yield one(mlp, "down_proj")
    yield one("", "model.embed_tokens" if config.tied else "lm_head")


def fault_name(parts):
    """As isonomy.h's iso_fault has it: "layer 0 q_proj + layer 0 k_proj + ..."."""

    def short(part):
        if not part.startswith("model.layers."):
            return part.rpartition(".")[2]
        _, _, layer, *rest = part.split(".")
        return f"layer {layer} {rest[-1]}"

    return " + ".join(short(part) for part in parts)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_fault_in_any_layer_is_found_and_leaves_no_trace(name):
    rng = np.random.default_rng(50)
    decoder = Decoder(configured(name, checksums=True), weights(MODELS[name]))
    item = SamplingParams(temperature=0.8, seed=3)

    def run():
        session = decoder.session(16)
        step = decoder.step([StepItem(session, np.array(TOKENS, np.int32), 1, item)])[0]
        logits = decoder.session(16).feed(TOKENS, all_logits=True)
        return step.tokens, step.digests, logits.tobytes()

    want = run()
    for parts, outputs, _ in linears(name):
        for _ in range(4):
            element, bit = int(rng.integers(outputs)), int(rng.integers(32))
            row = 0 if parts[0] in ("lm_head", "model.embed_tokens") else int(rng.integers(5))
            with inject_linear(fault_name(parts), row=row, element=element, bit=bit) as injected:
                assert run() == want, (parts, row, element, bit)
            assert injected.hits == 1, parts
            found = kernels.faults()
            assert [(f.linear, f.row, f.recomputed) for f in found] == [
                (fault_name(parts), row, True)
            ]


def test_faults_of_experts_are_found():
    decoder = Decoder(configured("mixtral", checksums=True), weights(MODELS["mixtral"]))

    def run():
        return decoder.session(16).feed(TOKENS, all_logits=True).tobytes()

    want = run()
    hits = 0
    for expert in range(5):
        for part in ("gate_proj", "down_proj"):
            name = f"layer 1 expert {expert} {part}"
            if part == "gate_proj":
                name += f" + layer 1 expert {expert} up_proj"
            with inject_linear(name, element=3, bit=9) as injected:
                assert run() == want
            hits += injected.hits
    assert hits == len(kernels.faults()) >= 4


def test_what_stays_wrong_ends_its_item_and_not_the_neighbours():
    decoder = Decoder(configured("llama", checksums=True), weights(MODELS["llama"]))
    params = SamplingParams(temperature=0.8, seed=3)

    def items():
        return [
            StepItem(decoder.session(16), np.array(tokens, np.int32), 1, params)
            for tokens in ((1, 2, 3), TOKENS, (9,))
        ]

    clean = decoder.step(items())
    for linear, row in (("layer 0 down_proj", 5), ("layer 1 o_proj", 3), ("embed_tokens", 1)):
        hit = items()
        with inject_linear(linear, row=row, element=1, bit=20, times=2):
            got = decoder.step(hit)
        assert isinstance(got[1], kernels.CorruptionError), linear
        assert f"{linear}: silent data corruption in row {row}" in str(got[1])
        assert hit[1].session.length == 0
        for other in (0, 2):
            assert got[other].tokens == clean[other].tokens
            assert got[other].digests == clean[other].digests
        assert [f.recomputed for f in kernels.faults()] == [False]
        again = decoder.step([hit[1]])[0]  # the same item, now that the fault is gone
        assert again.digests == clean[1].digests


def test_weights_damaged_in_memory_end_every_call():
    decoder = Decoder(configured("llama", checksums=True), weights(MODELS["llama"]))
    want = decoder.session(16).feed(TOKENS).tobytes()
    linear = "layer 1 down_proj"

    def flip():
        return inject_linear(linear, kind="weight", element=4 * 7, bit=5)

    with flip(), pytest.raises(kernels.CorruptionError, match="load the model again"):
        decoder.session(16).feed(TOKENS)
    with pytest.raises(kernels.CorruptionError):
        decoder.session(16).feed(TOKENS)
    kernels.faults()
    with flip():
        assert decoder.session(16).feed(TOKENS).tobytes() == want
    assert kernels.faults() == []


def test_refusals():
    tensors = weights(MODELS["llama"])
    with pytest.raises(kernels.ArgumentError, match="checksums are for int8"):
        Decoder(replace(MODELS["llama"].config(), checksums=True), tensors)
    with pytest.raises(kernels.ArgumentError, match="must not be int8"):
        Decoder(MODELS["llama"].config(), prepared("llama"))
    norm = "model.norm.weight"
    odd = {**tensors, norm: Quantised(np.ones((32, 1), np.int8), np.ones(32, np.float32))}
    with pytest.raises(kernels.WeightsError, match="expected shape"):
        Decoder(configured("llama"), odd)
