"""Texts that checks meet: ordinary ones, hostile ones, and shapes that grow."""

from __future__ import annotations

from collections.abc import Callable

ORDINARY: tuple[str, ...] = (
    "",
    " ",
    "a",
    "Hello",
    "Where is my order 4821?",
    "Thank you! See https://example.org/help?id=3 or write to jo@example.org.",
    "First line.\nSecond line.\n\n- a list\n- of things\n",
    '{"answer": 42, "words": ["a", "b"]}',
    "Grüße aus Köln, élève naïve; 東京は晴れです。 Привет, как дела? שלום עולם",
    "Call +49 30 901820 or pay 4111 1111 1111 1111.",
)
"""What everybody writes."""

HOSTILE: dict[str, str] = {
    "control characters": "a\x00b\x01c\x07d\x08e\x1b[31mf\x7fg\x85h\x9bi\r\nj\x0bk\x0cl",
    "bidirectional controls": "user\u202egnp.exe\u202c \u2066\u2067x\u2069\u2069\u200e\u200f",
    "right-to-left text": "שלום עולם 123 مرحبا بالعالم",
    "combining marks": "e\u0301" + "o" + "\u0300\u0301\u0302\u0303" * 60,
    "joined emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ✈️",
    "invisible characters": "pass\u200bword\u200c \u200d\u2060\ufeff\u00ad\u180e\u3164",
    "lookalike letters": "раyраl аdmіn ｐａｓｓｗｏｒｄ ① ² ﬁ ſ İ ı ß ẞ ǅ",
    "the last code points": "\ufffe\uffff\U0010ffff\U000e0001\U000f0000\ue000\ufffd",
    "other spaces and lines": "a\u00a0b\u2003c\u2028d\u2029e\u3000f\u1680g",
    "other digits": "٠١٢٣٤٥ ०१२३ １２３ 𝟙𝟚𝟛 ⅷ",
    "markup": "<script>alert(1)</script> <!-- --> &amp; [x](javascript:x) ![](data:,) `'\"",
    "a template": "{{7*7}} ${x} %s %n {0} {x.__class__} $(id) `id` %%% \\1 \\g<0>",
    "half of JSON": '{"a": [1, {"b": "\\u',
    "strange JSON": '{"a": NaN, "a": 1e999, "b": "\\ud800"} [[[[[[[]]]]]]] -0',
    "deep nesting": '{"a":' * 3000 + "[" * 3000,
    "only newlines": "\n" * 50,
    "a long line": "word " * 2000,
    "a long word": "x" * 10_000,
}
"""What somebody writes to make a check fail; UTF-8 can carry all of it."""

GROWING: dict[str, Callable[[int], str]] = {
    "one letter repeated": lambda n: "a" * n,
    "one letter repeated, then another": lambda n: "a" * (n - 1) + "!",
    "spaces": lambda n: " " * n,
    "spaces, then a letter": lambda n: " " * (n - 1) + "x",
    "digits": lambda n: "1" * n,
    "words": lambda n: ("word " * (n // 5 + 1))[:n],
    "pairs of letters": lambda n: ("ab" * (n // 2 + 1))[:n],
    "at signs": lambda n: ("a@" * (n // 2 + 1))[:n],
    "dots": lambda n: ("a." * (n // 2 + 1))[:n],
    "slashes and colons": lambda n: ("http://" * (n // 7 + 1))[:n],
    "opening brackets": lambda n: "[" * n,
    "opening braces": lambda n: ('{"a":' * (n // 5 + 1))[:n],
    "opening tags": lambda n: ("<a " * (n // 3 + 1))[:n],
    "quotes": lambda n: '"' * n,
    "backslashes": lambda n: "\\" * n,
    "dashes": lambda n: "-" * n,
    "newlines": lambda n: "\n" * n,
    "combining marks": lambda n: "e" + "\u0301" * (n - 1),
    "joiners": lambda n: ("👩\u200d" * (n // 2 + 1))[:n],
    "letters of another script": lambda n: ("шо" * (n // 2 + 1))[:n],
}
"""Texts of any length at which matching by trial takes more than linear time."""
