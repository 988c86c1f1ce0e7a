"""No statement of the daily work reads a table from end to end: every plan of every statement is looked at."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from database.conftest import name_after
from database.rows import CARD, LEASE_S, claim, failure, finish, register, success
from servers import Postgres
from sqlalchemy import event, text

from db import generations, leases, queries, recovery, retries, schedules, transitions, usage
from db.activity import find_failures, read_activity
from db.database import Database
from db.labels import LabelFilter
from db.leases import Record
from db.one_request import find_index, read_request
from db.outcomes import find_outcomes, has_custom_ids, iterate_finished, iterate_outcomes, read_extent
from db.states import JobState
from jobs.control import cancel

# So many of each that reading them all is never the cheapest.
_BIG = 20_000
_NUM_SMALL_JOBS = 5_000
_NUM_OLD_WORKERS = 5_000
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
# one that each job has, one that every hundredth has
_LABELS = """
INSERT INTO job_labels (job_id, key, value, created_at)
SELECT 'small_' || n, 'team', 'eval', n FROM ({numbers}) AS numbers
UNION ALL SELECT 'small_' || n, 'night', 'n' || n, n FROM ({numbers}) AS numbers WHERE n % 100 = 0
"""
_CHUNKS = """
INSERT INTO chunks (job_id, first_index, num_requests, state)
SELECT {job}, {first}, :chunk, 'queued' FROM ({numbers}) AS numbers
"""
_REQUESTS = """
INSERT INTO requests (job_id, "index", custom_id, body) SELECT 'big', n, 'id-' || n, '{{}}' FROM ({numbers}) AS numbers
"""
_DONE_CHUNKS = """
INSERT INTO chunks (job_id, first_index, num_requests, num_succeeded, state, finished_at)
SELECT 'small_' || (n / 10), 1000 + n % 10, 1, 1, 'done', n FROM ({numbers}) AS numbers
"""
_SCHEDULES = """
INSERT INTO schedules (name, cron, timezone, arguments, submit, created_at, due_at)
SELECT 'schedule_' || n, '* * * * *', 'UTC', '[]', '{{}}', 0, 10000000000.0 + n FROM ({numbers}) AS numbers
"""
_WORKERS = """
INSERT INTO workers (id, state, card_name, engine, host, pid, started_at, heartbeat_at)
SELECT 'old_' || n, 'stopped', 'tiny', 'echo', 'host', 1, n, n FROM ({numbers}) AS numbers
"""
_RESULTS = """
INSERT INTO results (job_id, "index", status, result, attempt, finished_at, position, content_key)
SELECT 'other', n, 'succeeded', '{{}}', 1, 1.0, n + 1, 'key_' || n FROM ({numbers}) AS numbers
"""
_GENERATIONS = """
INSERT INTO generations (job_id, key, "index", lease_id)
SELECT 'other', 'key_' || n, n, 'gone' FROM ({numbers}) AS numbers
"""
# of the big job's second half, in as many codes
_FAILURES = """
INSERT INTO results (job_id, "index", status, error_code, error_message, attempt, finished_at, position)
SELECT 'big', {first} + n, 'failed', 'code_' || (n % 2), 'm', 1, 1.0, {first} + n + 1 FROM ({numbers}) AS numbers
"""
_NUMBERS = {
    True: "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < :last) SELECT n FROM s",
    False: "SELECT n FROM generate_series(0, :last) AS n",
}
_TABLES = "jobs|job_labels|chunks|requests|results|generations|workers|schedules"
_SCANS = {
    # a whole table, in no index's order
    True: re.compile(rf"^SCAN ({_TABLES}|noted|kept)(?! USING)"),
    False: re.compile(rf"Seq Scan on ({_TABLES})\b"),
}


# The sweeper looks at each job that is under way, and at its row alone: the sums are in no index, since an index on
# what changes with every write would make every write change the index.
_LOOKS_AT_EACH_ROW = "jobs.num_succeeded + jobs.num_failed = jobs.num_requests"


@pytest.fixture(scope="module")
def _filled_once(shared_database: Database) -> Database:
    """Five thousand jobs of two chunks each, and a big one; one worker lives, and thousands have."""

    def run(sql: str, num_rows: int, **names: str) -> None:
        numbers = _NUMBERS[shared_database.is_sqlite]
        tx.execute(text(sql.format(numbers=numbers, **names)), {"last": num_rows - 1, "chunk": _CHUNK})

    with shared_database.write() as tx:
        run(_JOBS, _NUM_SMALL_JOBS)
        run(_LABELS, _NUM_SMALL_JOBS)
        tx.execute(text(_BIG_JOB), {"num": _BIG})
        run(_CHUNKS, 2 * _NUM_SMALL_JOBS, job="'small_' || (n / 2)", first="n % 2 * :chunk")
        run(_CHUNKS, _BIG // _CHUNK, job="'big'", first="n * :chunk")
        run(_REQUESTS, _BIG)
        run(_RESULTS, _BIG)
        run(_DONE_CHUNKS, _BIG)
        run(_SCHEDULES, _NUM_SMALL_JOBS)
        run(_GENERATIONS, _BIG)
        run(_WORKERS, _NUM_OLD_WORKERS)
        transitions.register_worker(tx, "w1", CARD, "echo", "host", 1)
    if not shared_database.is_sqlite:  # where the server does so by itself; on SQLite nobody does
        with shared_database.write() as tx:
            tx.execute(text("ANALYZE"))
    shared_database.close()  # neither kind can be copied while somebody is connected
    return shared_database


@pytest.fixture
def filled(_filled_once: Database, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A copy for each test: with dead rows of tests before it between its own, its plans would be others."""
    if _filled_once.is_sqlite:
        path = tmp_path / "filled.db"
        shutil.copy(str(_filled_once.url.database), path)
        url = f"sqlite:///{path}"
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database(name_after(tmp_path), template=_filled_once.url.database)
    opened = Database(url)
    yield opened
    opened.close()


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


