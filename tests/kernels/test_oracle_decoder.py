"""Whole decoders of two layers, bit for bit: logits, drawn tokens, log-probabilities, digests.

Every family's peculiarity is in one of the models: grouped heads, biases of q, k and v, norms of
query and key heads, a head size that is not hidden / heads, sliding windows in some layers, tied
and untied outputs, bf16 weights, scaled rope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.kernels.oracle import data, operations, rope, sampling
from tests.kernels.oracle.decoder import Session, Shape
from tests.kernels.oracle.ieee import bf16_to_b32
from tests.kernels.oracle.paths import every_path

from isonomy.kernels import Decoder, DecoderConfig, SamplingParams, rope_frequencies

LAYERS = 2
VOCAB = 53


@dataclass(frozen=True)
class Model:
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = (0, 0)
    bf16: Callable[[str], bool] = lambda name: False
    activation: str = "silu"
    eps: float = 1e-5
    theta: float = 10000.0
    scaling: dict[str, Any] | None = field(default=None, hash=False)
    attention_factor: float = 1.0
    rotary: int = 0  # 0: all of a head's dimensions

    @property
    def rotary_dim(self) -> int:
        return self.rotary or self.head_dim


MODELS = {
    "llama": Model(hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48),
    "qwen2": Model(
        hidden=48,
        heads=6,
        kv_heads=2,
        head_dim=8,
        intermediate=40,
        tied=False,
        qkv_bias=True,
        eps=1e-6,
        theta=1e6,
        scaling={"rope_type": "linear", "factor": 1.5},
    ),
    "qwen3": Model(
        hidden=40, heads=2, kv_heads=1, head_dim=16, intermediate=33, qk_norm=True, eps=1e-6
    ),
    "mistral": Model(
        hidden=32,
        heads=4,
        kv_heads=1,
        head_dim=8,
        intermediate=64,
        tied=False,
        windows=(5, 0),
        bf16=lambda name: True,
        scaling={
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "all biases": Model(
        hidden=35,
        heads=3,
        kv_heads=3,
        head_dim=10,
        intermediate=19,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        qk_norm=True,
        windows=(3, 4),
        activation="gelu_tanh",
        rotary=6,
        attention_factor=1.2,
    ),
    "mixed storage": Model(
        hidden=17,
        heads=2,
        kv_heads=1,
        head_dim=4,
        intermediate=16,
        tied=False,
        qkv_bias=True,
        bf16=lambda name: "q_proj" in name or "embed" in name or "up_proj" in name,
        activation="gelu_erf",
    ),
}


LONG = Model(hidden=16, heads=2, kv_heads=1, head_dim=8, intermediate=17, windows=(19, 0))


def weights(model: Model) -> dict[str, np.ndarray]:
    """Random weights; matrices as bf16 bits where the model has them so."""
    rng = np.random.default_rng([80, model.hidden, model.intermediate])
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    out: dict[str, np.ndarray] = {}

    def tensor(name: str, *shape: int, around: float = 0.0) -> None:
        spread = 1.0 if "embed" in name else 0.3
        x = np.float32(around) + data.normal(rng, shape) * np.float32(spread)
        out[name] = (x.view(np.uint32) >> 16).astype(np.uint16) if model.bf16(name) else x

    def linear(name: str, n: int, k: int, bias: bool = False) -> None:
        tensor(f"{name}.weight", n, k)
        if bias:
            tensor(f"{name}.bias", n)

    tensor("model.embed_tokens.weight", VOCAB, model.hidden)
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        tensor(f"{at}.input_layernorm.weight", model.hidden, around=1.0)
        tensor(f"{at}.post_attention_layernorm.weight", model.hidden, around=1.0)
        linear(f"{at}.self_attn.q_proj", q, model.hidden, model.qkv_bias)
        linear(f"{at}.self_attn.k_proj", kv, model.hidden, model.qkv_bias)
        linear(f"{at}.self_attn.v_proj", kv, model.hidden, model.qkv_bias)
        linear(f"{at}.self_attn.o_proj", model.hidden, q, model.o_bias)
        if model.qk_norm:
            tensor(f"{at}.self_attn.q_norm.weight", model.head_dim, around=1.0)
            tensor(f"{at}.self_attn.k_norm.weight", model.head_dim, around=1.0)
        linear(f"{at}.mlp.gate_proj", model.intermediate, model.hidden, model.mlp_bias)
        linear(f"{at}.mlp.up_proj", model.intermediate, model.hidden, model.mlp_bias)
        linear(f"{at}.mlp.down_proj", model.hidden, model.intermediate, model.mlp_bias)
    tensor("model.norm.weight", model.hidden, around=1.0)
    if not model.tied:
        tensor("lm_head.weight", VOCAB, model.hidden)
    return out


def exact_session(model: Model) -> Session:
    def as_bits(x: np.ndarray) -> list[int]:
        if x.dtype == np.uint16:
            return [bf16_to_b32(b) for b in x.tolist()]
        return data.bits(x)

    tensors = weights(model)
    return Session(
        Shape(
            layers=LAYERS,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            eps=model.eps,
            frequencies=rope.frequencies(model.rotary_dim, model.theta, model.scaling),
            windows=model.windows,
            attention_factor=model.attention_factor,
            activation=getattr(operations, model.activation),
        ),
        matrices={n: [as_bits(r) for r in x] for n, x in tensors.items() if x.ndim == 2},
        vectors={n: as_bits(x) for n, x in tensors.items() if x.ndim == 1},
    )


PROMPT = (7, 0, 52, 7, 19, 33, 8)
ANSWER_LENGTH = 6
OPTIONS: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "seed": 0xDEADBEEF_12345678,
    "candidate": 2,
}


@dataclass(frozen=True)
class Run:
    """What the oracle says of a prompt and a drawn answer."""

    prompt_logits: list[list[int]]
    tokens: list[int]
    logprobs: list[int]
    digests: list[bytes]


@cache
def exact_run(name: str) -> Run:
    session = exact_session(MODELS[name])
    run = Run([session.feed(t) for t in PROMPT], [], [], [])
    history, logits = list(PROMPT), run.prompt_logits[-1]
    for _ in range(ANSWER_LENGTH):
        token = sampling.sample(logits, sampling.Params(**OPTIONS), len(history), history)
        run.tokens.append(token)
        run.logprobs.append(sampling.logprob(logits, token))
        run.digests.append(sampling.digest(logits))
        history.append(token)
        logits = session.feed(token)
    return run


@cache
def decoder(model: Model) -> Decoder:
    frequencies = rope_frequencies(model.rotary_dim, model.theta, model.scaling)
    config = DecoderConfig(
        vocab=VOCAB,
        hidden=model.hidden,
        layers=LAYERS,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate=model.intermediate,
        rms_eps=model.eps,
        frequencies=tuple(frequencies.tolist()),
        qkv_bias=model.qkv_bias,
        o_bias=model.o_bias,
        mlp_bias=model.mlp_bias,
        qk_norm=model.qk_norm,
        windows=model.windows,
        attention_factor=model.attention_factor,
        tied=model.tied,
        max_positions=512,
        activation=model.activation,
    )
    return Decoder(config, weights(model))


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_prompt(name):
    want = exact_run(name).prompt_logits
    for path in every_path():
        session = decoder(MODELS[name]).session(32)
        logits = session.feed(np.array(PROMPT, dtype=np.int32), all_logits=True)
        for position, row in enumerate(want):
            assert data.bits(logits[position]) == row, (path, position)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1, 1), (3, 4), (6, 1), (2, 5)])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_chunks(name, chunks):
    want = exact_run(name).prompt_logits
    for path in every_path():
        session, fed = decoder(MODELS[name]).session(32), 0
        for size in chunks:
            logits = session.feed(np.array(PROMPT[fed : fed + size], dtype=np.int32))
            fed += size
            assert data.bits(logits[-1]) == want[fed - 1], (path, fed)


@pytest.mark.parametrize("name", MODELS)
def test_a_drawn_answer(name):
    want = exact_run(name)
    for path in every_path():
        session = decoder(MODELS[name]).session(32)
        history, chunk = list(PROMPT), list(PROMPT)
        digests = []
        for i in range(ANSWER_LENGTH):
            step = session.step(
                np.array(chunk, dtype=np.int32),
                SamplingParams(**OPTIONS),
                np.array(history, dtype=np.int32),
            )
            digests.append(step.digest)
            assert step.digest == want.digests[i], (path, i)
            assert step.token == want.tokens[i], (path, i)
            logprob = np.array([step.logprob], dtype=np.float32)
            assert data.bits(logprob) == [want.logprobs[i]], (path, i)
            history.append(step.token)
            chunk = [step.token]
        assert sampling.chain_digests(digests) == sampling.chain_digests(want.digests)


def test_the_answers_are_drawn_and_not_merely_the_greatest_logits():
    """So that the comparison above compares noise, too."""
    drawn, greatest = [], []
    for name in MODELS:
        run = exact_run(name)
        drawn.append(run.tokens[0])
        greatest.append(sampling.argmax(dict(enumerate(run.prompt_logits[-1]))))
    assert drawn != greatest


def test_logits_beyond_a_block_of_keys():
    """Positions around 256, in one chunk, in chunks of 100, and token by token at the end."""
    prompt = np.random.default_rng(81).integers(0, VOCAB, 260).astype(np.int32)
    wanted = [254, 255, 256, 257, 259]
    exact = exact_session(LONG)
    want = {p: exact.feed(t, logits=p in wanted) for p, t in enumerate(prompt.tolist())}
    for path in every_path():
        session = decoder(LONG).session(300)
        whole = session.feed(prompt, all_logits=True)
        session.truncate(0)
        parts = [session.feed(prompt[a : a + 100], all_logits=True) for a in (0, 100)]
        parts += [session.feed(prompt[a : a + 1], all_logits=True) for a in range(200, 260)]
        for logits in (whole, np.concatenate(parts)):
            assert all(data.bits(logits[p]) == want[p] for p in wanted), path
