"""Defaults of sampling: the request's values, then options, then ``generation_config.json``.

Keys of ``generation_config.json`` mean what they mean to transformers: without ``do_sample`` the
most probable token is taken (temperature 0), with it the temperature is 1 unless given; top-k is 50
unless given. A key that would change the tokens and is not covered is refused by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import msgspec

from isonomy.sdk.errors import InputError
from isonomy.sdk.generation import Sampling

from .errors import DamagedModel, NotCovered
from .families.base import Id

GENERATION_CONFIG = "generation_config.json"
MAX_TOKENS = 1024
"""The longest answer where neither the request, the options nor the checkpoint says otherwise."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "constraints": (None,),
    "cache_implementation": (None, "dynamic", "static", "hybrid"),
    "diversity_penalty": (0.0, None),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (0, None),
    "encoder_repetition_penalty": (1.0, None),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (1.0, None),
    "min_length": (0, None),
    "min_new_tokens": (0, None),
    "no_repeat_ngram_size": (0, None),
    "num_beam_groups": (1, None),
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "penalty_alpha": (0.0, None),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (False, None),
    "renormalize_logits": (False, None),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "suppress_tokens": (None,),
    "top_h": (None,),
    "typical_p": (1.0, None),
    "watermarking_config": (None,),
}
"""Keys that would change the tokens, and the values with which they don't."""

_HARMLESS = frozenset(
    {
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "chat_format",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "length_penalty",
        "low_memory",
        "max_length",
        "max_matching_ngram_size",
        "max_time",
        "max_window_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "return_dict_in_generate",
        "return_legacy_cache",
        "target_lookbehind",
        "token_healing",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that don't matter here: shapes of outputs, speed, beams that are not used."""


class GenerationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of ``generation_config.json``. Defaults: transformers' `GenerationConfig`."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    eos_token_id: Id | tuple[Id, ...] | None = None

    def eos_ids(self) -> tuple[int, ...] | None:
        """The ids that end an answer, `None` where the file does not say."""
        eos = self.eos_token_id
        return eos if eos is None or isinstance(eos, tuple) else (eos,)

    def sampling(self) -> Sampling:
        """Return the defaults as a complete `Sampling`."""
        drawn = bool(self.do_sample)
        temperature = 1.0 if self.temperature is None else self.temperature
        top_k = 50 if self.top_k is None else self.top_k
        return Sampling(
            temperature=temperature if drawn else 0.0,
            top_k=top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=0.0 if self.min_p is None else self.min_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            max_tokens=self.max_new_tokens or MAX_TOKENS,
        )


def read(folder: Path) -> tuple[GenerationConfig, bytes]:
    """Read ``generation_config.json``; return it with the bytes of the file (empty without one).

    Raises:
        DamagedModel: it can't be read.
        NotCovered: it asks for a way of decoding that is not covered.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return GenerationConfig(), b""
    try:
        data = path.read_bytes()
        raw = msgspec.json.decode(data, type=dict[str, Any])
        config = msgspec.convert(raw, GenerationConfig, strict=True)
        check(config.sampling(), "its value of")
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError, RecursionError, InputError) as error:
        reason = str(error).rstrip(".")
        raise DamagedModel(path, f"can't be used: {reason}. Correct or remove the file.") from None
    for key, value in raw.items():
        if key in _NEUTRAL:
            if value not in _NEUTRAL[key]:
                raise NotCovered(
                    path,
                    key,
                    f"{key} = {value!r} is not covered. Remove it from the file if you can do "
                    "without.",
                )
        elif key not in _HARMLESS and key not in GenerationConfig.__struct_fields__:
            raise NotCovered(
                path,
                key,
                f"the key {key!r} is not known, so it could change the tokens. Remove it from the "
                "file if it does not.",
            )
    return config, data


def merge(sampling: Sampling, defaults: Sampling) -> Sampling:
    """Return `sampling` with what it leaves open taken from `defaults`."""
    chosen = {
        name: value if (value := getattr(sampling, name)) is not None else getattr(defaults, name)
        for name in Sampling.__struct_fields__
    }
    chosen["stop"] = sampling.stop or defaults.stop
    return Sampling(**chosen)


def check(sampling: Sampling, what: str = "sampling") -> None:
    """Check a sampling's values against the ranges of the canonical numerics.

    Raises:
        InputError: naming the value, `what` it belongs to, and its range.
    """
    ranges: tuple[tuple[str, str, bool], ...] = (
        ("temperature", "a finite number from 0 on", _number(sampling.temperature, 0.0)),
        ("top_p", "above 0 and at most 1", _number(sampling.top_p, 0.0, 1.0, open_=True)),
        ("min_p", "from 0 to 1", _number(sampling.min_p, 0.0, 1.0)),
        (
            "repetition_penalty",
            "a finite number above 0",
            _number(sampling.repetition_penalty, 0.0, open_=True),
        ),
        ("top_k", "a whole number from 0 to 2147483647 (0: off)", _whole(sampling.top_k, 0, 31)),
        ("max_tokens", "a whole number from 1 to 2147483647", _whole(sampling.max_tokens, 1, 31)),
        ("seed", "an unsigned 64-bit number", _whole(sampling.seed, 0, 64)),
        ("candidate", "an unsigned 32-bit number", _whole(sampling.candidate, 0, 32)),
    )
    for name, meaning, fine in ranges:
        if not fine:
            value = getattr(sampling, name)
            raise InputError(f"{what} {name} must be {meaning}, not {value!r}.")
    for stop in sampling.stop:
        if not isinstance(stop, str) or not stop:
            raise InputError(f"{what} stop must hold non-empty strings, not {stop!r}.")


def _number(
    value: float | None, low: float, high: float = math.inf, *, open_: bool = False
) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return (value > low if open_ else value >= low) and value <= high


def _whole(value: int | None, low: int, bits: int) -> bool:
    if value is None:
        return True
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 1 << bits
