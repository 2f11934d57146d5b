"""A transformers pipeline, wrapped: a tiny random model, made here, that writes real answers."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

from isonomy.sdk import Blocked, Guard, InputError, Replace, Retry, Sampling, check, on_input
from isonomy.sdk.checks import Check

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "My code is 1234."}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def on_output(function: Any) -> Check:
    return check(function, stages=("post_validate",))


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.set_num_threads(1)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<s>", "</s>", *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.pipeline(
            "text-generation", model=model, tokenizer=tokenizer, max_new_tokens=12, do_sample=False
        )


INPUTS: dict[str, Any] = {
    "text": "Once upon",
    "texts": ["Once upon", "a time"],
    "chat": CHAT,
    "chats": [CHAT, CHAT[1:]],
    "prefilled": [*CHAT, {"role": "assistant", "content": "The code"}],
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "new text": {"return_full_text": False},
    "several": {"num_return_sequences": 2, "num_beams": 3},
    "limited": {"max_new_tokens": 3},
}


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_what_the_pipeline_returns_is_returned(pipe: Any, given: str, parameters: str) -> None:
    plain = pipe(INPUTS[given], **PARAMETERS[parameters])
    seen: list[str] = []

    def look(text: str) -> bool:
        seen.append(text)
        return True

    with Guard(policy=[look]) as guard:
        wrapped = guard.wrap(pipe)
        assert isinstance(wrapped, type(pipe))
        assert wrapped(INPUTS[given], **PARAMETERS[parameters]) == plain
    assert seen


def test_lazy_inputs_stay_lazy(pipe: Any) -> None:
    taken = []

    def prompts() -> Any:
        for text in ("one", "two"):
            taken.append(text)
            yield text

    with Guard(policy=[lambda text: True]) as guard:
        answers = guard.wrap(pipe)(prompts())
        assert taken == ["one"]  # the first tells whether it is a conversation
        assert list(answers) == [pipe("one"), pipe("two")]
        conversation = guard.wrap(pipe)(message for message in CHAT)
        assert conversation == pipe(CHAT)


def test_what_the_checks_see_is_the_prompt_and_the_new_text(pipe: Any) -> None:
    seen: list[str] = []

    def look(text: str) -> bool:
        seen.append(text)
        return True

    with Guard(policy=[look]) as guard:
        (record,) = guard.wrap(pipe)("Once upon")
    assert seen == ["Once upon", record["generated_text"].removeprefix("Once upon")]


@pytest.mark.parametrize("full", [True, False])
def test_replaced_text_keeps_the_shape(pipe: Any, full: bool) -> None:
    with Guard(policy=[on_output(lambda text: Replace("new"))]) as guard:
        wrapped = guard.wrap(pipe)
        assert wrapped("Once", return_full_text=full) == [
            {"generated_text": "Oncenew" if full else "new"}
        ]
        answer = {"role": "assistant", "content": "new"}
        chat = [{"generated_text": [*CHAT, answer] if full else "new"}]
        assert wrapped(CHAT, return_full_text=full) == chat
        prefilled = [*CHAT, {"role": "assistant", "content": "Say "}]
        (record,) = wrapped(prefilled, return_full_text=full)
        continued = [*CHAT, {"role": "assistant", "content": "Say new"}]
        assert record["generated_text"] == (continued if full else "new")


def test_a_replaced_prompt_is_what_the_model_sees(pipe: Any) -> None:
    hidden = on_input(lambda text: Replace(text.replace("1234", "----")))
    with Guard(policy=[hidden]) as guard:
        wrapped = guard.wrap(pipe)
        (record,) = wrapped(CHAT)
        sent = [CHAT[0], {"role": "user", "content": "My code is ----."}]
        assert record["generated_text"][-1] == pipe(sent)[0]["generated_text"][-1]
        assert record["generated_text"][:-1] == CHAT  # the caller's own words stay his
        (record,) = wrapped("code 1234")
        written = pipe("code ----")[0]["generated_text"].removeprefix("code ----")
        assert record["generated_text"] == "code 1234" + written


def test_answers_are_judged_one_by_one(pipe: Any) -> None:
    verdicts = iter([True, Replace("second"), False])
    with Guard(policy=[on_output(lambda text: next(verdicts))]) as guard:
        torch.manual_seed(5)
        sampled = {"num_return_sequences": 3, "do_sample": True, "return_full_text": False}
        first, second, third = guard.wrap(pipe)("Once", **sampled)
        torch.manual_seed(5)
        plain = pipe("Once", **sampled)
        assert first == plain[0]
        assert second == {"generated_text": "second"}
        assert third == {"generated_text": guard.policy.refusal}


def test_a_blocked_prompt_never_reaches_the_model(pipe: Any) -> None:
    with Guard(policy=[on_input(lambda text: False)]) as guard:
        before = pipe.call_count
        wrapped = guard.wrap(pipe)
        refusal = guard.policy.refusal
        assert wrapped("Once ") == [{"generated_text": f"Once {refusal}"}]
        assert (
            wrapped("Once ", num_return_sequences=2, do_sample=True)
            == [{"generated_text": f"Once {refusal}"}] * 2
        )
        with pytest.raises(Blocked):
            guard.wrap(pipe, on_block="raise")("Once")
        assert pipe.call_count == before


def test_a_retry_asks_again_with_the_feedback(pipe: Any) -> None:
    rounds = iter([Retry("Shorter."), True])
    with Guard(policy=[on_output(lambda text: next(rounds))]) as guard:
        (record,) = guard.wrap(pipe)("Once upon", return_full_text=False)
        assert record == pipe("Once upon\n\nShorter.", return_full_text=False)[0]


def test_a_guards_own_sampling_is_passed_on(pipe: Any) -> None:
    with Guard(policy=[lambda text: True], sampling=Sampling(max_tokens=2)) as guard:
        assert guard.wrap(pipe)("Once") == pipe("Once", max_new_tokens=2)
        assert guard.wrap(pipe)("Once", max_new_tokens=4) == pipe("Once", max_new_tokens=4)


def test_errors_of_the_pipeline_are_its_own(pipe: Any) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        with pytest.raises(ValueError, match="model_kwargs") as plain:
            pipe("Once", no_such_parameter=1)
        with pytest.raises(ValueError, match="model_kwargs") as wrapped:
            guard.wrap(pipe)("Once", no_such_parameter=1)
        assert str(wrapped.value) == str(plain.value)


@pytest.mark.parametrize("parameter", ["return_tensors", "streamer", "prefix", "documents"])
def test_what_would_pass_no_check_is_refused(pipe: Any, parameter: str) -> None:
    with Guard(policy=[lambda text: True]) as guard:
        with pytest.raises(InputError, match=parameter):
            guard.wrap(pipe)("Once", **{parameter: "x"})
        for name in ("forward", "run_single", "get_iterator"):
            with pytest.raises(InputError, match=f"{name} is not guarded"):
                getattr(guard.wrap(pipe), name)("Once")


def test_other_pipelines_are_refused() -> None:
    class FillMaskPipeline:
        __module__ = "transformers.pipelines.fill_mask"

    with Guard(policy=[lambda text: True]) as guard, pytest.raises(InputError, match="FillMask"):
        guard.wrap(FillMaskPipeline())
