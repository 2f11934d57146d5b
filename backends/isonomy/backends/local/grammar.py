"""Constrained output: a JSON schema or a regex as a mask over the next token.

The grammar is llguidance's; this module binds it to a checkpoint's tokenizer, and promises:

- a token is admitted exactly if its bytes can go on towards a text of the grammar. Special and
  added tokens, and ids of a padded vocabulary that no token has, never are; end tokens are where
  the text may end, and nowhere else;
- masks are a function of the tokenizer, the response format and the tokens accepted so far: no
  clock, no randomness, no cache that changes a bit. Work is bounded by counts, not by time;
- what can't be honoured is refused by name (`grammar_keys`), never ignored.

Loading it costs nothing until the first constrained request.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from isonomy.sdk.errors import InputError

from . import grammar_keys, packages
from .errors import UnusableFormat
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHITESPACE = r" ?|\n {0,24}"
"""Between JSON's marks: nothing, a blank, or a new line and its indentation. Without an end to it a
model could fill its answer with blanks."""

LIMITS = {
    "initial_lexer_fuel": 500_000,  # some 10 ms
    "step_lexer_fuel": 200_000,  # a token; some 15 ms
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""How much a grammar may cost, as counts: the same everywhere, so that a refusal is too."""

_ADMITS_NOTHING = "it admits no answer that this model's tokens can write"


class _Rules(msgspec.Struct, frozen=True):
    """A tokenizer as the library has it, and masks of uint32[ceil(vocab/32)]."""

    library: Any
    tokenizer: Any
    text: Any
    """ids of text"""
    opening: Any
    """of these, the ones whose text at the beginning of an answer is their own"""
    ends: Any
    """end tokens"""
    end_ids: frozenset[int]


