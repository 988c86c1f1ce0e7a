"""`rerun`: a new job of chosen requests, changed or not, that is checked like a submit and linked to its parent."""

import hashlib
import json
from typing import Any

import pytest
from soundness import assert_job_is_sound

from db import outcomes, queries
from db.database import Database
from db.errors import InputError, NotFoundError, SettingsError, UnsoundError, WrongStateError
from db.leases import NewResult
from db.queries import Job
from jobs import rerun as reruns
from jobs import retention
from jobs.cards import Card
from jobs.control import cancel
from jobs.manifest import manifest
from jobs.rerun import Rerun, RerunOptions, change, parse_changes, rerun
from jobs.retry import retry
from jobs.settings import Settings
from jobs.submit import InputRefusedError, OnInvalid, SubmitOptions, submit
from jobs.verify import verify

_BIG = 2**70
_LINES: list[dict[str, Any]] = [
    {"prompt": "zero", "custom_id": "a"},
    {"prompt": "one", "max_tokens": 5, "seed": 7},
    {"prompt": 5},
    {"prompt": "three", "custom_id": "d", "metadata": {"big": _BIG}},
    {"prompt": "four"},
]


@pytest.fixture
def parent(sqlite_database: Database, settings: Settings, card: Card, write: Any, finish: Any) -> Job:
    """Completed: 1 ended for its length, 2 is a bad line, 3 failed."""
    options = SubmitOptions(
        name="nightly", priority=3, on_invalid=OnInvalid.SKIP, sampling={"temperature": 0.5, "max_tokens": 9}
    )
    job = submit(sqlite_database, settings, card, str(write(*_LINES)), options).job
    finish(
        sqlite_database,
        job.id,
        NewResult(1, '{"response": "cut"}', "length", 3, 5),
        NewResult(3, error_code="engine_error", error_message="it broke"),
    )
    return queries.get_job(sqlite_database, job.id)


@pytest.fixture
def run(sqlite_database: Database, settings: Settings) -> Any:
    def make(parent_id: str, *where: str, changes: tuple[str, ...] = (), **options: Any) -> Rerun:
        return rerun(sqlite_database, settings, parent_id, RerunOptions(where, changes, **options))

    return make


def _bodies(database: Database, job_id: str) -> list[dict[str, Any]]:
    return [json.loads(body) for body in outcomes.iterate_bodies(database, job_id)]


def test_what_did_not_succeed_runs_again_as_it_was(
    sqlite_database: Database, parent: Job, run: Any, finish: Any
) -> None:
    made = run(parent.id)
    job = made.job
    assert (job.state, job.counts.total, made.num_bad_lines) == ("queued", 1, 1)
    assert (job.parent_id, job.ancestors, job.name) == (parent.id, (parent.id,), None)
    assert (job.card_sha256, job.priority, job.sampling) == (parent.card_sha256, 3, parent.sampling)
    assert (job.input_name, job.input_format) == (parent.id, parent.input_format)
    (body,) = outcomes.iterate_bodies(sqlite_database, job.id)
    assert body == json.dumps(_LINES[3])
    finish(sqlite_database, job.id)
    (outcome,) = outcomes.iterate_outcomes(sqlite_database, job.id, with_bodies=True)
    assert (outcome.index, outcome.custom_id, outcome.root_index) == (0, "d", 3)
    assert_job_is_sound(sqlite_database, job.id)
    assert_job_is_sound(sqlite_database, parent.id)
    assert manifest(sqlite_database, job.id)["job"]["parent"] == parent.id


def test_requests_are_chosen_by_their_outcome_and_changed(
    sqlite_database: Database, parent: Job, run: Any
) -> None:
    made = run(parent.id, "finish_reason=length", changes=("max_tokens=512", "seed=null", "stop=END"))
    assert _bodies(sqlite_database, made.job.id) == [{"prompt": "one", "max_tokens": 512, "stop": "END"}]
    made = run(parent.id, "custom_id=d", "custom_id=a", changes=("max_tokens=4",), name="again", priority=0)
    assert _bodies(sqlite_database, made.job.id) == [
        {**_LINES[0], "max_tokens": 4},
        {**_LINES[3], "max_tokens": 4},
    ]
    assert (made.job.name, made.job.priority) == ("again", 0)


