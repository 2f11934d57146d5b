"""The decoder gives the same bits however its tokens arrive, and refuses what does not fit."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from isonomy import kernels

Tensor = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
Tensors = dict[str, Tensor]


def rope(dim: int, theta: float) -> kernels.Rope:
    return kernels.Rope(tuple(kernels.rope_frequencies(dim, theta).tolist()))


def config(**changes: Any) -> kernels.DecoderConfig:
    settings: dict[str, Any] = {
        "vocab": 131,
        "hidden": 72,
        "layers": 3,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 24,
        "intermediate": 100,
        "rms_eps": 1e-5,
        "ropes": (rope(24, 10000.0),),
        "max_positions": 1024,
    }
    return kernels.DecoderConfig(**settings | changes)


FAMILIES = {
    "llama": config(),
    "smollm": config(tied=True, kv_heads=6, ropes=(rope(16, 1e5),)),
    "qwen2": config(qkv_bias=True, tied=True),
    "qwen3": config(qk_norm="head", head_dim=40, ropes=(rope(40, 1e6),)),
    "mistral": config(windows=(40, 0, 7), o_bias=True, mlp_bias=True, activation="gelu_tanh"),
    "gemma": config(
        norm_offset=True,
        post_norm=True,
        qk_norm="head",
        ropes=(rope(24, 1e4), rope(16, 1e6)),
        layer_ropes=(0, 1, -1),
        windows=(33, 0, 5),
        embedding_multiplier=72**0.5,
        attention_softcap=20.0,
        logit_softcap=9.0,
        activation="gelu_tanh",
        tied=True,
    ),
    "olmo": config(pre_norm=False, post_norm=True, qk_norm="projection", residual_multiplier=0.7),
    "gpt2": config(
        positions="learned",
        ropes=(),
        norm="layer",
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        activation="gelu_erf",
        logit_divisor=3.0,
        output_bias=True,
    ),
    "experts": config(
        experts=9,
        experts_per_token=3,
        expert_intermediate=40,
        sparse_layers=(True, False, True),
        normalise_experts=True,
    ),
}


def halves(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def tensors_of(c: kernels.DecoderConfig, *, bf16: bool = False) -> Tensors:
    rng = np.random.default_rng(11)
    tensors: Tensors = {}
    for name, shape in kernels.expected_shapes(c).items():
        x = rng.standard_normal(shape, np.float32) * np.float32(0.3)
        x = x + np.float32(1) if "norm" in name else x
        tensors[name] = halves(x) if bf16 else x
    return tensors


@pytest.fixture(scope="module", params=FAMILIES)
def decoder(request: pytest.FixtureRequest) -> kernels.Decoder:
    c = FAMILIES[request.param]
    return kernels.Decoder(c, tensors_of(c))


TOKENS = np.random.default_rng(12).integers(0, 131, 300).astype(np.int32)


def all_logits(
    decoder: kernels.Decoder, tokens: npt.NDArray[np.int32], size: int, capacity: int = 512
) -> npt.NDArray[np.float32]:
    session = decoder.session(capacity)
    pieces = [tokens[i : i + size] for i in range(0, len(tokens), size)]
    return np.concatenate([session.feed(piece, all_logits=True) for piece in pieces])


def test_every_chunk_size_gives_the_same_bits(decoder: kernels.Decoder) -> None:
    whole = all_logits(decoder, TOKENS, len(TOKENS))
    assert np.isfinite(whole).all()
    assert np.unique(whole[:, 0]).size > 290  # rows do differ
    for size in (1, 7, 31, 64, 255, 257):
        assert all_logits(decoder, TOKENS, size).tobytes() == whole.tobytes(), size


def test_small_chunk_sizes_one_by_one(decoder: kernels.Decoder) -> None:
    tokens = TOKENS[:70]
    whole = all_logits(decoder, tokens, 70)
    for size in range(2, 64):
        assert all_logits(decoder, tokens, size).tobytes() == whole.tobytes(), size


def test_paths_threads_and_capacity_give_the_same_bits(decoder: kernels.Decoder) -> None:
    kernels.set_threads(1)
    with kernels.using_isa("scalar"):
        expected = all_logits(decoder, TOKENS, 300, capacity=300).tobytes()
    for isa in kernels.info().isas:
        with kernels.using_isa(isa):
            for threads, size, capacity in (
                (1, 300, 1024),
                (2, 50, 301),
                (4, 300, 300),
                (3, 9, 512),
            ):
                kernels.set_threads(threads)
                assert all_logits(decoder, TOKENS, size, capacity).tobytes() == expected


@pytest.mark.usefixtures("isa")
def test_prompt_and_decode_and_step_agree(decoder: kernels.Decoder) -> None:
    whole = all_logits(decoder, TOKENS[:60], 60)
    session = decoder.session(100)
    session.prefill(TOKENS[:40])
    assert session.feed(TOKENS[40:41]).tobytes() == whole[40:41].tobytes()
    params = kernels.SamplingParams(temperature=0.8, top_k=30, repetition_penalty=1.2, seed=7)
    for i in range(41, 60):
        history = TOKENS[: i + 1]
        result = session.step(TOKENS[i : i + 1], params, history, with_logits=True)
        assert result.logits is not None
        assert result.logits.tobytes() == whole[i].tobytes()
        assert result.digest == kernels.step_digests(whole[i : i + 1])[0]
        drawn = kernels.sample(whole[i], params, position=i + 1, history=history)
        assert (result.token, result.logprob) == (drawn.token, drawn.logprob)
    assert session.length == 60
    greedy = session.step(TOKENS[60:61])
    session.truncate(60)
    again = session.step(TOKENS[60:61], with_logits=True)
    assert again.logits is not None
    assert (greedy.digest, greedy.token) == (again.digest, int(again.logits.argmax()))


def test_truncating_leaves_no_trace(decoder: kernels.Decoder) -> None:
    whole = all_logits(decoder, TOKENS[:80], 80)
    session = decoder.session(512)
    session.feed(TOKENS[:30])
    session.feed(TOKENS[100:300])  # something else, then back
    session.truncate(30)
    assert session.feed(TOKENS[30:80], all_logits=True).tobytes() == whole[30:].tobytes()
    session.truncate(0)
    assert session.feed(TOKENS[:80], all_logits=True).tobytes() == whole.tobytes()


def test_sessions_in_many_threads_do_not_meet(decoder: kernels.Decoder) -> None:
    expected = all_logits(decoder, TOKENS[:90], 90).tobytes()
    kernels.set_threads(3)
    results: list[bytes] = []

    def work(size: int) -> None:
        results.append(all_logits(decoder, TOKENS[:90], size).tobytes())

    threads = [threading.Thread(target=work, args=(size,)) for size in (1, 5, 30, 90, 13, 44)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 6


def test_bfloat16_weights_are_their_float32_values() -> None:
    for c in FAMILIES.values():
        stored = tensors_of(c, bf16=True)
        wide: Tensors = {
            name: (x.astype(np.uint32) << 16).view(np.float32) for name, x in stored.items()
        }
        mixed = wide | {name: x for name, x in stored.items() if "q_proj" in name or "up" in name}
        expected = all_logits(kernels.Decoder(c, wide), TOKENS[:50], 50).tobytes()
        for tensors in (stored, mixed):
            assert all_logits(kernels.Decoder(c, tensors), TOKENS[:50], 50).tobytes() == expected


def test_a_sliding_window_hides_what_lies_before_it() -> None:
    c = config(windows=(5, 5, 5))
    decoder = kernels.Decoder(c, tensors_of(c))
    changed = TOKENS.copy()
    changed[0] = (changed[0] + 1) % 131
    first, second = (all_logits(decoder, tokens, 300) for tokens in (TOKENS, changed))
    reach = 1 + 3 * 4  # a token is seen four later at most, in each of three layers
    assert [row.tobytes() for row in first[reach:]] == [row.tobytes() for row in second[reach:]]
    assert first[reach - 1].tobytes() != second[reach - 1].tobytes()


LLAMA = FAMILIES["llama"]
DOWN = "model.layers.1.mlp.down_proj.weight"


def test_tensors_that_do_not_fit_are_named() -> None:
    good = tensors_of(LLAMA)
    cases: list[tuple[Tensors, type[Exception], str]] = [
        ({k: v for k, v in good.items() if k != DOWN}, kernels.WeightsError, "missing: " + DOWN),
        (good | {"model.layers.1.extra": good[DOWN]}, kernels.WeightsError, "no place for: model"),
        (good | {DOWN: good[DOWN].T}, kernels.WeightsError, r"expected shape \(72, 100\), got"),
        (good | {DOWN: good[DOWN].astype(np.float64)}, kernels.DtypeError, "down_proj.weight: exp"),
        (good | {DOWN: good[DOWN] * np.inf}, kernels.NonFiniteError, "layer 1 down_proj holds NaN"),
        (good | {DOWN: good[DOWN] * np.nan}, kernels.NonFiniteError, "layer 1 down_proj holds NaN"),
    ]
    for tensors, error, message in cases:
        with pytest.raises(error, match=message):
            kernels.Decoder(LLAMA, tensors)


def test_a_tied_output_layer_may_be_stored_twice_if_equal() -> None:
    c = FAMILIES["qwen2"]
    tensors = tensors_of(c)
    embedding = tensors["model.embed_tokens.weight"]
    kernels.Decoder(c, tensors | {"lm_head.weight": embedding.copy()})
    with pytest.raises(kernels.WeightsError, match="ties the output layer"):
        kernels.Decoder(c, tensors | {"lm_head.weight": embedding + np.float32(1)})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kv_heads": 4}, kernels.ArgumentError, "multiple of kv_heads"),
        ({"layers": 0}, kernels.ArgumentError, "layers must be positive"),
        ({"vocab": 2**25}, kernels.ArgumentError, "at most 2\\^24"),
        ({"ropes": (kernels.Rope((0.5,) * 13),)}, kernels.ArgumentError, "between 2 and head_dim"),
        ({"windows": (1,)}, kernels.ArgumentError, "windows: 1 given for 3 layers"),
        ({"windows": (1, -1, 0)}, kernels.ArgumentError, "window must not be negative"),
        ({"activation": "relu"}, kernels.UnsupportedError, "activation 'relu' is not supported"),
        ({"rms_eps": -1.0}, kernels.ArgumentError, "rms_eps"),
        ({"scale": 0.0}, kernels.ArgumentError, "scale"),
    ],
)
def test_contradictory_configurations(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kernels.Decoder(config(**changes), {})


def test_feeds_that_do_not_fit_change_nothing() -> None:
    decoder = kernels.Decoder(LLAMA, tensors_of(LLAMA))
    session = decoder.session(20)
    session.feed(TOKENS[:10])
    expected = session.step(TOKENS[10:11]).digest
    session.truncate(10)
    cases: list[tuple[Any, type[Exception], str]] = [
        (TOKENS[:11], kernels.CapacityError, "10 of 20 positions; 11 more"),
        ([], kernels.ArgumentError, "at least one token"),
        ([131], kernels.ArgumentError, "token 131 is outside the vocabulary of 131"),
        ([-1], kernels.ArgumentError, "token -1 is outside"),
        ([[1]], kernels.ShapeError, "tokens: expected shape"),
        ([1.5], kernels.DtypeError, "tokens: expected integers"),
    ]
    for tokens, error, message in cases:
        for call in (session.feed, session.prefill, session.step):
            with pytest.raises(error, match=message):
                call(tokens)
            assert session.length == 10
    with pytest.raises(kernels.ArgumentError, match="temperature"):
        session.step(TOKENS[10:11], kernels.SamplingParams(temperature=-1))
    with pytest.raises(kernels.ArgumentError, match="history holds id 999"):
        session.step(TOKENS[10:11], kernels.SamplingParams(repetition_penalty=2.0), [999])
    with pytest.raises(kernels.ArgumentError, match="between 0 and 10"):
        session.truncate(11)
    assert session.length == 10
    assert session.step(TOKENS[10:11]).digest == expected
    for capacity in (0, -1, 1025):
        with pytest.raises(kernels.ArgumentError, match="between 1 and 1024 positions"):
            decoder.session(capacity)


@pytest.mark.usefixtures("isa")
def test_an_overflow_names_its_layer_and_spares_the_session() -> None:
    tensors = tensors_of(LLAMA)
    tensors[DOWN] = tensors[DOWN] * np.float32(3e38 / np.abs(tensors[DOWN]).max())
    session = kernels.Decoder(LLAMA, tensors).session(50)
    for call in (session.feed, session.step, session.prefill):
        with pytest.raises(kernels.NonFiniteError, match="after layer 1 at position 0") as caught:
            call(TOKENS[:5])
        assert (caught.value.layer, caught.value.where) == (1, "layer 1")
        assert session.length == 0

    tensors = tensors_of(LLAMA)
    poison = tensors["lm_head.weight"].copy()
    poison[5] = np.float32(3e38)
    tensors["lm_head.weight"] = poison
    session = kernels.Decoder(LLAMA, tensors).session(50)
    session.prefill(TOKENS[:5])
    with pytest.raises(kernels.NonFiniteError, match="the logits at position 5") as caught:
        session.feed(TOKENS[5:6])
    assert (caught.value.layer, caught.value.where) == (None, "output")
    assert session.length == 5


def test_a_poisoned_token_leaves_no_trace_after_its_error() -> None:
    """Token 7 puts infinities into the cache; they must not reach its successors."""
    tensors = tensors_of(LLAMA)
    tensors["model.embed_tokens.weight"][:, 0] = np.arange(131) == 7
    tensors["model.layers.0.input_layernorm.weight"][0] = np.float32(1e30)
    tensors["model.layers.0.self_attn.k_proj.weight"][:, 0] = np.float32(1e10)
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = np.float32(1e10)
    decoder = kernels.Decoder(LLAMA, tensors)
    tokens = np.where(TOKENS == 7, 8, TOKENS)[:80].astype(np.int32)
    expected = all_logits(decoder, tokens, 80)
    session = decoder.session(100)
    session.prefill(tokens[:40])
    with pytest.raises(kernels.NonFiniteError, match="after layer 0 at position 40"):
        session.prefill([7, 7, 7, 7])
    assert session.length == 40
    for size in (1, 39):
        session.truncate(40)
        pieces = [tokens[40:][i : i + size] for i in range(0, 40, size)]
        got = np.concatenate([session.feed(piece, all_logits=True) for piece in pieces])
        assert got.tobytes() == expected[40:].tobytes()


LITTLE_MEMORY = """
import resource
import numpy as np
from isonomy import kernels

