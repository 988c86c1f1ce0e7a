"""Every state moves along its arrows and no other way: each (arrow x state) pair, on both databases."""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from database.raw_rows import (
    LEASE_COLUMNS,
    clock,
    insert_chunk,
    insert_job,
    insert_worker,
    move_chunk,
    move_job,
    move_worker,
)
from database.rows import row_of
from sqlalchemy import Connection, Table

from db import transitions
from db.database import Database
from db.errors import WrongStateError
from db.states import (
    CHUNK_ARROWS,
    JOB_ARROWS,
    WORKER_ARROWS,
    Arrow,
    ChunkState,
    JobState,
    WorkerState,
)
from db.tables import chunks, jobs, workers

# What each arrow writes beside the state, and nothing more.
_JOB_WRITES: dict[str, set[str]] = {
    "enqueue": {"num_requests", "input_sha256", "idempotency_key", "submit_lease_until"},
    "start": {"started_at"},
    "complete": {"finished_at"},
    "cancel": set(),
    "end_cancel": {"finished_at"},
}
_CHUNK_WRITES: dict[str, set[str]] = {
    "claim": {*LEASE_COLUMNS, "attempt", "started_at"},
    "finish": {*LEASE_COLUMNS, "finished_at"},
    "release": {*LEASE_COLUMNS, "attempt"},
    "requeue": LEASE_COLUMNS,
    "cancel": {*LEASE_COLUMNS, "finished_at"},
}
_WORKER_WRITES: dict[str, set[str]] = {
    "ready": {"heartbeat_at"},
    "drain": {"heartbeat_at"},
    "stop": {"heartbeat_at"},
    "lose": set(),
}
# Functions of `transitions` that are no arrow: births, deaths, locks, and a lease's own renewal.
_NO_ARROWS = {
    "stage_job",
    "register_worker",
    "renew_submit",
    "abandon_submit",
    "lock_job",
    "close_job_if_over",
    "delete_rows",
    "delete_staged_job",
}


def _pairs(arrows: Mapping[str, Arrow[Any]], states: Iterable[StrEnum]) -> list[Any]:
    return [
        pytest.param(arrow, state, id=f"{arrow.name}-{state}")
        for arrow in arrows.values()
        for state in states
    ]


def _assert_moved(
    before: dict[str, Any], after: dict[str, Any], arrow: Arrow[Any], writes: set[str], now: float
) -> None:
    assert after["state"] == arrow.target
    changed = {name for name in after if after[name] != before[name]}
    assert changed - {"state"} == writes
    for name in writes & {"started_at", "finished_at", "heartbeat_at"}:
        assert after[name] == pytest.approx(now, abs=60), name


def _assert_refused(
    tx: Connection, table: Table, key: object, arrow: Arrow[Any], call: Callable[[], Any]
) -> None:
    before = row_of(tx, table, key)
    with pytest.raises(WrongStateError) as caught:
        call()
    assert caught.value.current == before["state"]
    assert caught.value.expected == arrow.sources
    assert row_of(tx, table, key) == before


@pytest.mark.parametrize(("arrow", "state"), _pairs(JOB_ARROWS, JobState))
def test_a_job_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[JobState], state: JobState
) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, jobs, job_id, arrow, lambda: move_job(tx, arrow.name, job_id))
            return
        before = row_of(tx, jobs, job_id)
        move_job(tx, arrow.name, job_id)
        _assert_moved(before, row_of(tx, jobs, job_id), arrow, _JOB_WRITES[arrow.name], clock(tx))


@pytest.mark.parametrize(("arrow", "state"), _pairs(CHUNK_ARROWS, ChunkState))
def test_a_chunk_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[ChunkState], state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, state, lease_left_s=-1.0 if arrow.name == "requeue" else 300.0)
        if state not in arrow.sources:
            _assert_refused(tx, chunks, lease.chunk_id, arrow, lambda: move_chunk(tx, arrow.name, lease))
            return
        before = row_of(tx, chunks, lease.chunk_id)
        writes = _CHUNK_WRITES[arrow.name]
        if (arrow.name, state) == ("cancel", ChunkState.QUEUED):
            # nobody holds it, so it goes with its job
            transitions.cancel_job(tx, lease.job_id)
            writes = writes - LEASE_COLUMNS
        else:
            move_chunk(tx, arrow.name, lease)
        _assert_moved(before, row_of(tx, chunks, lease.chunk_id), arrow, writes, clock(tx))


@pytest.mark.parametrize(("arrow", "state"), _pairs(WORKER_ARROWS, WorkerState))
def test_a_worker_moves_along_its_arrows_only(
    shared_database: Database, arrow: Arrow[WorkerState], state: WorkerState
) -> None:
    with shared_database.write() as tx:
        worker_id = insert_worker(tx, state)
        if state not in arrow.sources:
            _assert_refused(tx, workers, worker_id, arrow, lambda: move_worker(tx, arrow.name, worker_id))
            return
        before = row_of(tx, workers, worker_id)
        move_worker(tx, arrow.name, worker_id)
        _assert_moved(before, row_of(tx, workers, worker_id), arrow, _WORKER_WRITES[arrow.name], clock(tx))


def test_each_arrow_is_a_function_and_each_function_an_arrow() -> None:
    arrows = {
        f"{name}_{thing}"
        for thing, table in (("job", JOB_ARROWS), ("chunk", CHUNK_ARROWS), ("worker", WORKER_ARROWS))
        for name in table
    }
    functions = {
        name
        for name, function in inspect.getmembers(transitions, inspect.isfunction)
        if function.__module__ == transitions.__name__ and not name.startswith("_")
    }
    assert functions - _NO_ARROWS == arrows
    assert functions >= _NO_ARROWS


def test_each_arrow_says_what_it_writes() -> None:
    assert _JOB_WRITES.keys() == JOB_ARROWS.keys()
    assert _CHUNK_WRITES.keys() == CHUNK_ARROWS.keys()
    assert _WORKER_WRITES.keys() == WORKER_ARROWS.keys()


def test_no_arrow_leaves_a_state_that_is_over() -> None:
    over = {
        JobState.COMPLETED,
        JobState.CANCELLED,
        ChunkState.DONE,
        ChunkState.CANCELLED,
        WorkerState.STOPPED,
    }
    tables: list[Mapping[str, Arrow[Any]]] = [JOB_ARROWS, CHUNK_ARROWS, WORKER_ARROWS]
    for table in tables:
        for arrow in table.values():
            assert not arrow.sources & over, arrow.name


def test_nobody_but_transitions_updates_a_state() -> None:
    """A row may be born in a state elsewhere (submits); `.values(state=...)` is how one is changed."""
    folder = Path(transitions.__file__).parent
    writers = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "values"
        and any(keyword.arg == "state" for keyword in node.keywords)
    }
    assert writers == {"transitions.py"}
