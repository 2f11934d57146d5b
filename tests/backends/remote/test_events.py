from hypothesis import given
from hypothesis import strategies as st

from isonomy.backends.remote.events import EventReader, Sent
from isonomy.backends.remote.pieces import REPLACEMENT, Flow, clean, whole


def read(*cuts: bytes) -> list[Sent]:
    reader = EventReader()
    return [*(event for cut in cuts for event in reader.feed(cut)), *reader.finish()]


def test_what_the_format_says() -> None:
    written = (
        b"\xef\xbb\xbf: a comment\n"
        b"data: one\n\n"
        b"event: named\r\ndata:two\r\ndata:  three\r\nid: 7\r\nretry: 5\r\n\r\n"
        b"\n\n"
        b"event: nothing said\n\n"
        b"data\rdata: x\r\r"
        b"error: {}\n\n"
        b"data: whole but for the empty line\n"
    )
    expected = [
        Sent("", b"one"),
        Sent("named", b"two\n three"),
        Sent("", b"\nx"),
        Sent("error", b"{}"),
        Sent("", b"whole but for the empty line"),
    ]
    assert read(written) == expected
    assert read(*(written[i : i + 1] for i in range(len(written)))) == expected


def test_what_is_cut_off_is_dropped() -> None:
    assert read(b"data: one\n\ndata: tw") == [Sent("", b"one")]
    assert read(b"data: one") == []
    assert read() == []


LINES = st.lists(st.sampled_from([b"data: a", b"data:b", b"event: e", b": c", b"", b"x"]))


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_every_cut_gives_the_same(lines: list[bytes], end: bytes, data: st.DataObject) -> None:
    written = b"".join(line + end for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert read(*pieces) == read(written) == read(b"".join(line + b"\n" for line in lines))


SECRETS = {"sk-secret": "[key]", "secret": "[s]"}
TEXTS = st.text(st.sampled_from("sk-ecrt \ud83d\ude00\ud83da"), max_size=40)


@given(st.lists(TEXTS, max_size=6), st.sampled_from([{}, {"sk-secret": "[key]"}]))
def test_pieces_joined_are_the_clean_text(texts: list[str], secrets: dict[str, str]) -> None:
    flow = Flow(secrets)
    pieces = [flow.push(text) for text in texts] + [flow.finish()]
    assert "".join(pieces) == clean("".join(texts), secrets)
    "".join(pieces).encode()


def test_nothing_is_held_back_without_need() -> None:
    flow = Flow(SECRETS)
    assert flow.push("ordinary text") == "ordinary text"
    assert [flow.push(c) for c in "a sk-se"] == ["a", " ", "", "", "", "", ""]
    assert flow.push("x") == "sk-sex"
    assert flow.push("s sk-secret") == "s [key]"
    assert flow.finish() == ""


def test_whole_text() -> None:
    assert whole("a\ud83d\ude00\ud83d") == "a\U0001f600" + REPLACEMENT
    assert whole("\ude00\ud83d") == REPLACEMENT * 2
    assert whole("plain \U0001f600") == "plain \U0001f600"
