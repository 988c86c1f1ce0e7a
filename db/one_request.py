"""One request of a job, with what came of it and where it runs."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, select

from db.database import Database
from db.errors import NotFoundError
from db.outcomes import Extent, Outcome, find_outcome, read_extent
from db.states import ChunkState
from db.tables import chunks, requests, results, workers


@dataclass(frozen=True)
class OneRequest:
    """`body` is JSON text, None for a bad line; `outcome` is None before there is one. `started_at` is when its chunk
    was claimed last, `attempt` how often, `host` where it runs; each None for a request that did not or does not."""

    job_id: str
    index: int
    custom_id: str | None
    body: str | None
    outcome: Outcome | None
    attempt: int | None
    started_at: float | None
    host: str | None

    @property
    def status(self) -> str:
        if self.outcome is not None:
            return self.outcome.status.value
        return "pending" if self.host is None else "running"


def find_index(database: Database, job_id: str, custom_id: str) -> int:
    """NotFoundError when no request of the job has this custom_id."""
    extent = read_extent(database, job_id)
    statement = select(requests.c.index).where(
        requests.c.job_id == job_id, requests.c.custom_id.is_not(None), requests.c.custom_id == custom_id
    )
    with database.read() as tx:
        index = tx.execute(statement).scalar()
    if index is None:
        raise NotFoundError(f"no request of {job_id} has this custom_id; {_range(extent)}")
    return int(index)


def read_request(database: Database, job_id: str, index: int) -> OneRequest:
    """NotFoundError for a job that is not there, and for an index that it has not."""
    extent = read_extent(database, job_id)
    with database.read() as tx:
        asked = tx.execute(_asked(job_id, index)).one_or_none()
        chunk = tx.execute(_chunk(job_id, index)).one_or_none()
    if asked is None:
        raise NotFoundError(f"{job_id} has no request {index}; {_range(extent)}")
    outcome = find_outcome(database, extent, index)
    running = chunk if outcome is None and chunk is not None and chunk.state == ChunkState.RUNNING else None
    attempt = asked.attempt if running is None else running.attempt
    return OneRequest(
        job_id,
        index,
        asked.custom_id,
        asked.body,
        outcome,
        attempt,
        started_at=chunk.started_at if chunk is not None and attempt else None,
        host=None if running is None else running.host,
    )


def _asked(job_id: str, index: int) -> Select[Any]:
    result = and_(results.c.job_id == requests.c.job_id, results.c.index == requests.c.index)
    return (
        select(requests.c.custom_id, requests.c.body, results.c.attempt)
        .join_from(requests, results, result, isouter=True)
        .where(requests.c.job_id == job_id, requests.c.index == index)
    )


def _chunk(job_id: str, index: int) -> Select[Any]:
    """The last chunk that begins at the request or before it."""
    return (
        select(chunks.c.state, chunks.c.attempt, chunks.c.started_at, workers.c.host)
        .join_from(chunks, workers, chunks.c.worker_id == workers.c.id, isouter=True)
        .where(chunks.c.job_id == job_id, chunks.c.first_index <= index)
        .order_by(chunks.c.first_index.desc())
        .limit(1)
    )


def _range(extent: Extent) -> str:
    return f"its requests are numbered from 0 to {extent.num_requests - 1}"
