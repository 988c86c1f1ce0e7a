"""`--fields` and what else is asked of native lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from db import queries
from db.database import Database
from db.errors import SettingsError
from db.leases import NewResult
from db.outcomes import iterate_outcomes
from db.states import ResultStatus
from jobs.control import cancel
from jobs.export import ExportOptions, Order, export, options_for
from jobs.forms import Form
from jobs.forms.fields import parse_fields
from jobs.progress import format_time


@pytest.fixture
def done(store: Any, finish: Any, sqlite_database: Database) -> str:
    """Positions: the bad line first, then what ran."""
    job_id: str = store(
        {"prompt": "x", "custom_id": "a"},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prompt": 5},
    )
    choices = [{"index": 0, "response": "no"}, {"index": 1, "response": "yes"}]
    finish(
        sqlite_database,
        job_id,
        NewResult(1, json.dumps({"response": "no", "choices": choices}), "stop", 4, 2),
    )
    return job_id


@pytest.fixture
def lines(sqlite_database: Database, tmp_path: Path) -> Any:
    """The lines of an export with these options."""

    def run(job_id: str, **options: Any) -> list[dict[str, Any]]:
        num = export(sqlite_database, job_id, str(tmp_path / "out.jsonl"), ExportOptions(**options))
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert len(found) == num
        return found

    return run


def test_a_copy_says_so_in_a_field_and_in_a_column(
    store: Any, finish: Any, sqlite_database: Database, lines: Any, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x"}, {"prompt": "x"})
    finish(sqlite_database, job_id, NewResult(1, "{}", "stop", 1, 1, reused_from="job_a:7"))
    assert [line["reused_from"] for line in lines(job_id, fields=("index", "reused_from"))] == [
        None,
        "job_a:7",
    ]
    export(sqlite_database, job_id, str(tmp_path / "out.csv"), ExportOptions(Form.CSV))
    assert (tmp_path / "out.csv").read_text().splitlines()[-1].endswith(",job_a:7")


def test_a_field_is_taken_by_its_path_and_is_null_where_there_is_none(done: str, lines: Any) -> None:
    fields = ("custom_id", "result.choices.1.response", "request.messages.0.content", "error.code")
    first, second, third = lines(done, fields=fields)
    assert first == {**dict.fromkeys(fields), "custom_id": "a"}
    assert second == {
        "custom_id": None,
        "result.choices.1.response": "yes",
        "request.messages.0.content": "hi",
        "error.code": None,
    }
    assert third == {**dict.fromkeys(fields), "error.code": "invalid_request"}


def test_position_and_time_are_fields_too(done: str, lines: Any, sqlite_database: Database) -> None:
    found = lines(done, fields=("position", "finished_at"))
    assert [line["position"] for line in found] == [2, 3, 1]
    stored = [one.finished_at for one in iterate_outcomes(sqlite_database, done, with_bodies=True)]
    assert [line["finished_at"] for line in found] == [format_time(one) for one in stored]
    assert None not in stored


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("respones", "respones is no field of a result line; there are index, custom_id"),
        ("", "an empty name is no field"),
        ("index,,status", "an empty name is no field"),
        ("result.", "result. is no field"),
        ("index,index", "names a field twice"),
    ],
)
def test_a_field_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_fields(text)


def test_spaces_around_a_field_do_no_harm() -> None:
    assert parse_fields(" index , result.response") == ("index", "result.response")


def test_with_the_input_each_line_ends_with_its_request(done: str, lines: Any) -> None:
    first, second, third = lines(done, with_input=True)
    assert list(first)[-1] == "request"
    assert first["request"] == {"prompt": "x", "custom_id": "a"}
    assert second["request"] == {"messages": [{"role": "user", "content": "hi"}]}
    assert third["request"] is None
    assert (first["result"], third["status"]) == ({"response": "answer 0"}, "failed")


def test_only_some_statuses(done: str, lines: Any) -> None:
    failed, succeeded = ResultStatus.FAILED, ResultStatus.SUCCEEDED
    assert [line["index"] for line in lines(done, only=frozenset({failed}))] == [2]
    assert [line["index"] for line in lines(done, only=frozenset({succeeded}))] == [0, 1]
    assert [line["index"] for line in lines(done, only=frozenset({succeeded, failed}))] == [0, 1, 2]
    assert lines(done, only=frozenset({ResultStatus.EXPIRED})) == []


def test_in_the_order_of_finishing_lines_have_their_positions(
    store: Any, finish: Any, sqlite_database: Database, lines: Any
) -> None:
    job_id = store({"prompt": "x"}, {"prompt": 5}, {"prompt": "x"}, {"prompt": "x"}, chunk_size=1)
    finish(sqlite_database, job_id, max_chunks=1)
    cancel(sqlite_database, job_id)
    expected = [(1, 1, "failed"), (0, 2, "succeeded"), (2, 3, "cancelled"), (3, 4, "cancelled")]
    for after in range(5):
        found = lines(job_id, order=Order.FINISHED, after=after)
        assert [(line["index"], line["position"], line["status"]) for line in found] == expected[after:]
    in_input_order = lines(job_id, fields=("index", "position"))
    assert [line["position"] for line in in_input_order] == [2, 1, 3, 4], "the same numbers in any order"


def test_options_that_contradict_each_other_are_refused(sqlite_database: Database, done: str) -> None:
    job = queries.get_job(sqlite_database, done)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"order": "input", "after": 3}, "not --order input"),
        ({"order": "input", "is_followed": True}, "not --order input"),
        ({"fields": "index", "with_input": True}, "name request among them"),
    ]
    for options, message in refused:
        with pytest.raises(SettingsError, match=message):
            options_for(job, "-", **options)
    assert options_for(job, "-", after=0).order is Order.FINISHED
    assert options_for(job, "-").is_plain