c = kernels.DecoderConfig(
    vocab=3, hidden=2, layers=1, heads=1024, kv_heads=1024, head_dim=64, intermediate=2,
    rms_eps=1e-5, ropes=(kernels.Rope((1.0,) * 32),), max_positions=2**31 - 1,
)
tensors = {n: np.ones(s, np.float32) for n, s in kernels.expected_shapes(c).items()}
decoder = kernels.Decoder(c, tensors)
one, two = decoder.session(32), decoder.session(2**31 - 1)
one.prefill([1])
digest = one.step([2]).digest
one.truncate(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26,) * 2)  # less than a page of 256 positions
fine, refused = decoder.step(
    [kernels.StepItem(one, np.array([2], np.int32)), kernels.StepItem(two, [1, 1])]
)
assert fine.digests == digest
assert isinstance(refused, kernels.OutOfMemoryError), refused
assert "out of memory" in str(refused), refused
assert two.length == 0
assert one.step([2]).token in range(3)
print("survived")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_too_little_memory_is_an_error_and_not_an_end() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, check=False
    )
    assert result.stdout == "survived\n", result.stderr


def test_a_session_serves_one_call_at_a_time() -> None:
    decoder = kernels.Decoder(LLAMA, tensors_of(LLAMA))
    session = decoder.session(10)
    twice = decoder.step([kernels.StepItem(session, [1]), kernels.StepItem(session, [1])])
    assert isinstance(twice[0], kernels.StepsResult)
    assert isinstance(twice[1], kernels.KernelError)
    assert "in use by another thread, or twice in one step" in str(twice[1])
    assert session.length == 1
    session.feed([1])


def test_a_session_keeps_its_decoder_and_both_are_freed() -> None:
    session = kernels.Decoder(LLAMA, tensors_of(LLAMA)).session(10)
    gc.collect()
    assert session.feed([1]).shape == (1, 131)
    del session
    gc.collect()


def test_configurations_are_records() -> None:
    assert msgspec.json.decode(msgspec.json.encode(LLAMA), type=kernels.DecoderConfig) == LLAMA
