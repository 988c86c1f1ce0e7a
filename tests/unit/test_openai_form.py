"""OpenAI's batch lines: its own package takes them, the ids stay, and errors have a file of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from db import queries
from db.database import Database
from db.errors import OutputError, SettingsError
from db.leases import NewResult
from db.states import ResultStatus
from jobs.control import cancel
from jobs.export import ExportOptions, export
from jobs.forms import Form

_OPENAI = ExportOptions(Form.OPENAI)
_EVENTS = 'data: {"response":"Hi"}\n\ndata: {"response":" there\\n"}\n\ndata: [DONE]\n\n'
_TOKEN = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}
_LOGPROBS = {
    "content": [{**_TOKEN, "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": None}]}, _TOKEN],
    "refusal": None,
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def one(store: Any, finish: Any, sqlite_database: Database, tmp_path: Path) -> Any:
    """The line of a job of one request that came to `result`."""

    def run(request: Any, result: Any, finish_reason: str = "stop") -> dict[str, Any]:
        job_id = store(request)
        finish(sqlite_database, job_id, NewResult(0, json.dumps(result), finish_reason, 4, 6))
        export(sqlite_database, job_id, str(tmp_path / "out.jsonl"), _OPENAI)
        return _lines(tmp_path / "out.jsonl")[0]

    return run


def test_a_line_has_the_reference_s_fields(one: Any, sqlite_database: Database) -> None:
    line = one({"prompt": "2 + 2?", "custom_id": "a"}, {"response": "4, ä"})
    job = queries.list_jobs(sqlite_database, 1)[0]
    key = line["id"].removeprefix("batch_req_")
    assert line == {
        "id": f"batch_req_{key}",
        "custom_id": "a",
        "response": {
            "status_code": 200,
            "request_id": f"req_{key}",
            "body": {
                "id": f"chatcmpl-{key}",
                "object": "chat.completion",
                "created": int(job.finished_at or 0),
                "model": "hermes-2-pro-mistral-7b",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "4, ä", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10},
            },
        },
        "error": None,
    }


@pytest.mark.parametrize(
    "request_",
    [{"prompt": "x"}, {"prompt": "x", "raw": False}, {"messages": [{"role": "user", "content": "x"}]}],
)
def test_what_went_through_the_template_is_a_chat_completion(one: Any, request_: Any) -> None:
    body = one(request_, {"response": "yes", "logprobs": _LOGPROBS}, "length")["response"]["body"]
    completion = ChatCompletion.model_validate(body, strict=True)
    assert completion.choices[0].message.content == "yes"
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].logprobs is not None
    assert completion.to_dict() == body, "nothing that the model does not know"


def test_what_went_in_as_it_was_is_a_text_completion(one: Any) -> None:
    body = one({"prompt": "x", "raw": True}, {"response": "yes", "logprobs": _LOGPROBS})["response"]["body"]
    completion = Completion.model_validate(body, strict=True)
    assert (completion.object, completion.choices[0].text) == ("text_completion", "yes")
    assert completion.id.startswith("cmpl-")
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs) == (["Hi", "Hi"], [-0.5, -0.5])
    assert (logprobs.top_logprobs, logprobs.text_offset) == ([{"Hi": -0.5}, {}], [0, 2])
    assert completion.to_dict() == body


def test_several_choices_all_come_out(one: Any) -> None:
    choices = [{"index": n, "response": f"answer {n}", "finish_reason": "stop"} for n in range(3)]
    body = one({"prompt": "x"}, {"response": "answer 0", "choices": choices})["response"]["body"]
    found = ChatCompletion.model_validate(body).choices
    assert [(choice.index, choice.message.content) for choice in found] == [
        (n, f"answer {n}") for n in range(3)
    ]


def test_calls_of_tools_are_openai_s(one: Any) -> None:
    calls = [{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "time", "arguments": {}}]
    body = one({"prompt": "x"}, {"response": "", "tool_calls": calls})["response"]["body"]
    choice = ChatCompletion.model_validate(body).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    found = body["choices"][0]["message"]["tool_calls"]
    assert [(call["type"], call["function"]["name"]) for call in found] == [
        ("function", "weather"),
        ("function", "time"),
    ]
    assert json.loads(found[0]["function"]["arguments"]) == {"city": "Köln"}
    assert len({call["id"] for call in found}) == 2
    assert all(call["id"].startswith("call_") for call in found)


def test_an_event_stream_is_the_text_that_it_makes_up(one: Any) -> None:
    body = one({"prompt": "x", "stream": True}, _EVENTS)["response"]["body"]
    assert ChatCompletion.model_validate(body).choices[0].message.content == "Hi there\n"


# --- files and errors -----------------------------------------------------------------------------------------


@pytest.fixture
def mixed(store: Any, finish: Any, sqlite_database: Database) -> str:
    """A cancelled job: a success, a bad line, one that its engine refused, one that never ran."""
    lines = ({"prompt": "x"}, {"prompt": 5, "custom_id": "b"}, {"prompt": "x"}, {"prompt": "x"})
    job_id: str = store(*lines, chunk_size=1)
    failed = NewResult(2, error_code="engine_error", error_message="it broke")
    finish(sqlite_database, job_id, failed, max_chunks=2)
    cancel(sqlite_database, job_id)
    return job_id


def test_errors_go_beside_the_output(mixed: str, sqlite_database: Database, tmp_path: Path) -> None:
    assert export(sqlite_database, mixed, str(tmp_path / "out.jsonl"), _OPENAI) == 4
    assert [line["custom_id"] for line in _lines(tmp_path / "out.jsonl")] == ["request-0"]
    bad, broken, never = _lines(tmp_path / "out.errors.jsonl")
    assert (tmp_path / "out.errors.jsonl").stat().st_mode & 0o777 == 0o600
    assert (bad["custom_id"], bad["error"], bad["response"]["status_code"]) == ("b", None, 400)
    assert bad["response"]["body"]["error"] == {
        "message": 'line 2, prompt: the value is not of type "string"',
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }
    assert broken["response"]["status_code"] == 500
    assert broken["response"]["body"]["error"]["code"] == "engine_error"
    assert (never["response"], never["error"]["code"]) == (None, "batch_cancelled")


def test_ids_are_the_same_each_time_and_different_in_each_line(
    mixed: str, sqlite_database: Database, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        export(sqlite_database, mixed, str(tmp_path / name), _OPENAI)
    for suffix in ("", ".errors"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    ids = [line["id"] for name in ("one", "one.errors") for line in _lines(tmp_path / name)]
    assert len(set(ids)) == 4


def test_errors_go_where_they_are_sent(mixed: str, sqlite_database: Database, tmp_path: Path) -> None:
    options = ExportOptions(Form.OPENAI, errors_path=str(tmp_path / "deep" / "errors"))
    export(sqlite_database, mixed, str(tmp_path / "out.jsonl"), options)
    assert (len(_lines(tmp_path / "out.jsonl")), len(_lines(tmp_path / "deep" / "errors"))) == (1, 3)


def test_on_stdout_the_errors_are_among_the_others(
    mixed: str, sqlite_database: Database, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert export(sqlite_database, mixed, "-", _OPENAI) == 4
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [line["custom_id"] for line in lines] == ["request-0", "b", "request-2", "request-3"]


def test_without_errors_there_is_no_file_of_them_and_an_old_one_is_emptied(
    store: Any, finish: Any, sqlite_database: Database, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x"})
    finish(sqlite_database, job_id)
    export(sqlite_database, job_id, str(tmp_path / "out.jsonl"), _OPENAI)
    assert not list(tmp_path.glob("*errors*"))
    (tmp_path / "out.errors.jsonl").write_text("of the last time\n")
    export(sqlite_database, job_id, str(tmp_path / "out.jsonl"), _OPENAI)
    assert (tmp_path / "out.errors.jsonl").read_text() == ""


def test_failed_ones_alone_are_the_output(mixed: str, sqlite_database: Database, tmp_path: Path) -> None:
    options = ExportOptions(Form.OPENAI, frozenset({ResultStatus.FAILED}))
    assert export(sqlite_database, mixed, str(tmp_path / "failed.jsonl"), options) == 2
    assert len(_lines(tmp_path / "failed.jsonl")) == 2
    assert not list(tmp_path.glob("*errors*"))


def test_one_file_cannot_hold_both_and_both_stay_as_they_were(
    mixed: str, sqlite_database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("of the last time\n")
    with pytest.raises(OutputError, match="give the errors another file"):
        export(sqlite_database, mixed, str(path), ExportOptions(Form.OPENAI, errors_path=str(path)))
    with pytest.raises(OutputError, match="is a folder"):
        export(sqlite_database, mixed, str(path), ExportOptions(Form.OPENAI, errors_path=str(tmp_path)))
    assert path.read_text() == "of the last time\n"
    assert {one.name for one in tmp_path.iterdir()} == {"home", "in.jsonl", "out.jsonl"}


def test_only_this_form_has_a_file_of_errors_and_it_has_no_room_for_more() -> None:
    with pytest.raises(SettingsError, match="only the format openai"):
        ExportOptions(Form.CSV, errors_path="errors")
    for form in (Form.OPENAI, Form.CLOUDFLARE):
        with pytest.raises(SettingsError, match="no room for --fields, --with-input or --with-params"):
            ExportOptions(form, with_input=True)
