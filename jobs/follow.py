"""Results as they finish, until their job is over: `results --follow`, and what `tail` reads."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from db import outcomes, queries, recovery
from db.database import Database
from db.errors import DatabaseUnavailableError, OutputError, SettingsError, why
from db.outcomes import Extent, Outcome
from db.queries import Job
from db.states import JobState
from jobs.export import ExportOptions, line_form
from jobs.forms import LINES
from jobs.output import check_output, is_stream, stdout_bytes

_POLL_S = 0.5


def follow_outcomes(
    database: Database,
    job_id: str,
    after: int,
    *,
    with_bodies: bool = False,
    ran_only: bool = False,
    poll_s: float = _POLL_S,
) -> Iterator[Outcome | None]:
    """A job's outcomes with a position above `after`, in the order in which they finish, to the job's end; None
    whenever there is nothing more for now. A database that is away is waited for. `ran_only`: without those that the
    job's end brings to requests that never ran."""
    while True:
        extent: Extent | None = None
        try:
            extent = outcomes.read_extent(database, job_id)
            if extent.state is JobState.CANCELLING:
                recovery.end_cancel_without_workers(database, job_id)
            for outcome in outcomes.iterate_finished(
                database, extent, after, with_bodies=with_bodies, ran_only=ran_only
            ):
                after = outcome.position or after
                yield outcome
        except DatabaseUnavailableError:
            extent = None
        yield None
        if extent is not None and extent.state.is_final:
            # deleted meanwhile, it lacks rows
            queries.get_job(database, job_id)
            return
        time.sleep(poll_s)


class Follower:
    """Writes a job's outcomes in the order in which they finish, each line as soon as it can be.

    `position` is that of the last outcome that was written or passed over: where another follower goes on with
    `after`. A file is written as it grows, not under another name: it must be new or empty, or is continued when there
    is an `after`.
    """

    def __init__(
        self, database: Database, job: Job, path: str, options: ExportOptions, poll_s: float = _POLL_S
    ) -> None:
        if options.form not in LINES:
            raise SettingsError(
                f"--follow writes line by line, and {options.form} has no lines; {', '.join(LINES)} have"
            )
        if options.errors_path is not None:
            raise SettingsError(
                "--follow writes failed requests where the others go; leave out --errors-output"
            )
        self.position = options.after
        self._database = database
        self._job = job
        self._path = path
        self._options = options
        self._poll_s = poll_s

    def run(self) -> int:
        """Follow to the job's end; the number of outcomes written. A database that is away is waited for."""
        begin, format_one = line_form(self._database, self._job, self._options)
        num = 0
        with _growing(self._path, is_continued=self._options.after > 0) as (file, is_empty):
            if is_empty and (self._options.after == 0 or not is_stream(self._path)):
                file.write(begin)
            found = follow_outcomes(
                self._database,
                self._job.id,
                self.position,
                with_bodies=self._options.with_bodies,
                poll_s=self._poll_s,
            )
            for outcome in found:
                if outcome is None:
                    file.flush()
                    continue
                if not self._options.only or outcome.status in self._options.only:
                    file.write(format_one(outcome))
                    num += 1
                self.position = outcome.position or self.position
        return num


def _ends_with_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


@contextmanager
def _growing(path: str, *, is_continued: bool) -> Iterator[tuple[IO[bytes], bool]]:
    """A file that is written on, and whether nothing stands in it yet; `-` is stdout."""
    check_output(path)
    try:
        if path == "-":
            stdout = stdout_bytes()
            yield stdout, True
            stdout.flush()
            return
        if not is_continued and not is_stream(path) and Path(path).exists() and Path(path).stat().st_size:
            raise OutputError(
                f"{path} is there already; --from POSITION goes on with it, or give another file"
            )
        if is_continued and not is_stream(path) and not _ends_with_a_line(Path(path)):
            raise OutputError(f"{path} ends in the middle of a line; take that away first")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            yield file, is_stream(path) or os.fstat(descriptor).st_size == 0
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as error:
        raise OutputError(f"cannot write {'stdout' if path == '-' else path}: {why(error)}") from error
