"""How jobs look in a terminal: the live view, the list, the summary. Progress goes to stderr."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)

from db.queries import Job
from jobs.progress import format_time

_PLAIN_INTERVAL_S = 10.0
_TITLES = ("JOB", "NAME", "MODEL", "STATE", "DONE", "FAILED", "TOTAL", "CREATED")
_NUMBERS = ("DONE", "FAILED", "TOTAL")
_GAP = "  "
_MIN_NAME_WIDTH = 8


class LiveView:
    """A progress bar where stderr is a terminal, else a line now and then. A context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=None, rate="", start=True)
        self._console = console
        self._said_at = float("-inf")
        self._said = ""

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_terminal:
            self._progress.stop()

    def update(self, job: Job | None, *, is_ready: bool = True) -> None:
        """Show a job as it stands; None while the database is away."""
        if job is None:
            self._say("waiting for the database", "")
            return
        state = job.state.value if is_ready or job.state.is_final else "loading the engine"
        rate = _rate(job)
        if self._is_terminal:
            self._progress.update(
                self._task,
                description=state,
                total=job.counts.total,
                completed=job.counts.num_closed,
                rate=rate,
            )
        else:
            self._say(
                state,
                f"{job.counts.num_closed:,} of {job.counts.total:,} requests  {rate}",
            )

    def _say(self, state: str, text: str) -> None:
        if self._is_terminal:
            self._progress.update(self._task, description=state)
            return
        now = time.monotonic()
        if state == self._said and now - self._said_at < _PLAIN_INTERVAL_S:
            return
        self._said, self._said_at = state, now
        self._console.print(f"{state}  {text}".rstrip(), highlight=False, markup=False, soft_wrap=True)


def _rate(job: Job) -> str:
    parts = []
    if job.completion_tokens_per_s is not None:
        parts.append(f"{job.completion_tokens_per_s:,.0f} tokens/s")
    if job.eta_s is not None:
        parts.append(f"{format_duration(job.eta_s)} left")
    return ", ".join(parts)


def format_duration(seconds: float) -> str:
    """90 as `1m 30s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def _outcomes(job: Job) -> str:
    counts = job.counts
    parts = [
        ("succeeded", counts.succeeded),
        ("failed", counts.failed),
        ("cancelled", counts.cancelled),
    ]
    parts += [
        ("expired", counts.expired),
        ("running", counts.running),
        ("pending", counts.pending),
    ]
    return ", ".join(f"{number:,} {name}" for name, number in parts if number) or "no requests"


def describe(job: Job) -> str:
    """A job on a few lines."""
    lines = [
        ("job", job.id + (f"  {job.name}" if job.name else "")),
        ("model", job.card_name),
        ("state", job.state.value),
        ("requests", f"{job.counts.total:,}: {_outcomes(job)}"),
        (
            "tokens",
            f"{job.prompt_tokens:,} prompt, {job.completion_tokens:,} completion",
        ),
        ("rate", _rate(job)),
        ("created", format_time(job.created_at) or ""),
        ("started", format_time(job.started_at) or ""),
        ("finished", format_time(job.finished_at) or ""),
    ]
    return "\n".join(f"{name:10}{value}" for name, value in lines if value)


def summarize(job: Job, output: str | None = None) -> str:
    """A job that is over, in one or two lines."""
    took = ""
    if job.started_at is not None and job.finished_at is not None:
        took = f" in {format_duration(job.finished_at - job.started_at)}"
    lines = [f"{job.id} {job.state.value}{took}: {_outcomes(job)}"]
    rate = f", {job.completion_tokens_per_s:,.0f} tokens/s" if job.completion_tokens_per_s else ""
    lines.append(f"{job.prompt_tokens:,} prompt and {job.completion_tokens:,} completion tokens{rate}")
    if output is not None and output != "-":
        lines.append(f"results: {output}")
    return "\n".join(lines)


def print_jobs(jobs: Sequence[Job]) -> None:
    """A table on stdout, the jobs in the order given. Only names are cut off, and only for a narrow terminal."""
    console = Console()
    rows = [_TITLES, *(_cells(job) for job in jobs)]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(_TITLES))]
    if console.is_terminal:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - console.width
        for column in (_TITLES.index("NAME"), _TITLES.index("MODEL")):
            cut = max(0, min(excess, widths[column] - _MIN_NAME_WIDTH))
            widths[column] -= cut
            excess -= cut
    for number, row in enumerate(rows):
        cells = (_fit(title, cell, width) for title, cell, width in zip(_TITLES, row, widths, strict=True))
        # a name is shown as it is: no markup, no :emoji:
        console.print(
            _GAP.join(cells).rstrip(),
            style="bold" if number == 0 else None,
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
        )


def _cells(job: Job) -> tuple[str, ...]:
    return (
        job.id,
        "".join(letter if letter.isprintable() else "\ufffd" for letter in job.name or ""),
        job.card_name,
        job.state.value,
        f"{job.counts.succeeded:,}",
        f"{job.counts.failed:,}",
        f"{job.counts.total:,}",
        (format_time(job.created_at) or "")[:16].replace("T", " "),
    )


def _fit(title: str, text: str, width: int) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    padding = " " * (width - cell_len(text))
    return padding + text if title in _NUMBERS else text + padding
