"""Requests and results for people: laid out, on one line, or grouped by what went wrong; nothing acts on the screen."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len

from db.activity import FailedRequest, FailureGroup
from db.one_request import OneRequest
from db.outcomes import Outcome
from db.queries import Counts, Job
from db.states import JobState, ResultStatus
from jobs.error_codes import ERROR_CODES
from jobs.failures import failures_as_dict
from jobs.show import Shown, shown_as_dict
from jobs.shown.failures import failure_lines
from jobs.shown.one_request import request_lines
from jobs.shown.result_lines import result_line
from jobs.shown.screen import plain

MakeJob = Callable[..., Job]
EVIL = "a\x1b]0;x\x07\x9b2J\u202eb"
TAMED = "a\ufffd]0;x\ufffd\ufffd2J\ufffdb"


def outcome(result: Any = None, **values: Any) -> Outcome:
    defaults = {
        "index": 17,
        "custom_id": "question-17",
        "status": ResultStatus.SUCCEEDED,
        "result": json.dumps({"response": "yes"} if result is None else result),
        "finish_reason": "stop",
        "prompt_tokens": 1_037,
        "completion_tokens": 8,
        "error_code": None,
        "error_message": None,
        "position": 3,
        "finished_at": 1_700_000_011.5,
    }
    return Outcome(**{**defaults, **values})


def failed(code: str = "input_too_long", message: str = "5 tokens are more than 4") -> Outcome:
    return outcome(
        status=ResultStatus.FAILED,
        result=None,
        finish_reason=None,
        prompt_tokens=None,
        completion_tokens=None,
        error_code=code,
        error_message=message,
    )


def shown(body: Any, came: Outcome | None, **values: Any) -> Shown:
    if came is not None and came.error_code is not None:
        came.result = None
    request = OneRequest(
        "job_a",
        17,
        "question-17",
        None if body is None else json.dumps(body),
        came,
        **{"attempt": 1, "started_at": 1_700_000_010.0, "host": None, **values},
    )
    return Shown(request, 40, body, None if body is None else {"max_tokens": 32, "seed": 7})


def laid_out(body: Any, came: Outcome | None, width: int | None = None, **values: Any) -> list[str]:
    return [plain(line) for line in request_lines(shown(body, came, **values), width)]


def sections(lines: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    title = ""
    for line in lines:
        if line.startswith("── "):
            title = line.strip("─ ")
            found[title] = []
        elif title:
            found[title].append(line)
    return {title: [line for line in inside if line] for title, inside in found.items()}


# one request laid out


def test_a_request_is_laid_out_whole() -> None:
    body = {
        "custom_id": "question-17",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?\n\nSay it."},
        ],
        "max_tokens": 32,
        "reference": "yes",
    }
    assert laid_out(body, outcome({"response": "Because.\n  So it is."})) == [
        "request    17 of job_a, which has 0 to 39",
        "custom_id  question-17",
        "status     succeeded, finish reason stop, attempt 1",
        "started    2023-11-14T22:13:30.000Z",
        "finished   2023-11-14T22:13:31.500Z",
        "tokens     1,037 prompt, 8 completion",
        "parameters max_tokens 32, seed 7",
        '           reference "yes"',
        "",
        "── system ──",
        "Be brief.",
        "",
        "── user ──",
        "Why?",
        "",
        "Say it.",
        "",
        "── response ──",
        "Because.",
        "  So it is.",
    ]


def test_a_failed_request_has_its_error_and_what_to_do() -> None:
    lines = laid_out({"prompt": "x"}, failed())
    assert "error      input_too_long: 5 tokens are more than 4" in lines
    assert f"what to do {ERROR_CODES['input_too_long'].advice}" in lines
    assert sections(lines) == {"prompt": ["x"]}


def test_a_bad_line_is_not_kept_and_its_error_is() -> None:
    lines = laid_out(None, failed("invalid_json", "line 18: not JSON"), attempt=0, started_at=None)
    assert "error      invalid_json: line 18: not JSON" in lines
    assert sections(lines) == {}
    assert not any("attempt" in line or line.startswith(("started", "parameters")) for line in lines)


def test_a_request_that_runs_says_where_and_one_that_waits_does_not() -> None:
    assert "status     running, attempt 2, on gpu-1" in laid_out(
        {"prompt": "x"}, None, attempt=2, host="gpu-1"
    )
    assert "status     pending" in laid_out({"prompt": "x"}, None, attempt=None, started_at=None)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"response": "yes"}, {"response": ["yes"]}),
        ({"response": ""}, {"response": []}),
        (
            {"response": "Let me see.", "tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]},
            {"response": ["Let me see.", 'calls weather({"city":"Paris"})']},
        ),
        (
            {"choices": [{"index": n, "response": t, "finish_reason": "stop"} for n, t in enumerate("ab")]},
            {"choice 0, finish reason stop": ["a"], "choice 1, finish reason stop": ["b"]},
        ),
        (
            {"response": "x", "logprobs": {"content": []}},
            {"response": ["x", "(with logprobs: --json has them)"]},
        ),
        (
            'data: {"response":"a"}\n\ndata: {"response":"b"}\n\ndata: [DONE]\n\n',
            {"response, as a stream": ["ab"]},
        ),
    ],
)
def test_every_kind_of_answer_is_laid_out(result: Any, expected: dict[str, list[str]]) -> None:
    found = sections(laid_out({"prompt": "x"}, outcome(result)))
    found.pop("prompt")
    assert found == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "x", "raw": True}, {"prompt, raw": ["x"]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, {"user": ["x"]}),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            {"user": ['{"type":"image_url","image_url":{"url":"u"}}']},
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
                ]
            },
            {"assistant": ["calls f({})"]},
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "9"}]}, {"tool call_1": ["9"]}),
        (
            {"messages": ["odd", {"role": "nobody", "content": {"a": 1}}]},
            {"message": ["odd"], "nobody": ['{"a":1}']},
        ),
        ({"messages": "odd"}, {"prompt": []}),
    ],
)
def test_every_kind_of_message_is_laid_out(body: Any, expected: dict[str, list[str]]) -> None:
    assert sections(laid_out(body, None)) == expected


def test_nothing_of_a_request_acts_on_the_terminal() -> None:
    body = {
        "messages": [{"role": EVIL, "content": EVIL, "tool_calls": [{"name": EVIL, "arguments": EVIL}]}],
        "metadata": {EVIL: EVIL},
        EVIL: 1,
    }
    came = outcome({"response": EVIL, "tool_calls": [{"name": EVIL, "arguments": {EVIL: EVIL}}]})
    for one in (came, failed(message=EVIL)):
        text = "".join(laid_out(body, one, host=EVIL))
        assert text.isprintable()
        assert TAMED in text


def test_as_json_it_is_a_result_line_with_all_the_rest() -> None:
    found = shown_as_dict(shown({"prompt": "x"}, outcome()))
    assert found == {
        "job": "job_a",
        "index": 17,
        "custom_id": "question-17",
        "status": "succeeded",
        "result": {"response": "yes"},
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1_037, "completion_tokens": 8, "total_tokens": 1_045},
        "error": None,
        "position": 3,
        "attempt": 1,
        "host": None,
        "started_at": "2023-11-14T22:13:30.000Z",
        "finished_at": "2023-11-14T22:13:31.500Z",
        "params": {"max_tokens": 32, "seed": 7},
        "request": {"prompt": "x"},
    }
    waiting = shown_as_dict(shown({"prompt": "x"}, None, attempt=None, started_at=None))
    assert (waiting["status"], waiting["result"], waiting["usage"], waiting["finished_at"]) == (
        *("pending", None, None, None),
    )


def test_a_narrow_terminal_wraps_facts_by_words_and_leaves_texts_whole() -> None:
    lines = laid_out({"prompt": "word " * 30}, failed(), 40)
    assert all(cell_len(line) <= 40 for line in lines[:-1])
    assert (
        lines[lines.index("what to do make the prompt shorter, or") + 1]
        == "           take a model with a longer"
    )
    assert lines[-1] == ("word " * 30).rstrip()


# a result on one line


def test_a_result_is_one_line_of_the_terminal_s_width() -> None:
    came = outcome({"response": "Rain\n\nand wind, " * 50})
    assert plain(result_line(came, 40, 80)) == (
        "17  question-17       succeeded       8  Rain and wind, Rain and wind, Rain and…"
    )
    assert plain(result_line(came, 40, 40)) == "17  succeeded  Rain and wind, Rain and …"
    assert plain(result_line(failed(), 1_000, 80)) == (
        " 17  question-17       failed             input_too_long: 5 tokens are more tha…"
    )


def test_without_a_terminal_nothing_of_a_result_is_cut() -> None:
    line = plain(result_line(outcome({"response": "Rain\nand wind, " * 50}), 40, None))
    assert line == "17  question-17  succeeded  8  " + ("Rain and wind, " * 50).strip()
    assert plain(result_line(outcome(custom_id=None), 40, None)) == "17  -  succeeded  8  yes"
    assert plain(result_line(failed(), 40, None)).endswith(
        "failed  -  input_too_long: 5 tokens are more than 4"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_result_fits_and_does_nothing_to_the_terminal(width: int) -> None:
    for came in (outcome({"response": EVIL * 99}, custom_id=EVIL), failed(message="日本語" * 99)):
        line = plain(result_line(came, 10_000_000, width))
        assert cell_len(line) <= width
        assert line.isprintable()


def test_several_choices_stand_beside_each_other() -> None:
    came = outcome({"choices": [{"index": n, "response": text} for n, text in enumerate(("one\n", "two"))]})
    assert plain(result_line(came, 40, None)).endswith("8  one | two")


# why requests failed

GROUPS = [
    FailureGroup("input_too_long", 9, (FailedRequest(0, "id-0", "5,000 tokens are more than 4,096"),)),
    FailureGroup("meteor_strike", 3, (FailedRequest(7, None, EVIL), FailedRequest(9, EVIL, "x " * 500))),
]


def failures(job: Job, groups: list[FailureGroup], width: int | None) -> list[str]:
    return [plain(line) for line in failure_lines(job, groups, width)]


@pytest.fixture
def ended(make_job: MakeJob) -> Job:
    counts = Counts(succeeded=88, failed=12, cancelled=20)
    return make_job(id="job_a", state=JobState.CANCELLED, counts=counts)


def test_failures_are_grouped_and_explained(ended: Job) -> None:
    lines = failures(ended, GROUPS, 78)
    assert lines[:9] == [
        "12 of 120 requests of job_a failed (10.0%)",
        "20 never ran, because the job was cancelled",
        "",
        "input_too_long  9 (7.5%)",
        "  more prompt tokens than the card's max_input_length",
        "  what to do: make the prompt shorter, or take a model with a longer context",
        "  0  id-0  5,000 tokens are more than 4,096",
        "  all of one: promptmill show job_a 0",
        "",
    ]
    assert lines[9] == "meteor_strike  3 (2.5%)"
    assert lines[12] == f"  7  {TAMED}"
    assert lines[13].startswith(f"  9  {TAMED}  x x x")
    assert cell_len(lines[13]) == 78
    assert all(line.isprintable() for line in lines)


def test_a_narrow_terminal_wraps_what_is_prose(ended: Job) -> None:
    lines = failures(ended, GROUPS, 40)
    assert all(cell_len(line) <= 40 for line in lines)
    begin = lines.index("  what to do: make the prompt shorter,")
    assert lines[begin + 1 : begin + 3] == [
        "  or take a model with a longer context",
        "  0  id-0  5,000 tokens are more than 4…",
    ]


def test_without_a_terminal_no_message_is_cut(ended: Job) -> None:
    assert failures(ended, GROUPS, None)[13].endswith("x " * 499 + "x")


def test_without_examples_there_is_only_the_summary(ended: Job) -> None:
    assert failures(ended, [FailureGroup("engine_error", 12, ())], 200)[3:] == [
        "engine_error  12 (10.0%)",
        "  the engine refused this request",
        "  what to do: the message says why; submit it again if it was no fault of the request",
    ]


def test_no_failures_are_said_to_be_none(make_job: MakeJob) -> None:
    job = make_job(id="job_a", counts=Counts(succeeded=2))
    assert failures(job, [], 80) == ["none of 2 requests of job_a failed"]


@pytest.mark.parametrize(
    ("num", "total", "share"),
    [(1, 1_000_000, "under 0.1%"), (1, 1, "100%"), (999_999, 1_000_000, "99.9%"), (1, 3, "33.3%")],
)
def test_a_share_is_neither_none_nor_all_unless_it_is(
    make_job: MakeJob, num: int, total: int, share: str
) -> None:
    job = make_job(counts=Counts(succeeded=total - num, failed=num))
    assert failures(job, [FailureGroup("engine_error", num, ())], 80)[0].endswith(f" failed ({share})")


def test_failures_as_json(ended: Job) -> None:
    found = failures_as_dict(ended, GROUPS)
    assert {name: found[name] for name in ("job", "state", "total", "failed", "cancelled", "expired")} == {
        "job": "job_a",
        "state": "cancelled",
        "total": 120,
        "failed": 12,
        "cancelled": 20,
        "expired": 0,
    }
    assert found["errors"][0] == {
        "code": "input_too_long",
        "count": 9,
        "share": 0.075,
        "meaning": ERROR_CODES["input_too_long"].meaning,
        "advice": ERROR_CODES["input_too_long"].advice,
        "examples": [{"index": 0, "custom_id": "id-0", "message": "5,000 tokens are more than 4,096"}],
    }
    assert json.loads(json.dumps(found)) == found
