"""Two arrows from the same state at once: the second waits for the first's lock, and ends as if it had come later."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from itertools import product
from typing import Any

import pytest
from database.conftest import name_after
from database.raw_rows import insert_chunk, insert_job, insert_worker, move_chunk, move_job, move_worker
from database.rows import Call, wait_blocked
from servers import Postgres
from sqlalchemy import Connection, Table, func, select

from db import transitions
from db.database import Database
from db.errors import PromptmillError
from db.states import CHUNK_ARROWS, JOB_ARROWS, WORKER_ARROWS, Arrow, ChunkState, JobState, WorkerState
from db.tables import chunks, jobs, workers
from db.transitions import Lease

_Move = Callable[[Connection], None]


@pytest.fixture(scope="module")
def shared(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A Postgres for all of them: SQLite has one writer, who always comes later."""
    name = name_after(tmp_path_factory.mktemp("arrow_races"))
    opened = Database(postgres.create_database(name, template="template_promptmill"))
    yield opened
    opened.close()


def _pairs(arrows: Mapping[str, Arrow[Any]], states: Iterable[StrEnum]) -> list[Any]:
    """Each state, with any two arrows that leave it; also twice the same."""
    return [
        pytest.param(state, first, second, id=f"{state}-{first}-{second}")
        for state in states
        for first, second in product(
            [name for name, arrow in arrows.items() if state in arrow.sources], repeat=2
        )
    ]


def _refusal(move: _Move, tx: Connection) -> type[PromptmillError] | None:
    try:
        move(tx)
    except PromptmillError as error:
        return type(error)
    return None


def _one_after_the_other(database: Database, first: _Move, second: _Move) -> type[PromptmillError] | None:
    with database.write() as tx:
        first(tx)
    with database.write() as tx:
        return _refusal(second, tx)


def _at_once(database: Database, first: _Move, second: _Move) -> type[PromptmillError] | None:
    def come_second() -> type[PromptmillError] | None:
        with database.write() as tx:
            return _refusal(second, tx)

    with database.write() as tx:
        first(tx)
        waiting = Call(come_second)
        wait_blocked(database)
    return waiting.result()


def _state(database: Database, table: Table, key: object) -> str:
    with database.read() as tx:
        return str(tx.execute(select(table.c.state).where(table.c.id == key)).scalar_one())


@pytest.mark.parametrize(("state", "first", "second"), _pairs(JOB_ARROWS, JobState))
def test_of_a_job(shared: Database, state: JobState, first: str, second: str) -> None:
    def run(play: Callable[..., Any]) -> tuple[Any, ...]:
        with shared.write() as tx:
            job_id = insert_job(tx, state)
        moves = [partial(move_job, arrow=name, job_id=job_id) for name in (first, second)]
        return play(shared, *moves), _state(shared, jobs, job_id)

    assert run(_at_once) == run(_one_after_the_other)


@pytest.mark.parametrize(("state", "first", "second"), _pairs(CHUNK_ARROWS, ChunkState))
def test_of_a_chunk(shared: Database, state: ChunkState, first: str, second: str) -> None:
    """Whoever came second under a lease that is over writes nothing, and none of it is there twice."""

    def run(play: Callable[..., Any]) -> tuple[Any, ...]:
        with shared.write() as tx:
            lease = insert_chunk(tx, state)
        refused = play(shared, *(partial(_move_chunk, arrow=name, lease=lease) for name in (first, second)))
        with shared.read() as tx:
            rows = select(func.count(), func.sum(chunks.c.num_requests), func.sum(chunks.c.attempt))
            sums = tx.execute(rows.where(chunks.c.job_id == lease.job_id)).one()
        return refused, _state(shared, chunks, lease.chunk_id), _state(shared, jobs, lease.job_id), *sums

    assert run(_at_once) == run(_one_after_the_other)


def _move_chunk(tx: Connection, arrow: str, lease: Lease) -> None:
    if arrow == "drop":  # only with its job
        transitions.expire_job(tx, lease.job_id)
    else:
        move_chunk(tx, arrow, lease)


@pytest.mark.parametrize(("state", "first", "second"), _pairs(WORKER_ARROWS, WorkerState))
def test_of_a_worker(shared: Database, state: WorkerState, first: str, second: str) -> None:
    def run(play: Callable[..., Any]) -> tuple[Any, ...]:
        with shared.write() as tx:
            worker_id = insert_worker(tx, state)
        moves = [partial(move_worker, arrow=name, worker_id=worker_id) for name in (first, second)]
        return play(shared, *moves), _state(shared, workers, worker_id)

    assert run(_at_once) == run(_one_after_the_other)
