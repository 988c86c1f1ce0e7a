"""Sums over what finished in a time, and what each worker tells of itself."""

from database.rows import claim, finish, finish_all, record, register, set_columns, submit, success
from sqlalchemy import text

from db import queries, usage
from db.database import Database
from db.leases import Progress, renew
from db.tables import chunks
from db.transitions import Tally
from db.usage import Usage


def _finish_at(database: Database, job_id: str, *times: float, **values: object) -> None:
    """The job's chunks, of two requests each, in input order."""
    submit(database, job_id, num_requests=2 * len(times), **values)  # type: ignore[arg-type]
    finish_all(database)
    for number, at in enumerate(times):
        which = (chunks.c.job_id == job_id) & (chunks.c.first_index == 2 * number)
        set_columns(database, chunks, which, finished_at=at)


def test_each_time_has_its_sums_by_card(database: Database) -> None:
    register(database)
    _finish_at(database, "job_a", 100.0, 199.9, 200.0)
    _finish_at(database, "job_b", 150.0, 300.0)
    two = Tally(2, 0, 6, 10)
    assert usage.list_usage(database, [100.0, 200.0, 300.0]) == [
        Usage(100.0, "tiny", two + two + two),
        Usage(200.0, "tiny", two),
    ]
    assert usage.list_usage(database, [0.0, 100.0]) == []
    assert usage.list_usage(database, [100.0]) == []


def test_cards_come_by_name(database: Database) -> None:
    register(database)
    _finish_at(database, "job_a", 100.0, 110.0)
    for card in ("zeta", "alpha"):
        submit(database, f"job_{card}", num_requests=2, card_name=card)
        with database.write() as tx:
            tx.execute(
                text(
                    "UPDATE chunks SET state = 'done', num_failed = 2, completion_tokens = 7, finished_at = 120"
                    " WHERE job_id = :job_id"
                ),
                {"job_id": f"job_{card}"},
            )
    found = usage.list_usage(database, [0.0, 1_000.0])
    assert [(one.name, one.tally) for one in found] == [
        ("alpha", Tally(0, 2, 0, 7)),
        ("tiny", Tally(4, 0, 12, 20)),
        ("zeta", Tally(0, 2, 0, 7)),
    ]


def test_only_chunks_that_finished_count(database: Database) -> None:
    register(database)
    submit(database, "job_a", num_requests=6)
    finish(database, claim(database))
    record(database, claim(database), [success(2)], is_last=False)
    found = usage.list_usage(database, [0.0, 1e11])
    assert [one.tally.num_succeeded for one in found] == [2]


def test_a_worker_tells_what_it_did_and_holds_what_it_claimed(database: Database) -> None:
    for worker_id in ("w1", "w2"):
        register(database, worker_id)
    submit(database, num_requests=6)
    held = [claim(database, "w1"), claim(database, "w1")]
    before = {worker.id: worker for worker in queries.list_workers(database)}
    assert {one.id: one.num_chunks for one in before.values()} == {"w1": 2, "w2": 0}
    assert before["w1"].completion_tokens_per_s is None, "it has told nothing yet"
    renew(
        database, "w1", held, 60.0, Progress(num_results=5, completion_tokens=70, completion_tokens_per_s=3.5)
    )
    finish(database, held[0])
    after = {worker.id: worker for worker in queries.list_workers(database)}
    told = after["w1"]
    assert (told.num_chunks, told.num_results, told.completion_tokens) == (1, 5, 70)
    assert told.completion_tokens_per_s == 3.5
    renew(database, "w1", held[1:], 60.0)
    assert queries.list_workers(database)[0].num_results == 5, (
        "a heartbeat that tells nothing takes nothing away"
    )
    assert (after["w2"].num_results, after["w2"].completion_tokens_per_s) == (0, None)
