"""A job while it runs: a panel that is drawn again and again where stderr is a terminal, else a line now and then."""

import contextlib
import sys
import time
from typing import Protocol, Self

from db import activity
from db.database import Database
from db.errors import DatabaseUnavailableError
from db.queries import Job
from jobs.shown.live_panel import Glance, live_panel
from jobs.shown.one_job import progress_line, state_of
from jobs.shown.screen import Line
from jobs.shown.text import is_terminal, width_of

_LINE_INTERVAL_S = 10.0
# the panel's figures are those of one moment, and new ones are worth a few queries so often
_GLANCE_INTERVAL_S = 1.0
_AWAY = "waiting for the database"


class LiveView:
    """Shows on stderr what `update` is told of one job. A context manager, which takes the panel away at its end."""

    def __init__(self, database: Database) -> None:
        self._view: _View = _Panel(database) if is_terminal(sys.stderr) else _Lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._view.clear()

    def update(self, job: Job | None, *, is_ready: bool = True) -> None:
        """Show a job as it stands; None while the database is away. `is_ready`: the engine that runs it is loaded."""
        self._view.update(job, is_ready=is_ready)


class _View(Protocol):
    def update(self, job: Job | None, *, is_ready: bool) -> None: ...

    def clear(self) -> None: ...


class _Lines:
    """A line when the state changes, and now and then."""

    def __init__(self) -> None:
        self._said = ""
        self._said_at = float("-inf")

    def update(self, job: Job | None, *, is_ready: bool) -> None:
        state = _AWAY if job is None else state_of(job, is_ready=is_ready)
        now = time.monotonic()
        if state == self._said and now - self._said_at < _LINE_INTERVAL_S:
            return
        self._said, self._said_at = state, now
        sys.stderr.write(f"{_AWAY if job is None else progress_line(job, is_ready=is_ready)}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        pass


class _Panel:
    """Draws over what it drew before."""

    def __init__(self, database: Database) -> None:
        from rich.console import Console  # not for whoever has no terminal: it takes a while

        self._database = database
        self._console = Console(stderr=True, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._glance: Glance | None = None
        self._glanced_at = float("-inf")
        self._drawn: list[int] = []

    def update(self, job: Job | None, *, is_ready: bool) -> None:
        if job is None:
            self._draw([[(_AWAY, "")]])
            return
        now = time.monotonic()
        if self._glance is None or now - self._glanced_at >= _GLANCE_INTERVAL_S:
            with contextlib.suppress(DatabaseUnavailableError):
                self._glance = Glance(job, activity.read_activity(self._database, job), is_ready)
            self._glanced_at = now
        if self._glance is not None:  # drawn each time: the terminal may have got another size
            self._draw(live_panel(self._glance, self._console.width, self._console.height - 1))

    def _draw(self, lines: list[Line]) -> None:
        from rich.text import Text

        with self._console.capture() as drawn:
            for line in lines:
                self._console.print(Text.assemble(*line), soft_wrap=True)
        text = self._erased() + drawn.get()
        # before it is written: Ctrl-C comes in most likely while that lasts, and what stands then is to be taken away
        self._drawn = [width_of("".join(text for text, _ in line)) for line in lines]
        self._write(text)

    def clear(self) -> None:
        self._write(self._erased())
        self._drawn = []

    def _erased(self) -> str:
        """What takes away the lines drawn before. A terminal that was made narrower since has wrapped them."""
        width = max(self._console.width, 1)
        num_rows = sum(max(1, -(-cells // width)) for cells in self._drawn)
        num_rows = min(num_rows, self._console.height - 1)
        return f"\x1b[{num_rows}F\x1b[J" if num_rows > 0 else ""

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
