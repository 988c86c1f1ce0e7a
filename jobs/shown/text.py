"""Texts of users made fit for a terminal, and numbers in words."""

import os
import re
import textwrap
import unicodedata
from typing import TextIO

from rich.cells import cell_len, set_cell_size

# It may sit within letters of some scripts, and within an emoji: without them these fall apart.
_JOINERS = "\u200c\u200d"
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class _Shown(dict[int, int]):
    """What each character is shown as, found out when it is first met."""

    def __missing__(self, code: int) -> int:
        letter = chr(code)
        if letter.isprintable() or letter in _JOINERS:
            shown = letter
        else:
            shown = " " if unicodedata.category(letter) == "Zs" else "\ufffd"
        self[code] = ord(shown)
        return self[code]


_SHOWN = _Shown()


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey: each is shown as a replacement character."""
    return text if text.isprintable() else text.translate(_SHOWN)


def printable_lines(text: str) -> list[str]:
    return [printable(line) for line in text.expandtabs(4).splitlines()]


def one_line(text: str) -> str:
    """All of a text on one line: any run of white space is one blank."""
    return printable(" ".join(text.split()))


def safe_json(text: str) -> str:
    """JSON in which the control characters that JSON allows are escaped. It says the same."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def width_of(text: str) -> int:
    """In cells of a terminal."""
    return cell_len(text)


def cut(text: str, width: int) -> str:
    """The text in at most `width` cells."""
    if width <= 0:
        return ""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def fit(text: str, width: int, *, is_number: bool = False) -> str:
    """The text in exactly `width` cells."""
    text = cut(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if is_number else text + padding


def wrapped(text: str, width: int | None, indent: str = "", first: str | None = None) -> list[str]:
    """Prose by words into lines of `width`, each after `indent`, the first one after `first` where that is given. One
    line where `width` is None."""
    first = indent if first is None else first
    if width is None:
        return [first + text]
    lines = textwrap.wrap(
        text,
        max(width, width_of(indent) + 10),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


def is_terminal(stream: TextIO) -> bool:
    """Whether what was drawn there can be drawn over."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def has_styles(stream: TextIO) -> bool:
    """Whether it takes colours and wants lines of its own width. FORCE_COLOR says yes for any stream."""
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def format_duration(seconds: float) -> str:
    """90 as `1m 30s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def format_rate(per_s: float) -> str:
    """With decimals while it is small."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2f}"


def counted(number: int, word: str) -> str:
    """`1 chunk`, `2 chunks`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