class Constraints:
    """Makes constraints for one checkpoint. Safe to share between threads.

    Args:
        tokenizer: The checkpoint's.
        vocab: The model's number of ids, padding included.
        eos_ids: Tokens that end an answer; there may be none.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._eos_ids = frozenset(eos_ids)
        self._lock = threading.Lock()
        self._rules: _Rules | None = None

    def of(self, response_format: Mapping[str, Any] | None) -> Constraint | None:
        """Return the constraint of a request, at its beginning; `None` where nothing is asked for.

        Args:
            response_format: as `grammar_keys.read` takes it.

        Raises:
            UnusableFormat: it can't be honoured, admits nothing, or is too large.
            MissingExtra: llguidance is not installed.
        """
        if response_format is None:
            return None
        asked = grammar_keys.read(response_format)
        if asked.kind == "text":
            return None
        rules = self._bound()
        constraint = Constraint(rules, _matcher(rules, asked), asked.kind)
        constraint.mask()
        if constraint.finished:
            raise UnusableFormat(asked.kind, "", "it admits nothing but an empty answer")
        return constraint

    def _bound(self) -> _Rules:
        with self._lock:
            if self._rules is None:
                self._rules = self._bind()
            return self._rules

    def _bind(self) -> _Rules:
        library = packages.load("llguidance")
        ordinary = [id_ for id_ in self._tokenizer.ordinary() if id_ not in self._eos_ids]
        serialised, end = _with_end(self._tokenizer.serialised())
        try:
            tokenizer = library.LLTokenizer(
                serialised, n_vocab=max(self._vocab, end + 1), eos_token=end
            )
        except BaseException as error:  # the library's panics are no Exception
            _let_pass(error)
            raise InputError(
                f"a response format can't be forced with this checkpoint's tokenizer ({error}). "
                "Leave out response_format, or use a checkpoint whose tokens are bytes or pieces "
                "of text (byte-level or byte-fallback BPE)."
            ) from None
        opening = ordinary
        if self._drops_blanks(tokenizer, ordinary):
            opening = [i for i in ordinary if not tokenizer.decode_bytes([i]).startswith(b" ")]
        return _Rules(
            library=library,
            tokenizer=tokenizer,
            text=self._bits(ordinary),
            opening=self._bits(opening),
            ends=self._bits(id_ for id_ in self._eos_ids if 0 <= id_ < self._vocab),
            end_ids=self._eos_ids,
        )

    def _drops_blanks(self, tokenizer: Any, ordinary: list[int]) -> bool:
        """Return whether an answer's first token loses its leading blank, as in SentencePiece."""
        for id_ in ordinary:
            own = tokenizer.decode_bytes([id_])
            if own.startswith(b" ") and len(own) > 1:
                return not self._tokenizer.decode([id_]).startswith(" ")
        return False

    def _bits(self, ids: Iterable[int]) -> NDArray[np.uint32]:
        numpy = packages.load("numpy")
        flags = numpy.zeros(-(-self._vocab // 32) * 32, dtype=bool)
        flags[list(ids)] = True
        packed = numpy.packbits(flags, bitorder="little").view("<u4")
        bits: NDArray[np.uint32] = packed.astype(numpy.uint32)
        return bits


class Constraint:
    """Where one answer stands in its grammar. Not to be shared between threads; `copy` is."""

    def __init__(self, rules: _Rules, matcher: Any, kind: str) -> None:
        self._rules = rules
        self._matcher = matcher
        self._kind = kind
        self._begun = False
        self._ended = False
        self._mask: NDArray[np.uint32] | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: an end token was accepted, or nothing else can follow."""
        if self._ended:
            return True
        text = self.mask() & ~self._rules.ends
        return not text.any()

    def mask(self) -> NDArray[np.uint32]:
        """Return which tokens may come next: uint32[ceil(vocab/32)], id i at bit i%32 of word i/32.

        The array belongs to the constraint and is read-only. Where the text may end and there is no
        end token, it can be all zero: see `finished`, which is true then.

        Raises:
            UnusableFormat: nothing is admitted, or this step would cost too much.
        """
        if self._mask is None:
            self._mask = self._next()
        return self._mask

    def accept(self, token: int) -> None:
        """Go on by a token that `mask` admits.

        Raises:
            ValueError: it was not admitted. The constraint is as before.
        """
        mask = self.mask()
        if not 0 <= token < 32 * len(mask) or not mask[token // 32] >> (token % 32) & 1:
            raise ValueError(f"token {token} is not admitted here. Draw tokens by the mask.")
        if token in self._rules.end_ids:
            self._ended = True
            nothing: NDArray[np.uint32] = mask & ~mask
            nothing.flags.writeable = False
            self._mask = nothing
            return
        if not self._guarded(self._matcher.consume_token, token):
            self._fail()
        self._begun = True
        self._mask = None

    def copy(self) -> Constraint:
        """Return a constraint at the same place that goes its own way."""
        other = Constraint(self._rules, self._matcher.deep_copy(), self._kind)
        other._begun, other._ended, other._mask = self._begun, self._ended, self._mask
        return other

    def _next(self) -> NDArray[np.uint32]:
        numpy, rules = packages.load("numpy"), self._rules
        words = numpy.frombuffer(self._guarded(self._matcher.compute_bitmask), dtype="<u4")
        if self._matcher.is_error():
            self._fail()
        mask: NDArray[np.uint32] = words[: len(rules.text)] & (
            rules.text if self._begun else rules.opening
        )
        may_end = self._matcher.is_accepting()
        if may_end:
            mask |= rules.ends
        elif not mask.any():
            raise UnusableFormat(self._kind, "", _ADMITS_NOTHING)
        mask.flags.writeable = False
        return mask

    def _guarded(self, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except BaseException as error:  # the library's panics are no Exception
            _let_pass(error)
            raise UnusableFormat(self._kind, "", f"the grammar failed ({error})") from None

    def _fail(self) -> NoReturn:
        problem = _plain(self._matcher.get_error())
        if problem in ("NoExtension", "NoExtensionBias"):
            problem = _ADMITS_NOTHING
        raise UnusableFormat(self._kind, "", problem)


def version() -> str | None:
    """Return the library that makes the masks and its version; `None` where it is not installed."""
    try:
        return "llguidance " + importlib.metadata.version("llguidance")
    except importlib.metadata.PackageNotFoundError:
        return None


def _with_end(serialised: str) -> tuple[str, int]:
    """Add an end token of the library's own, and return its id.

    It needs one; ours are none, one or several, and set by hand. This one is outside of the
    vocabulary proper, so no mask has it.
    """
    tokenizer = msgspec.json.decode(serialised)
    added = tokenizer["added_tokens"]
    vocab = tokenizer["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    end = 1 + max([-1, *ids, *(token["id"] for token in added)])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": end, "content": "<|end of the grammar\0|>", **flags, "special": True})
    return msgspec.json.encode(tokenizer).decode(), end


def _grammar(library: Any, asked: grammar_keys.Format) -> str:
    """Return a grammar in the library's own language.

    ``no_forcing``: else, where only one text can follow, the library admits its usual tokens only.
    """
    if asked.kind == "regex":
        written = msgspec.json.decode(library.grammar_from_regex(asked.source))
        start: str = written["grammars"][0]["lark_grammar"]
    else:
        options = {"whitespace_pattern": WHITESPACE, "coerce_one_of": False, "lenient": False}
        schema = msgspec.json.decode(asked.source) | {"x-guidance": options}
        start = "start: %json " + msgspec.json.encode(schema).decode()
    return '%llguidance {"no_forcing": true}\n' + start


def _matcher(rules: _Rules, asked: grammar_keys.Format) -> Any:
    library = rules.library.LLMatcher
    try:
        grammar = _grammar(library, asked)
        limits = rules.library.LLParserLimits(**LIMITS)
        wrong, messages = library.validate_grammar_with_warnings(
            grammar, rules.tokenizer, limits=limits
        )
        matcher = library(rules.tokenizer, grammar, log_level=0, limits=limits)
    except BaseException as error:  # the library's panics are no Exception
        _let_pass(error)
        raise UnusableFormat(asked.kind, "", _plain(str(error))) from None
    if wrong or messages or matcher.is_error():
        raise UnusableFormat(
            asked.kind, "", _plain(messages[0] if messages else matcher.get_error())
        )
    return matcher


def _plain(text: str) -> str:
    """Return what a message of the library says, without what it quotes and its own advice."""
    lines = text.partition("\n<state>")[0].split("\n")
    says = next((line for line in lines if line.startswith("error: ")), lines[0])
    says = says.removeprefix("error: ").rpartition("failed to compile JSON schema: ")[2]
    says = says.partition(". Enable ")[0]
    return says if len(says) <= 300 else says[:120] + " ... " + says[-160:]


def _let_pass(error: BaseException) -> None:
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
