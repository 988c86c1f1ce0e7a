"""One job from its submit to its end, with a worker of its own: what `promptmill run` does."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from db import queries
from db.database import Database
from db.errors import DatabaseUnavailableError, EngineError, SettingsError
from db.queries import Job
from jobs.cards import Card
from jobs.reader import hash_inputs
from jobs.settings import Settings
from jobs.submit import SubmitOptions, Submitted, submit
from workers.exits import EXIT_REFUSED
from workers.supervisor import Supervisor

_POLL_S = 0.25
_NUM_LOG_LINES = 15


def submit_or_resume(
    database: Database,
    settings: Settings,
    card: Card,
    paths: str | Sequence[str],
    options: SubmitOptions,
) -> Submitted:
    """The job of these very requests, card and name that an earlier run left unfinished, else a new one."""
    paths = [paths] if isinstance(paths, str) else paths
    sha256 = hash_inputs(paths, options.reading.mapping)
    if sha256 is not None:
        unfinished = queries.find_unfinished_job(
            database,
            sha256,
            card.sha256,
            options.sampling_text(card),
            options.name,
            options.selection.text,
        )
        if unfinished is not None:
            return Submitted(unfinished, created=False, is_same_input=True)
    return submit(database, settings, card, paths, options)


def run_job(
    database: Database,
    settings: Settings,
    card: Card,
    job_id: str,
    on_progress: Callable[[Job | None, bool], None],
    timeout_s: float | None = None,
) -> Job:
    """Run a job to its end, or for `timeout_s`, and return it as it stands then. `on_progress` gets the job (None
    while the database is away), and whether the engine is loaded.

    The worker takes this job's chunks only, and ends with it. KeyboardInterrupt stops the worker, which gives
    back what it had in flight, and is raised again. A worker that dies is replaced; EngineError when its
    engine cannot be loaded, SettingsError when that refuses its arguments.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    job = queries.get_job(database, job_id)
    if job.state.is_final:
        return job
    log_path = settings.home / "logs" / f"{job_id}.log"
    supervisor = Supervisor(
        database, settings, card.name, only_job_id=job_id, log_path=log_path, restart=True
    )
    try:
        supervisor.start()
        while not job.state.is_final:
            code = supervisor.poll()
            try:
                job = queries.get_job(database, job_id)
                on_progress(job, queries.has_worker_loaded(database, supervisor.worker_id))
            except DatabaseUnavailableError:
                # the worker waits for it too
                on_progress(None, True)
            if code is not None and not job.state.is_final:
                kind = SettingsError if code == EXIT_REFUSED else EngineError
                raise kind(_explain(code, log_path))
            if deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
    finally:
        supervisor.stop()
    if not job.state.is_final:  # what was finished by the stop counts
        job = queries.get_job(database, job_id)
    with contextlib.suppress(OSError):
        log_path.unlink()
    return job


def _explain(code: int, log_path: Path) -> str:
    """The worker's own last word, or, where it had none, the end of its log."""
    try:
        tail = log_path.read_text("utf-8", "replace").splitlines()[-_NUM_LOG_LINES:]
    except OSError:
        tail = []
    if tail and (said := tail[-1].partition(" CRITICAL promptmill: ")[2]):
        return f"{said}. The same command goes on where it stood. The worker's log: {log_path}"
    lines = "".join(f"\n  {line}" for line in tail)
    return (
        f"the worker ended with exit code {code}; the same command goes on where it stood."
        f" Its log {log_path}:{lines}"
    )
