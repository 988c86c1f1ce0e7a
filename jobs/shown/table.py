"""Tables for people, and the words for times in them."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from rich.console import Console

from jobs.shown.text import fit, printable, width_of

_GAP = "  "
_MIN_WIDTH = 8


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    flexible: Sequence[str] = (),
) -> None:
    """On stdout. Only `flexible` columns are cut off, in their order, and only for a narrow terminal; `numbers` stand
    on the right."""
    console = Console()
    shown = [titles, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(width_of(row[column]) for row in shown) for column in range(len(titles))]
    if console.is_terminal:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - console.width
        for column in map(titles.index, flexible):
            cut = max(0, min(excess, widths[column] - _MIN_WIDTH))
            widths[column] -= cut
            excess -= cut
    for number, row in enumerate(shown):
        cells = [
            fit(cell, width, is_number=title in numbers)
            for title, cell, width in zip(titles, row, widths, strict=True)
        ]
        # a name is shown as it is: no markup, no :emoji:
        console.print(
            _GAP.join(cells).rstrip(),
            style="bold" if number == 0 else None,
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
        )


def span(seconds: float) -> str:
    """`2 s`, `3 min`, `5 h` or `12 days`."""
    for unit_s, name, next_s in ((1, "s", 60), (60, "min", 3600), (3600, "h", 2 * 86400)):
        if seconds < next_s:
            return f"{max(0, seconds) // unit_s:.0f} {name}"
    return f"{seconds // 86400:.0f} days"


def local_minute(at: float) -> str:
    """Like `Thu 2026-11-26 02:00`, in this machine's time zone."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%a %Y-%m-%d %H:%M")
