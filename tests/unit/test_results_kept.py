"""What of a completion is kept as a request's result, and that a job's sampling defaults reach the engine."""

import json
from typing import Any

import orjson
import pytest
from echo_worker import work

from db import leases, queries, transitions
from db.database import Database
from db.errors import SettingsError
from jobs.cards import Card
from jobs.settings import Settings
from jobs.submit import InputRefusedError, SubmitOptions, submit
from jobs.tools import ToolUse
from workers.chunk_run import result_of
from workers.engine import Choice, Completion

CALL = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
READ = [{"name": "a", "arguments": {}}]
USE = ToolUse(())
LOGPROBS = [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}]


def completion(text: str, *others: Choice, logprobs: Any = None) -> Completion:
    return Completion(1, text, None, "stop", 1, 1, logprobs, others)


def test_a_plain_one_is_its_text_alone() -> None:
    assert result_of(completion(CALL), None) == {"response": CALL}


def test_calls_and_logprobs_stand_beside_the_text() -> None:
    assert result_of(completion(f"So: {CALL}"), USE) == {"response": "So:", "tool_calls": READ}
    assert result_of(completion("no call"), USE) == {"response": "no call"}
    found = result_of(completion("a", logprobs=LOGPROBS), None)
    assert found == {"response": "a", "logprobs": {"content": LOGPROBS}}


def test_of_several_all_are_choices_and_the_first_stands_at_the_top_too() -> None:
    found = result_of(completion("a", Choice(CALL, "length"), Choice("b", "stop")), USE)
    assert found == {
        "response": "a",
        "choices": [
            {"index": 0, "finish_reason": "stop", "response": "a"},
            {"index": 1, "finish_reason": "length", "response": "", "tool_calls": READ},
            {"index": 2, "finish_reason": "stop", "response": "b"},
        ],
    }


def run(database: Database, settings: Settings, card: Card, job_id: str) -> dict[int, Any]:
    """The job's results, after a worker with the echo engine has run it."""
    work(database, settings, card.name)
    assert queries.get_job(database, job_id).state == "completed"
    from sqlalchemy import text

    with database.read() as tx:
        rows = tx.execute(
            text('SELECT "index", result, completion_tokens FROM results WHERE job_id = :id'), {"id": job_id}
        )
        return {index: (orjson.loads(result), tokens) for index, result, tokens in rows}


def test_all_of_it_goes_through_a_worker(
    sqlite_database: Database, settings: Settings, card: Card, write: Any
) -> None:
    path = write(
        {"prompt": CALL, "tools": [{"name": "a"}]},
        {"prompt": "one two three", "n": 2},
        {"prompt": "one two three", "max_tokens": 1, "logprobs": True},
        {"prompt": "one two three"},
    )
    options = SubmitOptions(sampling={"max_tokens": 2, "temperature": 0.5})
    job = submit(sqlite_database, settings, card, str(path), options).job
    results = run(sqlite_database, settings, card, job.id)
    assert results[0] == ({"response": '<tool_call>{"name": "a",'}, 2), "cut off, it stays text"
    assert [choice["response"] for choice in results[1][0]["choices"]] == ["one two"] * 2
    assert results[1][1] == 4
    assert [len(one["top_logprobs"]) for one in results[2][0]["logprobs"]["content"]] == [0]
    assert results[3] == ({"response": "one two"}, 2)


def test_the_job_s_number_of_completions_is_made(
    sqlite_database: Database, settings: Settings, card: Card, write: Any
) -> None:
    path = write({"prompt": "one two"}, {"prompt": "one two", "n": 1}, {"prompt": "one two", "n": 2})
    job = submit(sqlite_database, settings, card, str(path), SubmitOptions(sampling={"n": 3})).job
    results = run(sqlite_database, settings, card, job.id)
    assert [len(result.get("choices", "-")) for result, _ in results.values()] == [3, 1, 2]
    assert [num_tokens for _, num_tokens in results.values()] == [6, 2, 4]


# a job's defaults


def test_the_same_file_with_other_defaults_is_another_job(
    sqlite_database: Database, settings: Settings, card: Card, write: Any
) -> None:
    path = str(write({"prompt": "x"}))

    def once(**sampling: Any) -> str:
        return submit(
            sqlite_database, settings, card, path, SubmitOptions(once=True, sampling=sampling)
        ).job.id

    assert once() == once()
    assert once(temperature=0.5, seed=1) == once(seed=1, temperature=0.5)
    assert len({once(), once(temperature=0.5), once(temperature=0.6), once(seed=1), once(n=2)}) == 5
    job = queries.get_job(sqlite_database, once(temperature=0.5))
    assert json.loads(job.sampling or "") == {"temperature": 0.5}
    found = queries.find_unfinished_job(sqlite_database, job.input_sha256, card.sha256, job.sampling)
    assert found is not None
    assert found.id == job.id
    without = queries.find_unfinished_job(sqlite_database, job.input_sha256, card.sha256)
    assert without is not None
    assert without.id == once()


def test_a_line_that_the_job_s_defaults_make_impossible_is_bad(
    sqlite_database: Database, settings: Settings, card: Card, write: Any
) -> None:
    path = str(write({"prompt": "x", "n": 2}, {"prompt": "x", "n": 2, "temperature": 1}))
    with pytest.raises(InputRefusedError) as refused:
        submit(sqlite_database, settings, card, path, SubmitOptions(sampling={"temperature": 0}))
    assert [(one.line, one.path) for one in refused.value.report.errors] == [(1, "n")]
    assert submit(sqlite_database, settings, card, path, SubmitOptions()).created


def test_impossible_defaults_store_nothing(
    sqlite_database: Database, settings: Settings, card: Card, write: Any
) -> None:
    path = str(write({"prompt": "x"}))
    with pytest.raises(SettingsError, match="--top-p"):
        submit(sqlite_database, settings, card, path, SubmitOptions(sampling={"top_p": 2}))
    assert queries.list_jobs(sqlite_database, 10) == []


def test_a_chunk_is_sized_by_all_that_it_may_generate(
    sqlite_database: Database, settings: Settings, card: Card, write: Any
) -> None:
    path = str(write(*[{"prompt": "x", "n": 64, "temperature": 1}] * 4))
    job = submit(sqlite_database, settings, card, path, SubmitOptions()).job
    with sqlite_database.write() as tx:
        transitions.register_worker(tx, "w", card.name, "echo", "host", 1)
    lease = leases.claim(sqlite_database, "w", card.name, 60)
    assert lease is not None
    assert (lease.job_id, lease.num_requests) == (job.id, 1)
