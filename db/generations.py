"""Who generates what: of a job's requests with one content key, one runs, and the others take its result.

A note in `generations` names the request that runs, and the lease of the chunk that it is in. It counts while that
lease lives, and then for its result. When neither is there, or the result is a failure, whoever wants to know may take
the note over; so nobody waits for what nobody runs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    TextClause,
    bindparam,
    or_,
    select,
    text,
    update,
)

from db.database import Database
from db.errors import LeaseLostError
from db.leases import NewResult
from db.states import JobState, ResultStatus
from db.tables import chunks, generations, jobs, results
from db.transitions import Lease


@dataclass(frozen=True)
class Note:
    """What came of the generation of a key, in one job: `result` once it succeeded, as `NewResult` for its copies. With
    neither that nor `has_failed` nobody runs it any more, unless `lease_id` is the reader's own."""

    key: str
    index: int
    lease_id: str
    result: NewResult | None
    has_failed: bool


@dataclass(frozen=True)
class Claims:
    """What becomes of the keys that a chunk wants: `mine` it generates itself, once for each; those that `failed`
    before each of its requests generates for itself; of some there are `results`. The rest runs elsewhere."""

    mine: frozenset[str]
    failed: frozenset[str]
    results: Mapping[str, NewResult]


# One statement whatever the number of rows. In the keys' order, so that two such never wait for each other.
_INSERT: dict[bool, TextClause] = {
    True: text(
        'INSERT INTO generations (key, job_id, "index", lease_id)'
        " SELECT json_extract(value, '$[0]'), :job_id, json_extract(value, '$[1]'), :lease_id"
        " FROM json_each(:rows) WHERE true ON CONFLICT DO NOTHING RETURNING key"
    ),
    False: text(
        'INSERT INTO generations (key, job_id, "index", lease_id)'
        " SELECT value ->> 0, :job_id, CAST(value ->> 1 AS bigint), :lease_id"
        " FROM json_array_elements(CAST(:rows AS json)) ON CONFLICT DO NOTHING RETURNING key"
    ),
}
_RESULT_COLUMNS = (
    results.c.result,
    results.c.finish_reason,
    results.c.prompt_tokens,
    results.c.completion_tokens,
    results.c.content_key,
    results.c.reused_from,
    results.c.job_id.label("source_job"),
    results.c.index.label("source_index"),
)


def _is_of(result: FromClause, note: FromClause) -> ColumnElement[bool]:
    """Whether it is of the noted request, and counts: by its own key, since in the end a worker with other weights may
    have run that request."""
    return (
        (result.c.job_id == note.c.job_id)
        & (result.c.index == note.c.index)
        & (result.c.content_key == note.c.key)
    )


_NOTES = (
    select(
        generations.c.key,
        generations.c.index.label("noted_index"),
        generations.c.lease_id,
        results.c.status,
        *_RESULT_COLUMNS,
    )
    .outerjoin(results, _is_of(results, generations))
    .outerjoin(chunks, chunks.c.lease_id == generations.c.lease_id)
    .where(
        generations.c.job_id == bindparam("job_id"),
        generations.c.key.in_(bindparam("keys", expanding=True)),
        or_(
            results.c.status.is_not(None),
            chunks.c.id.is_(None),
            generations.c.lease_id == bindparam("lease_id"),
        ),
    )
)

_noted, _kept, _of_kept = generations.alias("noted"), generations.alias("kept"), results.alias("of_kept")
# One for each key, however many jobs have it; of a job that is being deleted none.
_some_job = (
    select(_kept.c.job_id)
    .join(_of_kept, _is_of(_of_kept, _kept))
    .join(jobs, jobs.c.id == _kept.c.job_id)
    .where(
        _kept.c.key == _noted.c.key,
        _of_kept.c.status == ResultStatus.SUCCEEDED,
        jobs.c.state != JobState.DELETING,
    )
    .order_by(_kept.c.job_id)
    .limit(1)
    .correlate(_noted)
    .scalar_subquery()
)
_ANYWHERE = (
    select(*_RESULT_COLUMNS)
    .select_from(_noted)
    .join(generations, (generations.c.key == _noted.c.key) & (generations.c.job_id == _some_job))
    .join(results, (results.c.job_id == generations.c.job_id) & (results.c.index == generations.c.index))
    .where(
        _noted.c.job_id == bindparam("job_id"),
        _noted.c.key.in_(bindparam("keys", expanding=True)),
    )
)