def _fail_half(database: Database) -> None:
    """Of the big job; its chunks know nothing of it."""
    half = _BIG // 2
    sql = _FAILURES.format(numbers=_NUMBERS[database.is_sqlite], first=half)
    with database.write() as tx:
        tx.execute(text(sql), {"last": half - 1})
        tx.execute(text("UPDATE jobs SET num_failed = num_failed + :half WHERE id = 'big'"), {"half": half})
        tx.execute(text("ANALYZE"))


def _finish_some(database: Database) -> None:
    lease = claim(database)
    index = lease.first_index
    leases.record(database, [Record(lease, [success(index)], is_last=False)])
    leases.record(database, [Record(lease, [success(index)], is_last=False)], is_repeat=True)
    leases.renew(database, "w1", [lease], LEASE_S)
    leases.note_worker(database, "big", "w1")
    leases.release(database, lease)
    finish(database, claim(database, job_id="big"))


def _page(database: Database) -> None:
    for _, _outcome in zip(range(3), iterate_outcomes(database, "big"), strict=False):
        pass


def _whole_page(database: Database) -> None:
    for _, _outcome in zip(range(3), iterate_outcomes(database, "big", with_bodies=True), strict=False):
        pass


def _page_in_order_of_finishing(database: Database) -> None:
    extent = replace(read_extent(database, "big"), state=JobState.CANCELLED, num_results=_BIG // 2)
    list(iterate_finished(database, extent, with_bodies=True))


def _generate_once(database: Database) -> None:
    owner, taker = claim(database, job_id="big"), claim(database, job_id="big")
    keys = [f"key_{number}" for number in range(64)]
    for lease in (owner, taker):
        wanted = dict.fromkeys(keys, lease.first_index)
        generations.claim(database, lease, wanted, is_reusing=True)
    leases.release(database, owner)
    notes = generations.look(database, "big", keys)
    generations.take_over(database, taker, [(note, taker.first_index) for note in notes])


def _delete(database: Database) -> None:
    generations.claim(database, claim(database, job_id="big"), {"key_0": 0}, is_reusing=False)
    with database.write() as tx:
        assert transitions.erase_rows(tx, "big", 64)


def _compare(database: Database) -> None:
    has_custom_ids(database, "big")
    find_outcomes(database, read_extent(database, "big"), [f"id-{number}" for number in range(500)])


def _retry(database: Database) -> None:
    lease = claim(database, job_id="big")
    pending = leases.load_requests(database, lease)
    leases.record(database, [Record(lease, [failure(one.index) for one in pending], is_last=True)])
    assert retries.take_back(database, "big", ["engine_error"]) == _CHUNK


_WORK: dict[str, Callable[[Database], object]] = {
    "claim, write, renew, release, finish": _finish_some,
    "status": lambda database: queries.get_job(database, "big"),
    "list": lambda database: queries.list_jobs(database, 20),
    "job by a beginning": lambda database: queries.find_job_id(database, "small_7"),
    "list by state": lambda database: queries.list_jobs(database, 20, [JobState.COMPLETED]),
    "list by label": lambda database: queries.list_jobs(database, 20, (), [LabelFilter("team", "eval")]),
    "list by a label's key": lambda database: queries.list_jobs(database, 20, (), [LabelFilter("team")]),
    "list by labels": lambda database: queries.list_jobs(
        database, 20, [JobState.QUEUED], [LabelFilter("night", "n700"), LabelFilter("team")]
    ),
    "find by key": lambda database: queries.find_job_by_key(database, "key_7"),
    "find unfinished": lambda database: queries.find_unfinished_job(database, "sha_7", "c"),
    "count claimable": lambda database: queries.count_claimable(database, CARD, 8),
    "descendants": lambda database: queries.list_descendants(database, queries.get_job(database, "big")),
    "retry": _retry,
    "cancel": lambda database: cancel(database, "big"),
    "results": _page,
    "results with requests": _whole_page,
    "results as they finish": _page_in_order_of_finishing,
    "compare": _compare,
    "live view": lambda database: read_activity(database, queries.get_job(database, "big")),
    "errors": lambda database: find_failures(database, "big", 3),
    "request": lambda database: read_request(database, "big", find_index(database, "big", "id-7")),
    "generate once": _generate_once,
    "delete": _delete,
    "old jobs": lambda database: queries.list_finished(database, 60.0, 10),
    "workers": queries.list_workers,
    "workers of a job": lambda database: queries.list_job_workers(database, "big"),
    "sweep": lambda database: recovery.run_once(database, LEASE_S, 3),
    "schedules that are due": schedules.list_due,
    "a day's usage": lambda database: usage.list_usage(database, [1_000.0, 1_010.0]),
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


@pytest.mark.parametrize("work", ["live view", "errors"])
def test_failures_are_read_out_of_their_index(filled: Database, work: str) -> None:
    """Not out of all the job's results, which an index leads to as well."""
    register(filled, "me")
    claim(filled, "w1", "big")
    _fail_half(filled)
    with _statements(filled) as seen:
        _WORK[work](filled)
    asked = [(statement, given) for statement, given in seen if "error_code" in statement]
    assert len(asked) >= 2
    for statement, given in asked:
        plan = "\n".join(_plan(filled, statement, given))
        assert "ix_results_failed" in plan, (statement, plan)
