"""Many sessions in one step: nobody's bits depend on the neighbours, on guesses or on forks."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.kernels.test_decoder import FAMILIES, tensors_of

from isonomy import kernels
from isonomy.kernels import testing

Ids = npt.NDArray[np.int32]
VOCAB = 131
PARAMS = kernels.SamplingParams(temperature=0.9, top_k=60, repetition_penalty=1.2, seed=3)


@cache
def decoder(family: str) -> kernels.Decoder:
    return kernels.Decoder(FAMILIES[family], tensors_of(FAMILIES[family]))


def random_ids(seed: int, n: int) -> Ids:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)


def good(result: Any) -> kernels.StepsResult:
    assert isinstance(result, kernels.StepsResult), result
    return result


def bits(result: Any) -> tuple[Any, ...]:
    r = good(result)
    logits = None if r.logits is None else r.logits.tobytes()
    return r.tokens, r.logprobs.tobytes(), r.digests, logits, r.trace


def plain(family: str, prompt: Ids, count: int, params: kernels.SamplingParams) -> list[Any]:
    """One token after another, alone."""
    session, history, steps = decoder(family).session(600), list(prompt), []
    fed = 0
    for _ in range(count):
        step = session.step(history[fed:], params, history)
        steps.append((step.token, step.logprob.tobytes(), step.digest))
        fed = len(history)
        history.append(step.token)
    return steps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_batch_size(family: str) -> None:
    """A session's step beside 0 .. 256 others of random lengths, its place among them random."""
    rng = np.random.default_rng(1)
    prompt = random_ids(2, 41)
    alone = decoder(family).session(64)
    alone.prefill(prompt[:-1])
    item = kernels.StepItem(alone, prompt[-1:], params=PARAMS, history=prompt, with_logits=True)
    expected = bits(decoder(family).step([item])[0])
    neighbours = [decoder(family).session(300) for _ in range(256)]
    for size in (*range(1, 18), 32, 64, 128, 257):
        alone.truncate(40)
        items = []
        for other in neighbours[: size - 1]:
            tokens = random_ids(int(rng.integers(1 << 30)), int(rng.choice([1, 1, 1, 2, 5])))
            items.append(kernels.StepItem(other, tokens, int(rng.integers(0, len(tokens) + 1))))
        place = int(rng.integers(size))
        items.insert(place, item)
        results = decoder(family).step(items)
        assert bits(results[place]) == expected, size
        assert all(isinstance(result, kernels.StepsResult) for result in results)


def test_a_prompt_beside_decoding_neighbours_on_every_path() -> None:
    """Prompts longer than a chunk of rows, cut anywhere, beside others."""
    prompts = [random_ids(seed, 300) for seed in range(4)]
    kernels.set_threads(1)
    with kernels.using_isa("scalar"):
        expected = [plain("mistral", prompt, 1, PARAMS)[0] for prompt in prompts]
    rng = np.random.default_rng(5)
    for isa in kernels.info().isas:
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            with kernels.using_isa(isa):
                sessions = [decoder("mistral").session(301) for _ in prompts]
                got: dict[int, Any] = {}
                while len(got) < len(prompts):
                    items, owners = [], []
                    for i, (session, prompt) in enumerate(zip(sessions, prompts, strict=True)):
                        end = min(session.length + int(rng.integers(1, 280)), 300)
                        if i not in got:
                            history = prompt[:end]
                            items.append(
                                kernels.StepItem(
                                    session,
                                    prompt[session.length : end],
                                    int(end == 300),
                                    PARAMS,
                                    history,
                                )
                            )
                            owners.append(i)
                    for i, result in zip(owners, decoder("mistral").step(items), strict=True):
                        if good(result).tokens:
                            r = good(result)
                            got[i] = (r.tokens[0], r.logprobs[0].tobytes(), r.digests)
                assert [got[i] for i in range(len(prompts))] == expected, (isa, threads)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("params", [PARAMS, kernels.GREEDY])