def claim(database: Database, lease: Lease, wanted: Mapping[str, int], *, is_reusing: bool) -> Claims:
    """Note that this chunk generates what nobody has generated, or generates now; `wanted` are its keys, each with the
    first index that wants it. With `is_reusing` results of any job will do. Safe to call again.

    LeaseLostError when the chunk has passed on: its job may be gone, and nobody would delete the notes.
    """
    with database.write() as tx:
        _hold(tx, lease)
        mine = _insert(tx, lease, wanted)
        found: dict[str, NewResult] = {}
        failed: set[str] = set()
        if others := wanted.keys() - mine:
            notes = _notes(tx, lease.job_id, sorted(others), lease.lease_id)
            found = {note.key: note.result for note in notes if note.result is not None}
            failed = {note.key for note in notes if note.has_failed}
            left = [note for note in notes if note.result is None]
            mine |= _take_over(tx, lease, [(note, wanted[note.key]) for note in left])
        if is_reusing and (missing := wanted.keys() - found.keys()):
            found.update(_anywhere(tx, lease.job_id, sorted(missing)))
    return Claims(frozenset(mine - found.keys()), frozenset(failed - found.keys()), found)


def look(database: Database, job_id: str, keys: Sequence[str]) -> list[Note]:
    """What there is to know of these keys: nothing of those that somebody generates now. Ask for a thousand at most."""
    with database.read() as tx:
        return _notes(tx, job_id, keys)


def take_over(database: Database, lease: Lease, notes: Sequence[tuple[Note, int]]) -> frozenset[str]:
    """Generate in this chunk, each at the index given, what its note says that nobody does; the keys for which nobody
    else came first. LeaseLostError when the chunk has passed on."""
    with database.write() as tx:
        _hold(tx, lease)
        return frozenset(_take_over(tx, lease, notes))


def _hold(tx: Connection, lease: Lease) -> None:
    held = select(chunks.c.id).where(chunks.c.lease_id == lease.lease_id).with_for_update(read=True)
    if tx.execute(held).scalar() is None:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} has passed to somebody else")


def _insert(tx: Connection, lease: Lease, wanted: Mapping[str, int]) -> set[str]:
    """The keys of which there was no note."""
    values = {"job_id": lease.job_id, "lease_id": lease.lease_id, "rows": json.dumps(sorted(wanted.items()))}
    return set(tx.execute(_INSERT[tx.dialect.name == "sqlite"], values).scalars())


def _notes(tx: Connection, job_id: str, keys: Sequence[str], lease_id: str = "") -> list[Note]:
    """Those that somebody else generates under a lease that lives are left out."""
    rows = tx.execute(_NOTES, {"job_id": job_id, "keys": keys, "lease_id": lease_id}).all()
    return [
        Note(
            row.key,
            row.noted_index,
            row.lease_id,
            _copy(row) if row.status == ResultStatus.SUCCEEDED else None,
            row.status == ResultStatus.FAILED,
        )
        for row in rows
    ]


def _copy(row: Row[Any]) -> NewResult:
    """It names the request that was generated, and not a copy that it is made from."""
    return NewResult(
        row.source_index,
        result=row.result,
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        content_key=row.content_key,
        reused_from=row.reused_from or f"{row.source_job}:{row.source_index}",
    )


def _anywhere(tx: Connection, job_id: str, keys: Sequence[str]) -> dict[str, NewResult]:
    rows = tx.execute(_ANYWHERE, {"job_id": job_id, "keys": keys})
    return {row.content_key: _copy(row) for row in rows}


def _take_over(tx: Connection, lease: Lease, notes: Sequence[tuple[Note, int]]) -> set[str]:
    """In the keys' order, as every transaction takes them."""
    taken = set()
    for note, index in sorted(notes, key=lambda pair: pair[0].key):
        moved = tx.execute(
            update(generations)
            .where(
                generations.c.key == note.key,
                generations.c.job_id == lease.job_id,
                generations.c.index == note.index,
                generations.c.lease_id == note.lease_id,
            )
            .values(index=index, lease_id=lease.lease_id)
        )
        if moved.rowcount == 1:
            taken.add(note.key)
    return taken
