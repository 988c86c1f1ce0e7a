"""No statement of the daily work reads a table from end to end: every plan of every statement is looked at."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from database.rows import CARD, LEASE_S, claim, finish, register, success
from sqlalchemy import event, text

from db import leases, queries, recovery, transitions
from db.database import Database
from db.leases import Record
from db.states import JobState
from jobs.control import cancel

_BIG = 20_000
_NUM_SMALL_JOBS = 2_000
_CHUNK = 8

_JOBS = """
INSERT INTO jobs (id, state, card_name, card_sha256, card, idempotency_key, input_name, input_sha256, num_requests,
                  created_at, deadline_at)
SELECT 'small_' || n, 'queued', 'tiny', 'c', 'card', 'key_' || n, 'in', 'sha_' || n, 16, n, 10000000000.0 + n
FROM ({numbers}) AS numbers
"""
_BIG_JOB = """
INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests, created_at)
VALUES ('big', 'queued', 'tiny', 'c', 'card', 'in', 'i', :num, 0)
"""
_CHUNKS = """
INSERT INTO chunks (job_id, first_index, num_requests, state)
SELECT {job}, {first}, :chunk, 'queued' FROM ({numbers}) AS numbers
"""
_REQUESTS = """
INSERT INTO requests (job_id, "index", custom_id, body) SELECT 'big', n, 'id-' || n, '{{}}' FROM ({numbers}) AS numbers
"""
_RESULTS = """
INSERT INTO results (job_id, "index", status, result, attempt, finished_at)
SELECT 'other', n, 'succeeded', '{{}}', 1, 1.0 FROM ({numbers}) AS numbers
"""
_NUMBERS = {
    True: "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < :last) SELECT n FROM s",
    False: "SELECT n FROM generate_series(0, :last) AS n",
}
_SCANS = {
    # a whole table, in no index's order
    True: re.compile(r"^SCAN (jobs|chunks|requests|results|workers)(?! USING)"),
    False: re.compile(r"Seq Scan on (jobs|chunks|requests|results|workers)\b"),
}


# The sweeper looks at each job that is under way, and at its row alone: the sums are in no index, since an index on
# what changes with every write would make every write change the index.
_LOOKS_AT_EACH_ROW = "jobs.num_succeeded + jobs.num_failed = jobs.num_requests"


@pytest.fixture
def filled(database: Database) -> Database:
    """Two thousand jobs of two chunks each, and a big one."""

    def run(sql: str, num_rows: int, **names: str) -> None:
        numbers = _NUMBERS[database.is_sqlite]
        tx.execute(text(sql.format(numbers=numbers, **names)), {"last": num_rows - 1, "chunk": _CHUNK})

    with database.write() as tx:
        run(_JOBS, _NUM_SMALL_JOBS)
        tx.execute(text(_BIG_JOB), {"num": _BIG})
        run(_CHUNKS, 2 * _NUM_SMALL_JOBS, job="'small_' || (n / 2)", first="n % 2 * :chunk")
        run(_CHUNKS, _BIG // _CHUNK, job="'big'", first="n * :chunk")
        run(_REQUESTS, _BIG)
        run(_RESULTS, _BIG)
        for number in range(500):
            transitions.register_worker(tx, f"w{number}", CARD, "echo", "host", 1)
            if number != 1:
                transitions.stop_worker(tx, f"w{number}")
    if not database.is_sqlite:  # where the server does so by itself; on SQLite nobody does
        with database.write() as tx:
            tx.execute(text("ANALYZE"))
    return database


@contextmanager
def _statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """What is executed in the block, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.split(None, 1)[0] in ("SELECT", "UPDATE", "DELETE"):
            seen.append((statement, parameters))

    event.listen(database._engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database._engine, "before_cursor_execute", note)


def _plan(database: Database, statement: str, parameters: Any) -> list[str]:
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.write() as tx:
        rows = tx.exec_driver_sql(f"{explain} {statement}", parameters).all()
    return [str(row[-1]) for row in rows]


def _finish_some(database: Database) -> None:
    lease = claim(database)
    index = lease.first_index
    leases.record(database, [Record(lease, [success(index)], is_last=False)])
    leases.record(database, [Record(lease, [success(index)], is_last=False)], is_repeat=True)
    leases.renew(database, "w1", [lease], LEASE_S)
    leases.release(database, lease)
    finish(database, claim(database, job_id="big"))


def _page(database: Database) -> None:
    for _, _outcome in zip(range(3), queries.iterate_outcomes(database, "big"), strict=False):
        pass


_WORK: dict[str, Callable[[Database], object]] = {
    "claim, write, renew, release, finish": _finish_some,
    "status": lambda database: queries.get_job(database, "big"),
    "list": lambda database: queries.list_jobs(database, 20),
    "list by state": lambda database: queries.list_jobs(database, 20, [JobState.COMPLETED]),
    "find by key": lambda database: queries.find_job_by_key(database, "key_7"),
    "find unfinished": lambda database: queries.find_unfinished_job(database, "sha_7", "c"),
    "count claimable": lambda database: queries.count_claimable(database, CARD, 8),
    "cancel": lambda database: cancel(database, "big"),
    "results": _page,
    "old jobs": lambda database: queries.list_finished(database, 60.0, 10),
    "workers": queries.list_workers,
    "sweep": lambda database: recovery.run_once(database, LEASE_S, 3),
    "burial": lambda database: recovery.worker_died(database, "w1", 3),
}


@pytest.mark.parametrize("work", _WORK)
def test_no_table_is_read_from_end_to_end(filled: Database, work: str) -> None:
    register(filled, "me")
    if work != "claim, write, renew, release, finish":
        for _ in range(3):
            claim(filled, "w1")
        finish(filled, claim(filled, job_id="big"))
    with _statements(filled) as seen:
        _WORK[work](filled)
    assert seen, "nothing was looked at"
    scans = {
        (line.strip(), statement)
        for statement, parameters in seen
        for line in _plan(filled, statement, parameters)
        if _SCANS[filled.is_sqlite].search(line) and _LOOKS_AT_EACH_ROW not in statement
    }
    assert not scans