def test_guesses_give_what_plain_decoding_gives(
    family: str, params: kernels.SamplingParams
) -> None:
    """Right guesses are accepted, the first wrong one ends the step, and no bit changes."""
    prompt = random_ids(7, 30)
    steps = plain(family, prompt, 12, params)
    answer = [token for token, _, _ in steps]
    for right in range(8):
        for wrong in (0, 1, 3):
            session = decoder(family).session(100)
            session.prefill(prompt[:-1])
            guesses = answer[:right] + [(answer[right] + 1) % VOCAB] * wrong
            tokens = np.array([prompt[-1], *guesses], np.int32)
            history = np.concatenate([prompt, tokens[1:]])
            item = kernels.StepItem(session, tokens, len(tokens), params, history, trace=True)
            result = good(decoder(family).step([item])[0])
            assert result.tokens == tuple(answer[: right + 1])
            assert session.length == len(prompt) + right
            assert result.logprobs.tobytes() == b"".join(s[1] for s in steps[: right + 1])
            assert result.digests == b"".join(s[2] for s in steps[: right + 1])
            after = session.step(
                [answer[right]], params, [*prompt, *answer[: right + 1]]
            )  # what the wrong guesses left is gone
            assert (after.token, after.digest) == (steps[right + 1][0], steps[right + 1][2])


def test_forced_tokens_report_what_drawing_them_reports() -> None:
    prompt = random_ids(8, 270)
    steps = plain("qwen3", prompt, 9, PARAMS)
    answer = np.array([token for token, _, _ in steps], np.int32)
    session = decoder("qwen3").session(300)
    item = kernels.StepItem(session, np.concatenate([prompt, answer]), 10, forced=True)
    result = good(decoder("qwen3").step([item])[0])
    assert result.tokens == ()
    assert result.digests[:-32] == b"".join(step[2] for step in steps)
    assert result.logprobs[:-1].tobytes() == b"".join(step[1] for step in steps)
    assert np.isnan(result.logprobs[-1])
    assert session.length == 279


