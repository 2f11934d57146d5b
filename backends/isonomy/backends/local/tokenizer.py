"""A checkpoint's tokenizer: text to ids and back, by the `tokenizers` library.

Reads ``tokenizer.json`` and, from ``tokenizer_config.json`` and ``special_tokens_map.json``, the
special tokens by name and the tokens added later, so that ids are those of transformers'
`AutoTokenizer`. Prompts come from a chat template, which writes its special tokens itself: none are
added, and a special token's text anywhere in the prompt becomes that token, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import ContextLength, InputError

from . import packages
from .errors import BACKEND, DamagedModel, NoTemplate

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Special tokens that templates may name (transformers' SPECIAL_TOKENS_ATTRIBUTES)."""


class AddedToken(msgspec.Struct, frozen=True):
    """A token outside the vocabulary proper, as ``tokenizer_config.json`` lists it."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None
    special: bool = False

    def options(self) -> dict[str, bool]:
        """Return the flags that are given, as the library takes them."""
        flags = {name: getattr(self, name) for name in self.__struct_fields__ if name != "content"}
        return {name: flag for name, flag in flags.items() if flag is not None}


class TokenizerConfig(msgspec.Struct, frozen=True):
    """What is read of ``tokenizer_config.json``; its other keys configure Python classes."""

    bos_token: str | AddedToken | None = None
    eos_token: str | AddedToken | None = None
    unk_token: str | AddedToken | None = None
    sep_token: str | AddedToken | None = None
    pad_token: str | AddedToken | None = None
    cls_token: str | AddedToken | None = None
    mask_token: str | AddedToken | None = None
    added_tokens_decoder: dict[str, AddedToken] = {}
    split_special_tokens: bool = False
    chat_template: Any = None

    def named(self) -> dict[str, str]:
        """Return the special tokens' texts by name."""
        found: dict[str, str] = {}
        for name in NAMED:
            token = getattr(self, name)
            if token is not None:
                found[name] = token if isinstance(token, str) else token.content
        return found


