"""Constraints: which tokens a response format admits, and which formats are refused by name."""

import json
import random
import re
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from isonomy.backends.local import grammar, grammar_keys, packages, tokenizer
from isonomy.backends.local.errors import UnusableFormat
from isonomy.backends.local.shipped import FOLDER
from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import InputError, MissingExtra

VOCAB = 1601  # the demo's tokenizer has 1536 ids; the rest is padding, and no multiple of 32
EOS = frozenset((1533, 1535))


@pytest.fixture(scope="module")
def tokens():
    return tokenizer.Tokenizer(FOLDER, tokenizer.read_config(FOLDER), vocab=VOCAB)


@pytest.fixture(scope="module")
def constraints(tokens):
    return grammar.Constraints(tokens, VOCAB, EOS)


KEYWORDS = st.sampled_from(
    sorted(
        grammar_keys.ASSERTIONS
        | grammar_keys.SCHEMA
        | grammar_keys.SCHEMAS
        | grammar_keys.NAMED_SCHEMAS - {"properties"}
        | {"title", "not"}
    )
)


def schema(value):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}


def regex(text):
    return {"type": "regex", "regex": text}


def admitted(constraint):
    mask = constraint.mask()
    assert mask.dtype == np.uint32
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def answer(constraint, seed, *, most=400):
    """Draw tokens evenly among the admitted ones, ending as soon as that is possible."""
    draw, ids = random.Random(seed), []
    while not constraint.finished and len(ids) < most:
        choices = admitted(constraint)
        token = min(choices & EOS) if choices & EOS else draw.choice(sorted(choices))
        constraint.accept(token)
        ids.append(token)
    return [token for token in ids if token not in EOS]


def test_masks_are_exactly_those_of_a_finite_language(constraints, tokens):
    words = ["yes", "yes please", "no", "nothing at all", "né", "0", "00", "007"]
    alphabet = _bytes_of_letters()
    spelling = {
        id_: bytes(alphabet[letter] for letter in tokens._tokenizer.id_to_token(id_))
        for id_ in tokens.ordinary()
    }
    encoded = [word.encode() for word in words]
    begin = constraints.of(regex("|".join(re.escape(word) for word in words)))
    seen = set()

    def visit(constraint, written):
        if written in seen:
            return
        seen.add(written)
        expected = {
            id_
            for id_, text in spelling.items()
            if any(word.startswith(written + text) for word in encoded)
        }
        ends = EOS if written in encoded else set()
        assert admitted(constraint) == expected | ends
        assert constraint.finished == (not expected)
        for id_ in sorted(expected):
            deeper = constraint.copy()
            deeper.accept(id_)
            visit(deeper, written + spelling[id_])

    visit(begin, b"")
    assert set(encoded) <= seen


def _bytes_of_letters():
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


SCHEMAS = (
    (
        {
            "type": "object",
            "properties": {
                "verdict": {"enum": ["ship", "hold"]},
                "count": {"type": "integer", "minimum": 3, "maximum": 12},
                "late": {"type": "boolean"},
            },
            "required": ["verdict", "count"],
            "additionalProperties": False,
        },
        lambda value: (
            value["verdict"] in ("ship", "hold")
            and 3 <= value["count"] <= 12
            and type(value["count"]) is int
            and value.keys() <= {"verdict", "count", "late"}
            and type(value.get("late", True)) is bool
        ),
    ),
    (
        {
            "type": "array",
            "items": {"type": "string", "maxLength": 3},
            "minItems": 2,
            "maxItems": 4,
        },
        lambda value: 2 <= len(value) <= 4 and all(len(item) <= 3 for item in value),
    ),
    (
        {"type": "string", "pattern": "^[a-c]+-[0-9]{2}$"},
        lambda v: re.fullmatch("[a-c]+-\\d\\d", v),
    ),
    ({"type": "string", "format": "date"}, lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v)),
    (
        {"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 999},
        lambda value: 8 <= value <= 999 and value % 7 == 0,
    ),
    (
        {"type": "number", "multipleOf": 0.25, "minimum": 0, "exclusiveMaximum": 3},
        lambda value: 0 <= value < 3 and value * 4 == int(value * 4),
    ),
    (
        {
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {
                        "leaf": {"type": "null"},
                        "below": {
                            "type": "array",
                            "items": {"$ref": "#/$defs/tree"},
                            "maxItems": 1,
                        },
                    },
                    "required": ["leaf"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/tree",
        },
        lambda value: value["leaf"] is None,
    ),
    (
        {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 5},
            "properties": {"x": {"type": "boolean"}},
            "required": ["x"],
            "minProperties": 1,
            "maxProperties": 2,
        },
        lambda value: (
            1 <= len(value) <= 2
            and all(type(v) is bool if k == "x" else 1 <= v <= 5 for k, v in value.items())
        ),
    ),
    (
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
        lambda value: value in (3, 4, 5),
    ),
    ({"anyOf": [{"const": "a"}, {"const": 1.0}]}, lambda value: value in ("a", 1)),
    (
        {"enum": [1, "one", [1], None, {"b": 1, "a": 2}]},
        lambda v: v in (1, "one", [1], None, {"b": 1, "a": 2}),
    ),
    (True, lambda value: True),
)


