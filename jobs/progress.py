"""A job's state as other programs read it."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from db import queries
from db.database import Database
from db.errors import DatabaseUnavailableError
from db.queries import Counts, Job
from db.states import JobState

_POLL_S = 0.5


def counts_as_dict(counts: Counts) -> dict[str, int]:
    """`total` is the sum of the others."""
    return {"total": counts.total, **asdict(counts)}


def job_as_dict(job: Job) -> dict[str, Any]:
    """What `status --json` prints; times are ISO 8601 in UTC. `usage` does not count what was reused."""
    return {
        "id": job.id,
        "name": job.name,
        "model": job.card_name,
        "state": job.state,
        "priority": job.priority,
        "labels": dict(job.labels),
        "selection": json.loads(job.selection) if job.selection else None,
        "parent": job.parent_id,
        "counts": counts_as_dict(job.counts),
        "num_reused": job.num_reused,
        "usage": {
            "prompt_tokens": job.prompt_tokens,
            "completion_tokens": job.completion_tokens,
            "total_tokens": job.prompt_tokens + job.completion_tokens,
        },
        "created_at": format_time(job.created_at),
        "started_at": format_time(job.started_at),
        "finished_at": format_time(job.finished_at),
        "requests_per_s": _rounded(job.requests_per_s),
        "completion_tokens_per_s": _rounded(job.completion_tokens_per_s),
        "eta_s": _rounded(job.eta_s),
    }


def format_time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def wait(
    database: Database,
    job_id: str,
    timeout_s: float | None = None,
    on_poll: Callable[[Job | None], None] | None = None,
    poll_s: float = _POLL_S,
) -> Job:
    """Poll until the job is over, and return it; after `timeout_s` return it as it stands.

    A database that is away is waited for, and `on_poll` is called with None meanwhile. NotFoundError at once
    for a job that is not there.
    """
    from db import recovery  # `status` is quicker without it

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            job = queries.get_job(database, job_id)
            if job.state is JobState.CANCELLING:
                recovery.end_cancel_without_workers(database, job_id)
        except DatabaseUnavailableError:
            if deadline is not None and time.monotonic() >= deadline:
                raise
            job = None
        if on_poll is not None:
            on_poll(job)
        if job is not None and (
            job.state.is_final or (deadline is not None and time.monotonic() >= deadline)
        ):
            return job
        time.sleep(poll_s)