@pytest.mark.parametrize("length", [0, 1, 33, 255, 256, 257, 511, 512, 600])
def test_a_fork_is_what_a_fresh_session_is(length: int) -> None:
    tokens = random_ids(9, 640)
    parent = decoder("llama").session(1000)
    parent.feed(tokens[:600])
    whole = decoder("llama").session(640).feed(tokens, all_logits=True)
    for capacity in (max(length, 1) + 40, 641, 1024):
        fork = parent.fork(capacity, length)
        assert (fork.length, fork.capacity) == (length, capacity)
        end = min(length + 40, 640)
        got = fork.feed(tokens[length:end], all_logits=True)
        assert got.tobytes() == whole[length:end].tobytes()
        fork.truncate(length // 2)  # back into shared pages: they are copied before the write
        fork.feed(tokens[100:104])
        again = parent.fork()
        assert again.feed(tokens[600:], all_logits=True).tobytes() == whole[600:].tobytes()
    parent.truncate(length)
    if length < 600:
        rest = parent.feed(tokens[length:600], all_logits=True)
        assert rest.tobytes() == whole[length:600].tobytes()


def test_forks_share_their_full_pages() -> None:
    d = kernels.Decoder(FAMILIES["llama"], tensors_of(FAMILIES["llama"]))
    parent = d.session(1024)
    assert (parent.cache_bytes, d.cache_in_use) == (0, 0)
    parent.feed(random_ids(3, 600))
    page = d.cache_bytes(256)
    assert parent.cache_bytes == d.cache_in_use == 3 * page
    assert d.cache_bytes(1024) == 4 * page
    assert d.cache_bytes(40) == d.cache_bytes(64) < page
    for capacity in (-1, 2**31, 2**64):
        with pytest.raises(kernels.ArgumentError, match="capacity must be between"):
            d.cache_bytes(capacity)
    fork = parent.fork(capacity=610)
    assert d.cache_in_use == 3 * page + d.cache_bytes(610 - 512)
    assert fork.cache_bytes == d.cache_bytes(610)
    del parent
    assert d.cache_in_use == fork.cache_bytes
    del fork
    assert d.cache_in_use == 0
    short = d.session(1000)
    short.feed([1])
    assert short.cache_bytes == page
    with pytest.raises(kernels.ArgumentError, match="fork: length must be between 0 and 1"):
        short.fork(length=2)
    with pytest.raises(kernels.ArgumentError, match="between 1 and 1024 positions"):
        short.fork(2000)


def test_many_draws_take_their_logits_in_turn() -> None:
    """More drawn rows than a chunk holds, with and without their logits."""
    tokens = random_ids(4, 700)
    session = decoder("smollm").session(700)
    item = kernels.StepItem(session, tokens, 700, forced=True, with_logits=True)
    result = good(decoder("smollm").step([item])[0])
    assert result.logits is not None
    digests = kernels.step_digests(result.logits)
    assert result.digests == b"".join(digests)
    expected = kernels.logprobs(result.logits[:-1], tokens[1:])
    assert result.logprobs[:-1].tobytes() == expected.tobytes()


MANY_LOGITS = """
import resource
import numpy as np
from isonomy import kernels

c = kernels.DecoderConfig(
    vocab=151936, hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, intermediate=4,
    rms_eps=1e-5, max_positions=512, tied=True, ropes=(kernels.Rope((1.0, 0.5)),),
)
tensors = {n: np.ones(s, np.float32) for n, s in kernels.expected_shapes(c).items()}
decoder = kernels.Decoder(c, tensors)
item = kernels.StepItem(decoder.session(400), np.ones(400, np.int32), 400, forced=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = decoder.step([item])[0]
assert len(result.digests) == 400 * 32
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other units elsewhere")
def test_logits_of_many_rows_take_bounded_memory() -> None:
    """400 rows of 151936 logits are 232 MiB, of which 64 are held at a time."""
    result = subprocess.run(
        [sys.executable, "-c", MANY_LOGITS], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 100


def test_masked_tokens_behave_as_if_they_were_not_there() -> None:
    logits = np.random.default_rng(2).standard_normal(VOCAB).astype(np.float32) * 3
    admitted = np.random.default_rng(3).permutation(VOCAB)[:20]
    admitted.sort()
    allowed = np.zeros(160, np.uint8)
    allowed[admitted] = 1
    mask = np.packbits(allowed, bitorder="little").view(np.uint32)
    everything = np.full(5, 0xFFFFFFFF, np.uint32)
    for temperature in (0.0, 0.7):
        for options in ({}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.05, "top_k": 9}):
            for penalty in (1.0, 1.5):
                params = kernels.SamplingParams(
                    temperature=temperature, repetition_penalty=penalty, seed=9, **options
                )
                history = [*admitted[:3].tolist(), 5]
                free = kernels.sample(logits, params, position=4, history=history)
                assert (
                    kernels.sample(logits, params, position=4, history=history, mask=everything)
                    == free
                )
                drawn = kernels.sample(logits, params, position=4, history=history, mask=mask)
                assert drawn.token in admitted
                assert drawn.logprob == kernels.logprobs(logits[None], [drawn.token])[0]
                hidden = logits.copy()  # far below the others: no rank, mass or noise saves it
                hidden[allowed[:VOCAB] == 0] = -1e30
                far = kernels.sample(hidden, params, position=4, history=history)
                assert far.token == drawn.token
    with pytest.raises(kernels.ArgumentError, match="mask admits no token"):
        kernels.sample(logits, PARAMS, position=4, mask=np.zeros(5, np.uint32))
    with pytest.raises(kernels.ShapeError, match="mask"):
        kernels.sample(logits, PARAMS, position=4, mask=np.zeros(4, np.uint32))
    with pytest.raises(kernels.DtypeError, match="mask"):
        kernels.sample(logits, PARAMS, position=4, mask=np.zeros(5, np.int32))  # type: ignore[arg-type]


def test_each_row_of_a_step_has_its_own_mask() -> None:
    prompt = random_ids(11, 20)
    only = [17, 99, 3]
    mask = np.zeros((3, 5), np.uint32)
    for row, token in enumerate(only):
        mask[row, token // 32] = 1 << (token % 32)
    d = decoder("llama")
    session = d.session(50)
    session.prefill(prompt[:-1])
    tokens = np.array([prompt[-1], 17, 99], np.int32)
    history = np.concatenate([prompt, tokens[1:]])
    item = kernels.StepItem(session, tokens, 3, PARAMS, history, mask)
    assert good(d.step([item])[0]).tokens == (17, 99, 3)
    session.truncate(19)
    mask[0] = 0
    other = d.session(50)
    results = d.step([item, kernels.StepItem(other, prompt)])
    assert isinstance(results[0], kernels.ArgumentError)
    assert "mask admits no token" in str(results[0])
    assert session.length == 19
    assert good(results[1]).tokens


def test_a_guess_that_cannot_draw_costs_nothing_but_itself() -> None:
    """Plain decoding would have returned the token before, and failed at the next step only."""
    d, prompt = decoder("llama"), random_ids(7, 30)
    answer = [token for token, _, _ in plain("llama", prompt, 3, kernels.GREEDY)]
    mask = np.full((3, 5), 0xFFFFFFFF, np.uint32)
    mask[1] = 0
    tokens = np.array([prompt[-1], *answer[:2]], np.int32)
    session = d.session(60)
    session.prefill(prompt[:-1])
    first = good(d.step([kernels.StepItem(session, tokens, 3, mask=mask)])[0])
    assert first.tokens == (answer[0],)
    assert session.length == 30
    second = d.step([kernels.StepItem(session, tokens[1:], 2, mask=mask[1:])])[0]
    assert isinstance(second, kernels.ArgumentError)
    assert session.length == 30


def test_items_that_do_not_fit_fail_alone() -> None:
    d = decoder("llama")
    prompt = random_ids(13, 20)
    expected = bits(d.step([kernels.StepItem(d.session(30), prompt, params=PARAMS)])[0])
    full = d.session(4)
    full.feed([1, 2, 3])
    stranger = kernels.Decoder(FAMILIES["llama"], tensors_of(FAMILIES["llama"])).session(9)
    sessions = [d.session(30) for _ in range(12)]
    hot = kernels.SamplingParams(temperature=-1.0)
    penal = kernels.SamplingParams(repetition_penalty=2.0)
    bad: list[tuple[kernels.StepItem, type[Exception], str]] = [
        (kernels.StepItem(full, [1, 2]), kernels.CapacityError, "3 of 4 positions; 2 more"),
        (kernels.StepItem(sessions[0], [131]), kernels.ArgumentError, "token 131 is outside"),
        (kernels.StepItem(sessions[1], []), kernels.ArgumentError, "at least one token"),
        (kernels.StepItem(sessions[2], [1], 2), kernels.ArgumentError, "draws must be between"),
        (kernels.StepItem(sessions[3], [1], -1), kernels.ArgumentError, "draws must be between"),
        (kernels.StepItem(sessions[4], [1], params=hot), kernels.ArgumentError, "temperature"),
        (
            kernels.StepItem(sessions[5], [1], params=penal, history=[999]),
            kernels.ArgumentError,
            "history holds id 999",
        ),
        (kernels.StepItem(sessions[6], [0.5]), kernels.DtypeError, "tokens"),
        (
            kernels.StepItem(sessions[7], [1], mask=np.zeros((2, 5), np.uint32)),
            kernels.ShapeError,
            "mask",
        ),
        (kernels.StepItem(stranger, [1]), kernels.ArgumentError, "another decoder"),
    ]
    items = [kernels.StepItem(sessions[11], prompt, params=PARAMS)]
    for item, _, _ in bad:
        items.insert(0, item)
    results = d.step(items)
    assert bits(results[-1]) == expected
    for (item, error, message), result in zip(reversed(bad), results[:-1], strict=True):
        assert isinstance(result, error), (message, result)
        assert message in str(result)
        assert item.session.length == (3 if item.session is full else 0)
    assert d.step([]) == []


@pytest.mark.usefixtures("isa")
def test_an_item_that_overflows_leaves_its_neighbours_alone() -> None:
    tensors = tensors_of(FAMILIES["llama"])
    tensors["model.embed_tokens.weight"][:, 0] = np.arange(131) == 7
    tensors["model.layers.0.input_layernorm.weight"][0] = np.float32(1e30)
    tensors["model.layers.0.self_attn.k_proj.weight"][:, 0] = np.float32(1e10)
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = np.float32(1e10)
    d = kernels.Decoder(FAMILIES["llama"], tensors)
    prompts = [np.where(random_ids(i, 50) == 7, 8, random_ids(i, 50)) for i in range(5)]
    prompts = [p.astype(np.int32) for p in prompts]
    expected = [bits(d.step([kernels.StepItem(d.session(60), p, 5, PARAMS)])[0]) for p in prompts]
    poisoned = d.session(400)
    poisoned.feed(prompts[0])
    poison = np.concatenate([prompts[1], [7], np.tile(prompts[2], 5)]).astype(np.int32)
    items = [kernels.StepItem(d.session(60), p, 5, PARAMS) for p in prompts]
    items.insert(2, kernels.StepItem(poisoned, poison))
    results = d.step(items)
    error = results.pop(2)
    assert isinstance(error, kernels.NonFiniteError)
    assert error.layer == 0
    assert "after layer 0 at position" in str(error)
    assert poisoned.length == 50
    assert [bits(result) for result in results] == expected

    # A guess that overflows costs nothing but itself.
    session = d.session(60)
    session.prefill(prompts[0][:-1])
    step = session.step(prompts[0][-1:], PARAMS, prompts[0])
    session.truncate(49)
    tokens = np.array([prompts[0][-1], 7, 7], np.int32)
    history = np.concatenate([prompts[0], tokens[1:]])
    result = good(d.step([kernels.StepItem(session, tokens, 3, PARAMS, history)])[0])
    assert (result.tokens[0], result.digests) == (step.token, step.digest)
    assert session.length == 50


def test_a_thousand_completions_of_one_prompt_are_one() -> None:
    """Among neighbours that come and go at random: one unique result, all logits."""
    d, rng = decoder("llama"), np.random.default_rng(17)
    prompt, length = random_ids(21, 12), 5
    results: set[Any] = set()
    running: list[dict[str, Any]] = []
    finished = started = 0
    strangers = [d.session(64) for _ in range(12)]
    while finished < 1000:
        while started < 1000 and len(running) < 60 and rng.random() < 0.9:
            running.append({"session": d.session(17), "ids": prompt.tolist(), "out": b""})
            started += 1
        chosen = [run for run in running if rng.random() < 0.8]
        items = []
        for run in chosen:
            session, history = run["session"], np.array(run["ids"], np.int32)
            end = len(history)
            if session.length == 0 and rng.random() < 0.5:  # the prompt in two pieces
                end = int(rng.integers(1, len(prompt)))
            items.append(
                kernels.StepItem(
                    session,
                    history[session.length : end],
                    int(end == len(history)),
                    PARAMS,
                    history,
                    with_logits=True,
                )
            )
        for stranger in strangers[: int(rng.integers(0, 13))]:
            if stranger.length > 50:
                stranger.truncate(int(rng.integers(0, 50)))
            items.append(kernels.StepItem(stranger, random_ids(int(rng.integers(1 << 30)), 3), 2))
        order = rng.permutation(len(items))
        steps = d.step([items[i] for i in order])
        for i, step in zip(order, steps, strict=True):
            if i >= len(chosen) or not good(step).tokens:
                continue
            run, r = chosen[i], good(step)
            assert r.logits is not None
            run["out"] += r.digests + r.logits.tobytes() + r.logprobs.tobytes()
            run["ids"].append(r.tokens[0])
            if len(run["ids"]) == len(prompt) + length:
                results.add((tuple(run["ids"]), run["out"]))
                running.remove(run)
                finished += 1
    assert len(results) == 1


def test_a_trace_names_the_first_stage_that_differs() -> None:
    from isonomy.kernels import testing

    d, prompt = decoder("qwen3"), random_ids(5, 40)

    def trace() -> bytes:
        item = kernels.StepItem(d.session(50), prompt, 3, PARAMS, prompt, trace=True, forced=True)
        result = good(d.step([item])[0])
        assert result.trace is not None
        return result.trace

    clean = trace()
    stages = kernels.STAGES
    assert len(clean) == 32 * 3 * 3 * len(stages)
    assert trace() == clean
    with kernels.using_isa("scalar"):
        assert trace() == clean
    for layer in range(3):
        for index, stage in enumerate(stages):
            with testing.inject(layer=layer, stage=stage, row=38, element=3, bit=1):
                damaged = trace()
            pairs = [(clean[i : i + 32], damaged[i : i + 32]) for i in range(0, len(clean), 32)]
            first = next(i for i, (a, b) in enumerate(pairs) if a != b)
            assert divmod(first - 3 * len(stages), len(stages)) == (layer, index)
    assert trace() == clean
    with (
        pytest.raises(kernels.UnsupportedError, match="stage 'mlp' is not supported"),
        testing.inject(layer=0, stage="mlp", row=0, element=0, bit=0),
    ):
        pass


@pytest.mark.parametrize("family", ["llama", "int8"] if "int8" in FAMILIES else ["llama"])
def test_steps_ahead_are_the_steps_that_follow(family: str) -> None:
    """Several sessions of several lengths run ahead together, each by another number of steps."""
    prompts = [random_ids(seed, 3 + 90 * seed) for seed in range(4)]
    params = kernels.SamplingParams(temperature=0.9, top_k=60, seed=5)
    expected = [plain(family, prompt, 9, params) for prompt in prompts]
    sessions = [decoder(family).session(600) for _ in prompts]
    items = [
        kernels.StepItem(
            session, prompt, params=params, ahead=2 * i, with_logits=True, trace=bool(i % 2)
        )
        for i, (session, prompt) in enumerate(zip(sessions, prompts, strict=True))
    ]
    for i, result in enumerate(map(good, decoder(family).step(items))):
        given = [
            (token, result.logprobs[j].tobytes(), result.digests[32 * j : 32 * j + 32])
            for j, token in enumerate(result.tokens)
        ]
        assert given == expected[i][: 1 + 2 * i]
        assert sessions[i].length == len(prompts[i]) + 2 * i
        assert result.logits is not None
        assert kernels.step_digests(result.logits) == [step[2] for step in given]
        layers = decoder(family).config.layers
        if i % 2:
            assert result.trace is not None
            assert len(result.trace) == (1 + 2 * i) * layers * len(kernels.STAGES) * 32
        again = good(
            decoder(family).step(
                [kernels.StepItem(sessions[i], [result.tokens[-1]], params=params)]
            )[0]
        )
        assert again.tokens[0] == expected[i][1 + 2 * i][0]


def test_steps_ahead_end_at_an_end_and_at_the_end_of_the_session() -> None:
    prompt = random_ids(8, 20)
    steps = plain("llama", prompt, 9, kernels.GREEDY)
    end = steps[4][0]
    first = [step[0] for step in steps].index(end)
    session = decoder("llama").session(64)
    item = kernels.StepItem(session, prompt, ahead=8, ends=np.array([end, 7], np.int32))
    result = good(decoder("llama").step([item])[0])
    assert result.tokens == tuple(step[0] for step in steps[: first + 1]) or 7 in result.tokens
    assert session.length == 20 + len(result.tokens) - 1
    short = decoder("llama").session(23)
    result = good(decoder("llama").step([kernels.StepItem(short, prompt, ahead=8)])[0])
    assert result.tokens == tuple(step[0] for step in steps[:4])
    assert short.length == 23


def test_a_step_ahead_that_fails_leaves_what_was_drawn_before_it() -> None:
    """A bit of some element of the second step's hidden state makes it NaN or infinite."""
    prompt = random_ids(8, 20)
    expected = tuple(step[0] for step in plain("llama", prompt, 4, kernels.GREEDY))
    config = decoder("llama").config
    failed = 0
    for element in range(config.hidden):
        session, other = decoder("llama").session(64), decoder("llama").session(64)
        items = [
            kernels.StepItem(session, prompt, ahead=3),
            kernels.StepItem(other, prompt[:5], ahead=3),
        ]
        last = config.layers - 1
        with testing.inject(layer=last, stage="mlp_residual", row=21, element=element, bit=30):
            first, second = map(good, decoder("llama").step(items))
        assert session.length == 20 + len(first.tokens) - 1
        assert len(second.tokens) == 4
        if len(first.tokens) < 4:
            failed += 1
            assert first.tokens == expected[:2]
            after = decoder("llama").step([kernels.StepItem(session, [expected[1]])])
            assert good(after[0]).tokens == expected[2:3]
    assert failed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ahead": -1}, "ahead must be between 0 and"),
        ({"ahead": 10**12}, "ahead must be between 0 and"),
        ({"draws": 10**12}, "draws must be between 0 and the number of tokens, 2"),
        ({"ahead": 1, "draws": 0}, "steps ahead need a draw"),
        ({"ahead": 1, "params": PARAMS}, "neither a mask nor a repetition penalty"),
        ({"ahead": 1, "forced": True, "draws": 2}, "steps ahead need a draw"),
    ],
)
def test_steps_ahead_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    session, other = decoder("llama").session(16), decoder("llama").session(16)
    items = [
        kernels.StepItem(session, [1, 2], **changes),
        kernels.StepItem(other, [1, 2], with_logits=True),
    ]
    refused, fine = decoder("llama").step(items)
    assert isinstance(refused, kernels.ArgumentError)
    assert said in str(refused)
    assert session.length == 0
    assert (
        good(fine).tokens
        == good(
            decoder("llama").step([kernels.StepItem(decoder("llama").session(4), [1, 2])])[0]
        ).tokens
    )