def test_a_family_keeps_the_first_jobs_indexes(
    sqlite_database: Database, parent: Job, run: Any, finish: Any
) -> None:
    first = run(parent.id, "index=1", "index=3", "index=4").job
    finish(sqlite_database, first.id)
    second = run(first.id, "index=1", "index=2").job
    finish(sqlite_database, second.id)
    found = list(outcomes.iterate_outcomes(sqlite_database, second.id, with_bodies=True))
    assert [one.root_index for one in found] == [3, 4]
    assert second.ancestors == (parent.id, first.id)
    other = run(parent.id).job
    for job, descendants in ((parent, [first, second, other]), (first, [second]), (second, [])):
        listed = queries.list_descendants(sqlite_database, job)
        assert [one.id for one in listed] == [one.id for one in descendants]
    retention.delete(sqlite_database, first.id)
    assert [one.id for one in queries.list_descendants(sqlite_database, parent)] == [second.id, other.id]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["status=expired"], "no request of {} fits status=expired: it has 3 succeeded, 2 failed"),
        (["index=77"], "no request of {} fits index=77"),
        (["code=invalid_request"], "of {} are 1 bad lines, which have no request to run"),
    ],
)
def test_where_nothing_fits_nothing_is_stored(
    sqlite_database: Database, parent: Job, run: Any, where: list[str], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(parent.id, *where)
    assert message.format(parent.id) in str(caught.value)
    assert [job.id for job in queries.list_jobs(sqlite_database, 9)] == [parent.id]


def test_a_job_that_is_not_over_or_not_there_has_nothing_to_give(store: Any, run: Any) -> None:
    with pytest.raises(
        WrongStateError, match="is queued; this needs it to be cancelled or completed or expired"
    ):
        run(store({"prompt": "x"}))
    with pytest.raises(NotFoundError):
        run("job_nope")


def test_what_was_cancelled_runs_under_a_new_job(
    sqlite_database: Database, store: Any, run: Any, finish: Any
) -> None:
    parent_id = store(*[{"prompt": f"{n}"} for n in range(5)], chunk_size=2)
    finish(sqlite_database, parent_id, max_chunks=1)
    cancel(sqlite_database, parent_id)
    job = run(parent_id, "status=cancelled").job
    assert [body["prompt"] for body in _bodies(sqlite_database, job.id)] == ["2", "3", "4"]


@pytest.mark.parametrize("gone", ["deleted", "retried"])
def test_a_parent_that_goes_meanwhile_takes_the_new_job_along(
    sqlite_database: Database, parent: Job, run: Any, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    real = reruns.change

    def change_and_go(body: str, changes: Any) -> str:
        if gone == "deleted":
            retention.delete(sqlite_database, parent.id)
        else:
            assert retry(sqlite_database, parent.id).num_retried == 1
        return real(body, changes)

    monkeypatch.setattr(reruns, "change", change_and_go)
    monkeypatch.setattr(reruns, "_BLOCK_REQUESTS", 1)  # else all was read by then, and nothing is missing
    with pytest.raises(NotFoundError if gone == "deleted" else WrongStateError):
        run(parent.id)
    assert [job.id for job in queries.list_jobs(sqlite_database, 9)] == (
        [] if gone == "deleted" else [parent.id]
    )
    with sqlite_database.read() as tx:
        assert tx.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one() == (0 if gone == "deleted" else 1)


# --- changes --------------------------------------------------------------------------------------------------


def test_a_value_is_json_or_else_a_text(card: Card) -> None:
    texts = [
        "max_tokens=5",
        "stop=[1",
        'prompt="5"',
        "raw=true",
        "seed=null",
        'response_format={"type": "text"}',
    ]
    assert parse_changes(texts, card) == {
        "max_tokens": 5,
        "stop": "[1",
        "prompt": "5",
        "raw": True,
        "seed": None,
        "response_format": {"type": "text"},
    }
    assert parse_changes(["stop=NaN"], card) == {"stop": "NaN"}


@pytest.mark.parametrize("text", ["max_token=5", "custom_id=x", "metadata={}", "max_tokens", "=5"])
def test_a_field_that_nobody_knows_is_told_with_those_there_are(card: Card, text: str) -> None:
    with pytest.raises(
        SettingsError, match=f"--set {text}: give FIELD=VALUE, of the fields .*max_tokens.*top_p"
    ):
        parse_changes([text], card)


def test_what_is_not_changed_stays_as_it_was() -> None:
    body = '{ "prompt":"ü",  "n": 1, "metadata": %d}' % _BIG  # noqa: UP031  braces
    assert change(body, {}) == body
    assert change(body, {"n": None, "top_k": 2}) == '{"prompt":"ü","metadata":%d,"top_k":2}' % _BIG  # noqa: UP031


@pytest.mark.parametrize("changes", ["max_tokens=0", "max_tokens=many", "temperature=9", "raw=5"])
def test_requests_that_a_change_makes_bad_are_refused_by_name(
    sqlite_database: Database, parent: Job, run: Any, changes: str
) -> None:
    with pytest.raises(InputRefusedError) as caught:
        run(parent.id, "status=succeeded", changes=(changes,))
    report = caught.value.report
    assert (report.num_lines, report.num_invalid) == (3, 3)
    assert [str(error.place) for error in report.errors] == [
        f"request of {parent.id} with index {index}" for index in (0, 1, 4)
    ]
    assert len(queries.list_jobs(sqlite_database, 9)) == 1


def test_bad_ones_may_be_skipped(sqlite_database: Database, parent: Job, run: Any) -> None:
    made = run(
        parent.id,
        "index=0",
        "index=1",
        changes=("n=2", "temperature=0", "max_tokens=null"),
        on_invalid=OnInvalid.SKIP,
    )
    assert (made.job.state, made.job.counts.failed, made.report.num_invalid) == ("completed", 2, 2)
    assert_job_is_sound(sqlite_database, made.job.id)
    verify(sqlite_database, made.job.id)
    with pytest.raises(InputError, match="2 bad lines, which have no request to run"):
        run(made.job.id)


# --- verify ---------------------------------------------------------------------------------------------------


def test_a_rerun_is_verified_by_the_requests_that_were_taken(
    sqlite_database: Database, parent: Job, run: Any, finish: Any, write: Any
) -> None:
    job = run(parent.id, "status=succeeded", changes=("max_tokens=4",)).job
    finish(sqlite_database, job.id)
    said = f"its requests are those that were taken from {parent.id}, as they were to run"
    assert verify(sqlite_database, job.id)[-1] == said
    same = write(
        *(body.encode() for body in outcomes.iterate_bodies(sqlite_database, job.id)), name="same.jsonl"
    )
    assert job.input_sha256 == hashlib.sha256(same.read_bytes()).hexdigest()
    assert verify(sqlite_database, job.id, str(same))[-1] == f"{same} is the file that was submitted"
    with pytest.raises(InputError, match=f"was not made from .*in.jsonl, but from requests of {parent.id}"):
        verify(sqlite_database, job.id, str(write(*_LINES)))
    with sqlite_database.write() as tx:
        tx.exec_driver_sql(
            """UPDATE requests SET body = '{"prompt": "y"}' WHERE "index" = 1 AND job_id = ?""", (job.id,)
        )
    with pytest.raises(UnsoundError, match="of those that were taken"):
        verify(sqlite_database, job.id)
