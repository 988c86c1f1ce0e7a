"""Cloudflare's poll response: one JSON document, whatever is in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from db.database import Database
from db.leases import NewResult
from db.outcomes import Outcome
from db.states import ResultStatus
from jobs.export import ExportOptions, export
from jobs.forms import Form
from jobs.forms.cloudflare import poll_response


def test_the_document_is_the_answer_to_a_poll(
    store: Any, finish: Any, sqlite_database: Database, tmp_path: Path
) -> None:
    job_id = store({"prompt": "x", "custom_id": "reference2"}, {"prompt": 5}, {"prompt": "x"})
    calls = {"response": "", "tool_calls": [{"name": "time", "arguments": {}}]}
    finish(sqlite_database, job_id, NewResult(2, json.dumps(calls), "stop", 4, 1))
    path = tmp_path / "out.json"
    assert export(sqlite_database, job_id, str(path), ExportOptions(Form.CLOUDFLARE)) == 3
    assert json.loads(path.read_bytes()) == {
        "result": {
            "responses": [
                {
                    "id": 0,
                    "result": {"response": "answer 0"},
                    "success": True,
                    "external_reference": "reference2",
                },
                {
                    "id": 1,
                    "result": None,
                    "success": False,
                    "external_reference": None,
                    "error": {
                        "code": "invalid_request",
                        "message": 'line 2, prompt: the value is not of type "string"',
                    },
                },
                {"id": 2, "result": calls, "success": True, "external_reference": None},
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        },
        "success": True,
        "errors": [],
        "messages": [],
    }


@pytest.mark.parametrize("num_outcomes", [0, 1, 2, 100])
def test_it_is_json_of_any_length_and_made_piece_by_piece(num_outcomes: int) -> None:
    made = 0

    def outcomes() -> Any:
        nonlocal made
        for index in range(num_outcomes):
            made += 1
            yield Outcome(index, None, ResultStatus.SUCCEEDED, '{"response":""}', "stop", 1, 2, None, None)

    pieces = []
    for piece in poll_response(outcomes()):
        pieces.append(piece)
        assert made <= len(pieces)
    result = json.loads(b"".join(pieces))["result"]
    assert [response["id"] for response in result["responses"]] == list(range(num_outcomes))
    assert result["usage"]["total_tokens"] == 3 * num_outcomes
