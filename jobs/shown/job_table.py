"""Many jobs as a table: with bars, and as wide as the terminal; or plain columns, always the same ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from db.queries import Job
from db.states import JobState
from jobs.progress import format_time
from jobs.shown.bar import PERCENT_WIDTH, bar, percent
from jobs.shown.screen import BAD, GOOD, MOVING, PLAIN, TITLE, Line, Screen
from jobs.shown.text import fit, format_duration, printable, width_of

_GAP = "  "
_MIN_BAR, _MAX_BAR = 4, 30
_MIN_CUT_WIDTH = 16
_STATE_STYLES = {JobState.COMPLETED: GOOD, JobState.IN_PROGRESS: MOVING}


@dataclass(frozen=True)
class _Column:
    """The higher its `rank`, the sooner a narrow terminal goes without it; 0 is always there. `least_width`: what it
    can be cut to, None for not at all."""

    title: str
    text: Callable[[Job], str]
    rank: int = 0
    is_number: bool = False
    least_width: int | None = None

    def natural_width(self, jobs: Sequence[Job]) -> int:
        return max(width_of(text) for text in (self.title, *map(self.text, jobs)))


def _created(job: Job) -> str:
    return (format_time(job.created_at) or "")[:16].replace("T", " ")


def _labels(job: Job) -> str:
    return printable(",".join(f"{key}={value}" for key, value in sorted(job.labels.items())))


def _left(job: Job) -> str:
    return "" if job.eta_s is None else format_duration(job.eta_s)


_ID = _Column("JOB", lambda job: job.id)
_NAME = _Column("NAME", lambda job: printable(job.name or ""), 3, least_width=_MIN_CUT_WIDTH)
_MODEL = _Column("MODEL", lambda job: job.card_name, 8, least_width=_MIN_CUT_WIDTH)
_STATE = _Column("STATE", lambda job: job.state.value)
_WIDEST_BAR = " " * (_MAX_BAR + PERCENT_WIDTH)
_PROGRESS = _Column("PROGRESS", lambda _: _WIDEST_BAR, 1, least_width=_MIN_BAR + PERCENT_WIDTH)
_LEFT = _Column("LEFT", _left, 4, is_number=True)
_DONE = _Column("DONE", lambda job: f"{job.counts.succeeded:,}", is_number=True)
_FAILED = _Column("FAILED", lambda job: f"{job.counts.failed:,}", 2, is_number=True)
_TOTAL = _Column("TOTAL", lambda job: f"{job.counts.total:,}", 5, is_number=True)
_LABELS = _Column("LABELS", _labels, 6, least_width=_MIN_CUT_WIDTH)
_CREATED = _Column("CREATED", _created, 7)
_OF_TERMINAL = (_ID, _NAME, _MODEL, _STATE, _PROGRESS, _LEFT, _FAILED, _TOTAL, _CREATED, _LABELS)
# programs take these apart: none goes, none is added, none is cut
_PLAIN = (_ID, _NAME, _MODEL, _STATE, _DONE, _FAILED, _TOTAL, _CREATED, _LABELS)


def print_jobs(jobs: Sequence[Job]) -> None:
    """On stdout, in the order given."""
    screen = Screen()
    screen.write(job_table(jobs, screen.width))


def job_table(jobs: Sequence[Job], width: int | None) -> list[Line]:
    """A line of titles and one for each job. A `width` of None is no terminal."""
    widths = _whole(jobs) if width is None else _fitted(jobs, width)
    titles = [[(fit(one.title, width, is_number=one.is_number), TITLE)] for one, width in widths.items()]
    rows = [[_cell(column, job, width) for column, width in widths.items()] for job in jobs]
    return [_joined(row) for row in (titles, *rows)]


def _whole(jobs: Sequence[Job]) -> dict[_Column, int]:
    return {column: column.natural_width(jobs) for column in _PLAIN}


def _fitted(jobs: Sequence[Job], width: int) -> dict[_Column, int]:
    """The columns for which there is room and that have something to say, with their widths."""
    natural = {column: column.natural_width(jobs) for column in _OF_TERMINAL}
    widths: dict[_Column, int] = {}
    room = width + len(_GAP)
    for column in sorted(_OF_TERMINAL, key=lambda column: column.rank):
        least = min(natural[column], column.least_width or natural[column])
        is_empty = bool(jobs) and not any(map(column.text, jobs))
        if column.rank == 0 or (not is_empty and least + len(_GAP) <= room):
            widths[column] = least
            room -= least + len(_GAP)
    while room > 0 and (growing := [column for column in widths if widths[column] < natural[column]]):
        for column in growing[:room]:
            widths[column] += 1
        room -= len(growing)
    return {column: widths[column] for column in _OF_TERMINAL if column in widths}


def _cell(column: _Column, job: Job, width: int) -> Line:
    if column is _PROGRESS:
        return [*bar(job.counts, width - PERCENT_WIDTH), (percent(job.counts), PLAIN)]
    style = PLAIN
    if column is _STATE:
        style = _STATE_STYLES.get(job.state, PLAIN)
    elif column is _FAILED and job.counts.failed:
        style = BAD
    return [(fit(column.text(job), width, is_number=column.is_number), style)]


def _joined(cells: Sequence[Line]) -> Line:
    first, *rest = cells
    return [*first, *(piece for cell in rest for piece in [(_GAP, PLAIN), *cell])]