@pytest.mark.parametrize(("asked", "holds"), SCHEMAS)
def test_every_finished_answer_is_valid(constraints, tokens, asked, holds):
    finished = 0
    for seed in range(25):
        constraint = constraints.of(schema(asked))
        ids = answer(constraint, seed)
        if constraint.finished:
            finished += 1
            assert holds(json.loads(tokens.decode(ids)))
    assert finished >= 10


def test_a_json_object_is_an_object(constraints, tokens):
    for seed in range(60):
        constraint = constraints.of({"type": "json_object"})
        ids = answer(constraint, seed)
        if constraint.finished:
            assert isinstance(json.loads(tokens.decode(ids)), dict)
            return
    pytest.fail("no answer came to an end")


def test_blanks_between_marks_come_to_an_end(constraints, tokens):
    constraint = constraints.of(schema({"type": "array", "items": {"type": "null"}}))
    for token in tokens.encode("[\n", context=100):
        constraint.accept(token)
    blank = tokens.encode(" ", context=100)[0]
    for _ in range(30):
        if blank not in admitted(constraint):
            return
        constraint.accept(blank)
    pytest.fail("blanks without an end")


def test_masks_are_the_same_bits_however_they_come_about(tokens):
    asked = (
        schema(SCHEMAS[0][0]),
        schema(SCHEMAS[5][0]),
        {"type": "json_object"},
        regex("[a-z]{2,9}( [A-Z]?[a-z]{1,7}){2,5}[.!]"),
    )
    warm = grammar.Constraints(tokens, VOCAB, EOS)
    for response_format in asked:
        ids = answer(warm.of(response_format), 5)
        runs = []
        for shared in (warm, warm, grammar.Constraints(tokens, VOCAB, EOS)):
            constraint, masks = shared.of(response_format), []
            for token in ids:
                masks.append(constraint.mask().tobytes())
                constraint.copy().accept(token)  # a copy that goes ahead changes nothing
                constraint = constraint.copy()
                constraint.accept(token)
            runs.append(masks)
        plain = packages.load("llguidance").LLTokenizer(
            grammar._with_end(tokens.serialised())[0], slices=[], n_vocab=VOCAB, eos_token=1536
        )
        rules = warm._bound()
        unsliced = grammar._Rules(
            rules.library, plain, rules.text, rules.opening, rules.ends, rules.end_ids
        )
        matcher = grammar._matcher(unsliced, grammar_keys.read(response_format))
        constraint, masks = grammar.Constraint(unsliced, matcher, ""), []
        for token in ids:
            masks.append(constraint.mask().tobytes())
            constraint.accept(token)
        assert runs[0] == runs[1] == runs[2] == masks


