"""A comparison as Markdown: tables, and diffs in fences that no text can leave."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from db.queries import Job
from jobs.comparison.compare import Comparison, notes_of
from jobs.comparison.examples import Example, diff_lines, shown
from jobs.comparison.figures import SCORE_TITLES, rows_of, score_rows, summary_of, verdict_of

_SIGNS = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def as_markdown(found: Comparison, tolerance: Fraction) -> str:
    return "\n".join(_lines(found, tolerance)) + "\n"


def _lines(found: Comparison, tolerance: Fraction) -> Iterator[str]:
    yield f"# {found.a.id} and {found.b.id}"
    yield ""
    yield f"**{_escaped(verdict_of(found, tolerance))}**"
    yield ""
    yield f"- A: {_job(found.a)}"
    yield f"- B: {_job(found.b)}"
    yield f"- {_escaped(summary_of(found))}"
    for note in notes_of(found):
        yield f"- {_escaped(note)}"
    if found.scores:
        yield from _heading("Scores")
        yield from _table([SCORE_TITLES, *score_rows(found)])
    yield from _heading("Figures")
    yield from _table(
        [("", "A", "B", "B - A")]
        + [(_escaped(row.name), f"{row.a:,}", f"{row.b:,}", row.delta) for row in rows_of(found)]
    )
    for title, examples, num in (
        ("Flipped", found.flipped, found.num_flipped),
        ("Changed", found.changed, found.num_changed),
    ):
        if examples:
            yield from _heading(f"{title}: {num:,}" + _first_of(examples, num))
        for example in examples:
            yield from _example(example)


def _first_of(examples: Sequence[Example], num: int) -> str:
    return f", the first {len(examples)}" if len(examples) < num else ""


def _heading(text: str) -> list[str]:
    return ["", f"## {text}", ""]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"|---|{'---:|' * (len(row) - 1)}"


def _job(job: Job) -> str:
    name = f", {_escaped(shown(job.name))}" if job.name else ""
    return f"`{job.id}`{name}, {_escaped(job.card_name)}, {_escaped(job.state)}"


def _example(example: Example) -> Iterator[str]:
    change = f": {_escaped(example.change)}" if example.change else ""
    yield f"### {_escaped(example.title)}{change}"
    yield ""
    for name, text in (("prompt", example.prompt), ("reference", example.reference)):
        if text:
            yield f"{name}:"
            yield from _fenced(shown(text).split("\n"), "text")
    yield from _fenced(diff_lines(example), "diff")


def _fenced(lines: Sequence[str], language: str) -> list[str]:
    """Fenced by more backticks than follow each other in the text."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *lines, fence, ""]


def _escaped(text: str) -> str:
    return _SIGNS.sub(r"\\\1", text.replace("\n", " "))
