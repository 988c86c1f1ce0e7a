"""Texts of users in a terminal: they are read, and never obeyed."""

import io
import json

import pytest
from rich.cells import cell_len

from jobs.shown.text import (
    cut,
    fit,
    format_duration,
    format_rate,
    has_styles,
    is_terminal,
    one_line,
    printable,
    printable_lines,
    safe_json,
    wrapped,
)

# what a terminal might take for a command: escape sequences, their 8-bit forms, and marks that turn text around
UNSAFE = "".join(
    map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x2028, 0x202E, 0x2066, 0xFEFF, 0xE0041])
)


def test_no_control_character_is_left() -> None:
    for letter in UNSAFE:
        assert printable(f"a{letter}b") == "a\ufffdb", hex(ord(letter))


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語", "نستعلیق\u200cها", "क्\u200dष", "👩\u200d👩\u200d👧", "x ≤ y", "e\u0301"]
)
def test_every_script_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable_lines(f"{text}\n{text}") == [text, text]


def test_blanks_of_other_scripts_are_blanks() -> None:
    assert printable("10\u00a0000\u202f€\u3000x") == "10 000 € x"


def test_a_text_keeps_its_lines_or_becomes_one() -> None:
    text = "\tone\r\ntwo\n\n\x1b[31mthree"
    assert printable_lines(text) == ["    one", "two", "", "\ufffd[31mthree"]
    assert one_line(text) == "one two \ufffd[31mthree"


@pytest.mark.parametrize("text", [UNSAFE, 'q"\\', "日本"])
def test_json_says_the_same_without_control_characters(text: str) -> None:
    shown = safe_json(json.dumps({"x": text}, ensure_ascii=False))
    assert json.loads(shown) == {"x": text}
    assert not set(UNSAFE[:64] + "\u2028\u202e\u2066").intersection(shown)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日 …"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
        ("abc", -3, ""),
    ],
)
def test_a_text_is_cut_to_cells(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown
    assert cell_len(fit(text, max(width, 0))) == max(width, 0)
    assert fit("7", 3, is_number=True) == "  7"


def test_prose_is_wrapped_by_words() -> None:
    assert wrapped("one two-three four", 12, "  ", "label ") == ["label one", "  two-three", "  four"]
    assert wrapped("one two", None, "  ", "label ") == ["label one two"]
    assert wrapped("", 12, "  ", "label ") == ["label"]
    assert wrapped("one two", 1, "    ") == ["    one two"], "some room there must be"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (90, "1m 30s"),
        (3599, "59m 59s"),
        (3600, "1h 00m"),
        (86_400 * 3 + 60, "72h 01m"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_small_rate_has_decimals() -> None:
    assert [format_rate(rate) for rate in (0.04, 3.21, 99.94, 1234.5)] == ["0.04", "3.2", "99.9", "1,234"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "drawn_over", "styled"),
    [
        ({"TERM": "xterm-256color"}, (True, False), (True, False)),
        ({"TERM": "dumb"}, (False, False), (False, False)),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, (True, False), (True, True)),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, (False, False), (True, True)),
        ({"TERM": "xterm", "NO_COLOR": "1"}, (True, False), (True, False)),
    ],
)
def test_what_a_stream_can_show(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    drawn_over: tuple[bool, bool],
    styled: tuple[bool, bool],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    streams = (_Terminal(), io.StringIO())
    assert tuple(map(is_terminal, streams)) == drawn_over
    assert tuple(map(has_styles, streams)) == styled
