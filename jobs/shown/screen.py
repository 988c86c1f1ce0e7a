"""Lines of styled pieces, written to stdout: with their styles where it is a terminal, as plain text elsewhere."""

import sys
from collections.abc import Iterable

from jobs.shown.text import has_styles

# A text and its style, in rich's words: bold, dim, green, red, cyan, or empty.
Piece = tuple[str, str]
Line = list[Piece]

PLAIN = ""
TITLE = "bold"
FAINT = "dim"
GOOD = "green"
BAD = "red"
MOVING = "cyan"


def plain(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()


class Screen:
    """stdout. rich, which takes a while to import, is there only for a terminal."""

    def __init__(self) -> None:
        self._console = None
        if has_styles(sys.stdout):
            from rich.console import Console

            self._console = Console(force_terminal=True, highlight=False, markup=False, emoji=False)

    @property
    def width(self) -> int | None:
        """In cells, at this moment; None where there is no terminal, and nothing is to be cut."""
        return None if self._console is None else self._console.width

    def write(self, lines: Iterable[Line]) -> None:
        """Each is there as soon as it is written."""
        for line in lines:
            if self._console is None:
                sys.stdout.write(plain(line) + "\n")
                sys.stdout.flush()
            else:
                from rich.text import Text

                text = Text.assemble(*line)
                text.rstrip()
                self._console.print(text, soft_wrap=True)