def test_a_schema_from_a_record_gives_the_same_grammar():
    asked = {
        "type": "object",
        "required": ["zeta", "alpha"],
        "properties": {
            "middle": {"const": 2.0, "description": "two"},
            "alpha": {"multipleOf": 0.5},
            "zeta": {},
        },
    }
    recorded = json.loads(json.dumps(asked, sort_keys=True).replace("2.0", "2"))
    one, other = grammar_keys.read(schema(asked)), grammar_keys.read(schema(recorded))
    assert one == other
    assert list(json.loads(one.source)["properties"]) == ["zeta", "alpha", "middle"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(value=JSON, names=st.lists(st.sampled_from("abcde"), unique=True), keyword=KEYWORDS)
def test_what_a_record_gives_back_is_read_the_same(value, names, keyword):
    def reading(asked):
        try:
            return grammar_keys.read(asked)
        except UnusableFormat as error:
            return str(error)

    properties = {name: {keyword: value} for name in reversed(names)}
    asked = schema({"required": names, "properties": properties, keyword: value})
    assert reading(msgspec.json.decode(canonical(asked))) == reading(asked)


def test_special_added_and_padded_ids_are_never_admitted(constraints, tokens):
    anything = constraints.of(regex("(.|\n)+"))
    assert admitted(anything) <= set(tokens.ordinary())
    for token in tokens.encode("<|im_start|>", context=100):
        assert token not in admitted(anything)
    anything.accept(tokens.encode("a", context=100)[0])
    assert admitted(anything) - set(tokens.ordinary()) == EOS


def test_without_end_tokens_an_answer_is_finished_where_nothing_can_follow(tokens):
    constraint = grammar.Constraints(tokens, VOCAB, ()).of(regex("ab?"))
    a, b = (tokens.encode(letter, context=100)[0] for letter in "ab")
    constraint.accept(a)
    assert not constraint.finished
    assert b in admitted(constraint)
    constraint.accept(b)
    assert constraint.finished
    assert admitted(constraint) == set()


def test_an_end_token_ends_and_only_admitted_tokens_are_accepted(constraints, tokens):
    constraint = constraints.of(regex("ab?"))
    a, b = (tokens.encode(letter, context=100)[0] for letter in "ab")
    for wrong in (b, 1533, -1, VOCAB, 10**9):
        with pytest.raises(ValueError, match="not admitted"):
            constraint.accept(wrong)
    constraint.accept(a)
    before = admitted(constraint)
    with pytest.raises(ValueError, match="not admitted"):
        constraint.accept(a)
    assert admitted(constraint) == before
    constraint.accept(1535)
    assert constraint.finished
    assert admitted(constraint) == set()


def test_nothing_is_asked_for(constraints):
    assert constraints.of(None) is None
    assert constraints.of({"type": "text"}) is None


@pytest.mark.parametrize(
    ("response_format", "feature", "words"),
    [
        ({}, "type", "unknown"),
        ({"type": "json"}, "type", "'json' is unknown"),
        ({"type": ["text"]}, "type", "unknown"),
        ({"type": "json_object", "schema": {}}, "schema", "the key schema"),
        ({"type": "json_schema"}, "json_schema", "missing"),
        ({"type": "json_schema", "json_schema": {}}, "schema", "missing"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}, "x", "json_schema.x"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "name": 5}}, "name", "a string"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}},
            "strict",
            "true or",
        ),
        ({"type": "json_schema", "json_schema": {"schema": [1]}}, "", "an object or a boolean"),
        ({"type": "regex", "regex": 3}, "regex", "a string"),
        ({"type": "regex", "pattern": "a"}, "pattern", "the key pattern"),
        (regex(""), "", "nothing but an empty answer"),
        (regex("[^\\s\\S]"), "", "admits no answer"),
        (regex("(?=a)b"), "", "look-around"),
        (regex("(a)\\1"), "", "backreferences"),
        (regex("a|("), "", "unclosed group"),
        (regex("\ud800"), "", "surrogate"),
        (schema(False), "schema", "admits nothing"),
        (schema({"$ref": "#"}), "", "admits no answer"),
        (schema({"enum": []}), "", "Unsatisfiable"),
        (schema({"type": "string", "minLength": 5, "maxLength": 3}), "", "minLength"),
        (schema({"type": "objekt"}), "", "objekt"),
        (schema({"type": "object", "requierd": []}), "requierd", "'requierd'"),
        (schema({"anyOf": [{"not": {}}]}), "not", r"schema.anyOf\[0\]"),
        (schema({"properties": {"not": {"uniqueItems": True}}}), "uniqueItems", "properties.not"),
        (schema({"x-guidance": {"lenient": True}, "type": "null"}), "x-guidance", "x-guidance"),
        (schema({"type": "string", "format": "colour"}), "", "colour"),
        (schema({"type": "string", "pattern": "(?!a)"}), "", "look-around"),
        (schema({"oneOf": [{"type": "integer"}, {"minimum": 3}]}), "", "oneOf"),
        (schema({"$ref": "https://example.com/schema.json"}), "", "not fetch"),
        (schema({"$ref": "#/$defs/missing"}), "", "/\\$defs/missing"),
        (schema({"const": 2**53 + 2}), "", "2\\*\\*53"),
        (schema({"enum": [1, [float("nan")]]}), "", "no JSON number"),
        (schema({"const": {1: 2}}), "", "keys are strings"),
        (schema({"const": b"bytes"}), "", "no JSON value"),
        (schema({"minProperties": 2}), "minProperties", "counts once"),
        (schema({"multipleOf": 0}), "multipleOf", "above 0"),
        (schema({"items": [{}]}), "", "an object or a boolean"),
        (schema({"anyOf": {}}), "anyOf", "list of schemas"),
        (schema({"properties": []}), "properties", "object of schemas"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(constraints, response_format, feature, words):
    with pytest.raises(UnusableFormat, match=words) as caught:
        constraints.of(response_format)
    assert caught.value.feature == feature
    assert isinstance(caught.value, InputError)
    assert str(caught.value).endswith("Change it, or leave out response_format.")


def _nested(depth):
    value = {"type": "integer"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


def _nested_value(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return {"const": value}


@pytest.mark.parametrize(
    "response_format",
    [
        regex("a" * (grammar_keys.MOST_BYTES + 1)),
        regex("(" * 5000 + "a" + ")" * 5000),
        schema(_nested(grammar_keys.MOST_DEPTH + 1)),
        schema(_nested(100_000)),
        schema(_nested_value(100_000)),
        schema({"enum": [str(number) for number in range(60_000)]}),
        schema({"type": "integer", "multipleOf": 999_983}),
        schema({"type": "number", "multipleOf": 1e-9}),
        schema({"allOf": [{"type": "number", "multipleOf": m} for m in (997.3, 996.7)]}),
        schema(
            {
                "allOf": [{"multipleOf": 97}, {"$ref": "#/$defs/m"}],
                "$defs": {"m": {"multipleOf": 107}},
            }
        ),
        schema({"allOf": [{"type": "integer", "multipleOf": m} for m in (997, 991, 983, 977)]}),
    ],
    ids=lambda value: value["type"],
)
def test_hostile_grammars_are_refused(constraints, response_format):
    with pytest.raises(UnusableFormat):
        constraints.of(response_format)


@pytest.mark.parametrize("text", ["a{1000000}", "((a{1000}){1000}){1000}", "[ab]*a[ab]{300}c"])
def test_what_is_long_is_worked_out_on_the_way(constraints, text):
    assert len(answer(constraints.of(regex(text)), 1, most=100)) == 100


def test_a_grammar_that_grows_too_large_on_the_way_is_refused_there(constraints, monkeypatch):
    monkeypatch.setitem(grammar.LIMITS, "max_lexer_states", 60)
    constraint = constraints.of(regex("[ab]*a[ab]{60}c"))
    with pytest.raises(UnusableFormat, match="regex"):
        answer(constraint, 3)


def test_only_tokenizers_of_pieces_of_text_will_do(tmp_path):
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(
        str(tmp_path / "tokenizer.json")
    )
    words = tokenizer.Tokenizer(tmp_path, tokenizer.TokenizerConfig(), vocab=2)
    with pytest.raises(InputError, match="this checkpoint's tokenizer"):
        grammar.Constraints(words, 2, ()).of(regex("a"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Give a tokenizer as SentencePiece makes them: a leading blank of the text gets lost."""
    folder = tmp_path_factory.mktemp("pieces")
    texts = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "a",
        "b",
        "▁b",
    ]
    library = Tokenizer(
        models.BPE(
            {text: id_ for id_, text in enumerate(texts)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(
        [AddedToken("<unk>", special=True), AddedToken("</s>", special=True)]
    )
    library.save(str(folder / "tokenizer.json"))
    return tokenizer.Tokenizer(folder, tokenizer.TokenizerConfig(), vocab=len(texts))


def test_a_first_blank_that_would_get_lost_is_not_admitted(pieces):
    id_of = pieces._tokenizer.token_to_id
    constraints = grammar.Constraints(pieces, 264, {1})
    constraint = constraints.of(regex("[ ab]{2,3}"))
    assert id_of("▁a") not in admitted(constraint)
    assert {id_of("a"), id_of("b"), id_of("<0x61>")} <= admitted(constraint)
    constraint.accept(id_of("a"))
    assert {id_of("▁a"), id_of("▁b"), id_of("▁")} <= admitted(constraint)
    constraint.accept(id_of("▁b"))
    assert pieces.decode([id_of("a"), id_of("▁b")]) == "a b"
    with pytest.raises(UnusableFormat, match="admits no answer"):
        constraints.of(regex(" a"))


def test_the_missing_package_is_named_with_its_extra(tokens, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match="llguidance") as caught:
        grammar.Constraints(tokens, VOCAB, EOS).of({"type": "json_object"})
    assert caught.value.extra == "local"
