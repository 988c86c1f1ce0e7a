"""A comparison for a terminal."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from db.queries import Job
from jobs.comparison.compare import Comparison
from jobs.comparison.examples import Example, diff_lines, shown
from jobs.comparison.figures import SCORE_TITLES, rows_of, score_rows, summary_of, verdict_of

_NUM_EXAMPLES = 3
_NUM_DIFF_LINES = 12
_NUM_FLIPS = 10


def as_text(found: Comparison, tolerance: Fraction) -> str:
    """The figures, and the first few examples; the files hold more."""
    return "\n".join(_lines(found, tolerance))


def _lines(found: Comparison, tolerance: Fraction) -> Iterator[str]:
    yield _job_line("A", found.a)
    yield _job_line("B", found.b)
    yield summary_of(found)
    yield ""
    rows = [("", "A", "B", "B - A")]
    rows += [(row.name, f"{row.a:,}", f"{row.b:,}", row.delta) for row in rows_of(found)]
    yield from _table(rows)
    if found.scores:
        yield ""
        yield from _table([SCORE_TITLES, *score_rows(found)])
    yield from _flips(found)
    for example in found.changed[:_NUM_EXAMPLES]:
        yield ""
        yield from _change(example)
    if found.num_changed > _NUM_EXAMPLES:
        yield f"… and {found.num_changed - _NUM_EXAMPLES:,} more changed; --html FILE and --markdown FILE show more"
    yield ""
    yield verdict_of(found, tolerance)


def _job_line(letter: str, job: Job) -> str:
    name = f"  {shown(job.name)}" if job.name else ""
    return f"{letter}  {job.id}{name}  {job.card_name}  {job.state}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def _flips(found: Comparison) -> Iterator[str]:
    if not found.flipped:
        return
    yield ""
    yield "flipped"
    for example in found.flipped[:_NUM_FLIPS]:
        yield f"  {example.title}  {example.change}"
    if found.num_flipped > _NUM_FLIPS:
        yield f"  … and {found.num_flipped - _NUM_FLIPS:,} more"


def _change(example: Example) -> Iterator[str]:
    yield f"{example.title}  {example.change}".rstrip()
    lines = diff_lines(example)
    yield from (f"  {line}" for line in lines[:_NUM_DIFF_LINES])
    if len(lines) > _NUM_DIFF_LINES:
        yield "  …"