def read_config(folder: Path) -> TokenizerConfig:
    """Read ``tokenizer_config.json`` and, as transformers does, the older file beside it.

    ``special_tokens_map.json`` has the last word on names, unless the configuration is of the newer
    kind that lists all added tokens.

    Raises:
        DamagedModel: one of them is there and can't be read.
    """
    settings = _object(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in settings:
        named = _object(folder / SPECIAL_TOKENS_MAP)
        settings |= {name: named[name] for name in NAMED if name in named}
    return msgspec.convert(settings, TokenizerConfig)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        msgspec.convert(raw, TokenizerConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise DamagedModel(path, f"can't be read ({error}). Fetch the file again.") from None
    return raw


class Tokenizer:
    """Text to ids and back. Safe to share between threads once built.

    Args:
        folder: The checkpoint.
        config: What `read_config` read there.
        vocab: The model's number of ids; a tokenizer with larger ones is refused.

    Raises:
        DamagedModel: ``tokenizer.json`` is missing, damaged, or belongs to another model.
    """

    def __init__(self, folder: Path, config: TokenizerConfig, *, vocab: int) -> None:
        library = packages.load("tokenizers")
        path = folder / TOKENIZER
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedModel(
                path,
                f"can't be read ({error.strerror}). Fetch the checkpoint again, with its fast "
                "tokenizer (tokenizer.json).",
            ) from None
        try:
            self._tokenizer = library.Tokenizer.from_buffer(data)
        except BaseException as error:  # the library's panics are no Exception
            _let_pass(error)
            raise DamagedModel(
                path, f"not a tokenizer ({error}). Fetch it again; it may be cut off."
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.named = config.named()
        self._complete(library, config, path)
        self._tokenizer.encode_special_tokens = config.split_special_tokens
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocab:
            raise DamagedModel(
                path,
                f"has ids up to {largest}, but the model has {vocab}. Use the tokenizer that "
                "belongs to this model.",
            )
        added = {key: msgspec.to_builtins(t) for key, t in config.added_tokens_decoder.items()}
        meaning = {
            "tokenizer.json": "blake3:" + blake3(data).hexdigest(),
            "named": self.named,
            "added": added,
            "split": config.split_special_tokens,
        }
        self.digest = "blake3:" + str(blake3(canonical(meaning)).hexdigest())

    def _complete(self, library: Any, config: TokenizerConfig, path: Path) -> None:
        """Mark tokens as added and special where the configuration says so, at unchanged ids."""
        known = {t.content: t for t in self._tokenizer.get_added_tokens_decoder().values()}
        wanted: dict[str, tuple[AddedToken, int | None]] = {
            text: (AddedToken(text, special=True), None) for text in self.named.values()
        }
        for id_, token in config.added_tokens_decoder.items():
            if not id_.isdecimal():
                raise DamagedModel(path.with_name(TOKENIZER_CONFIG), f"{id_!r} is not a token id.")
            wanted[token.content] = (token, int(id_))
        for text, (token, place) in wanted.items():
            found = self._tokenizer.token_to_id(text)
            if found is None or (place is not None and found != place):
                raise DamagedModel(
                    path,
                    f"does not have the token {text!r}"
                    + (f" at id {place}" if place is not None else "")
                    + f" that {TOKENIZER_CONFIG} names. Use two files that belong together.",
                )
            if text not in known:
                added = library.AddedToken(text, **token.options())
                add = self._tokenizer.add_special_tokens if token.special else None
                (add or self._tokenizer.add_tokens)([added])

    def encode(self, text: str, *, context: int) -> list[int]:
        """Return the ids of a prompt, which must leave room for one token of `context` at least.

        A text that is far too long is refused after a part of it: time is bounded by `context`.

        Raises:
            ContextLength: it does not fit.
            InputError: the tokenizer can't read this text.
        """
        # A prefix can't need twice the tokens of the whole, whatever merges happen at its end.
        prefix = 16 * context + 4096
        while prefix < len(text):
            count = len(self._ids(text[:prefix]))
            if count > 2 * context + 64:
                raise _too_long("at least ", count // 2, context)
            prefix *= 4
        ids = self._ids(text)
        if len(ids) >= context:
            raise _too_long("", len(ids), context)
        return ids

    def _ids(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except BaseException as error:  # the library's panics are no Exception
            _let_pass(error)
            raise InputError(
                f"the tokenizer can't read this text ({error}). Remove what is not plain text."
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out, broken UTF-8 replaced."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def serialised(self) -> str:
        """Return the tokenizer as used, in the format of ``tokenizer.json``."""
        return str(self._tokenizer.to_str())

    def vocabulary(self) -> dict[str, int]:
        """Return the ids of all tokens, added ones included, by their text."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def ordinary(self) -> list[int]:
        """Return the ids, ascending, of the vocabulary proper: no added or special token's."""
        added = self._tokenizer.get_added_tokens_decoder().keys()
        ids = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        return sorted(ids - added)


def template_source(folder: Path, config: TokenizerConfig) -> tuple[str, Path]:
    """Return the chat template's text and the file it is in.

    ``chat_template.jinja`` comes before ``tokenizer_config.json``, as in transformers; of several
    named templates the one called ``default`` is taken.

    Raises:
        NoTemplate: there is none.
        DamagedModel: it can't be read.
    """
    own = folder / "chat_template.jinja"
    path = folder / TOKENIZER_CONFIG
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8"), own
        except (UnicodeDecodeError, OSError) as error:
            raise DamagedModel(own, f"can't be read ({error}). Fetch the file again.") from None
    source: Any = config.chat_template
    if isinstance(source, list):
        try:
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        except (TypeError, KeyError):
            raise DamagedModel(
                path, "chat_template is not a list of names and templates. Fetch the file again."
            ) from None
    if not isinstance(source, str):
        raise NoTemplate(
            folder,
            "has no chat template, so messages can't be turned into a prompt. Use a chat model, or "
            "pass chat_template= with the template's text.",
        )
    return source, path


def _too_long(least: str, count: int, context: int) -> ContextLength:
    return ContextLength(
        f"the prompt has {least}{count} tokens; the model's context is {context} tokens, answer "
        "included. Shorten the conversation, or use a model with a longer context.",
        backend=BACKEND,
        tokens=count,
        limit=context,
    )


def _let_pass(error: BaseException) -> None:
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
