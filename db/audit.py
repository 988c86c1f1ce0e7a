"""Counting a job's rows the long way round, to hold against what the sums say."""

from dataclasses import dataclass, fields

from sqlalchemy import ColumnElement, Table, and_, func, not_, or_, select

from db.database import Database
from db.tables import IS_RUNNING, chunks, jobs, requests, results
from db.transitions import Tally


@dataclass(frozen=True)
class Audit:
    """`num_tiled`: requests covered by chunks that follow each other without gap or overlap, from index 0;
    `last_position`: the highest that a result has, `num_retried`: results that gave theirs up; `in_chunks`: the sums
    over what the chunks count."""

    num_declared: int
    num_requests: int
    num_results: int
    num_tiled: int
    num_leases: int
    in_chunks: Tally
    num_stray_results: int
    last_position: int
    num_retried: int


def audit(database: Database, job_id: str) -> Audit:
    """For a job that is over, whose rows stand still. The caller checks that there is one."""
    with database.read() as tx:
        tiles = tx.execute(
            select(chunks.c.first_index, chunks.c.num_requests)
            .where(chunks.c.job_id == job_id)
            .order_by(chunks.c.first_index)
        )
        num_tiled = 0
        for first_index, num_requests in tiles:
            if first_index != num_tiled:
                break
            num_tiled += num_requests
        # each chunk's counts against its own rows
        counted = (
            select(func.count())
            .select_from(results)
            .where(
                results.c.job_id == chunks.c.job_id,
                results.c.index >= chunks.c.first_index,
                results.c.index < chunks.c.first_index + chunks.c.num_requests,
            )
            .correlate(chunks)
            .scalar_subquery()
        )

        sums = [func.coalesce(func.sum(chunks.c[one.name]), 0) for one in fields(Tally)]

        def count(table: Table, *where: ColumnElement[bool]) -> int:
            statement = select(func.count()).select_from(table).where(*where)
            return int(tx.execute(statement).scalar_one())

        return Audit(
            num_declared=tx.execute(select(jobs.c.num_requests).where(jobs.c.id == job_id)).scalar() or 0,
            num_retried=tx.execute(select(jobs.c.num_retried).where(jobs.c.id == job_id)).scalar() or 0,
            num_requests=count(requests, requests.c.job_id == job_id),
            num_results=count(results, results.c.job_id == job_id),
            num_tiled=num_tiled,
            last_position=tx.execute(
                select(func.coalesce(func.max(results.c.position), 0)).where(results.c.job_id == job_id)
            ).scalar_one(),
            num_leases=count(
                chunks, chunks.c.job_id == job_id, or_(IS_RUNNING, chunks.c.lease_id.is_not(None))
            ),
            in_chunks=Tally(*map(int, tx.execute(select(*sums).where(chunks.c.job_id == job_id)).one())),
            num_stray_results=count(
                chunks,
                and_(
                    chunks.c.job_id == job_id,
                    not_(counted == chunks.c.num_succeeded + chunks.c.num_failed),
                ),
            ),
        )
