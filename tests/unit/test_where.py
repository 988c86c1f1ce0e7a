"""`--where FIELD=VALUE`: which requests fit, and what is said of a field or value that there is not."""

import re
from pathlib import Path

import pytest

from db.errors import SettingsError
from db.outcomes import Outcome
from db.states import ResultStatus
from jobs.where import RETRYABLE_CODES, parse_retry, parse_where

_README = (Path(__file__).parents[2] / "README.md").read_text()


def _outcome(
    index: int,
    status: str = "succeeded",
    *,
    code: str | None = None,
    finish_reason: str | None = None,
    custom_id: str | None = None,
) -> Outcome:
    return Outcome(index, custom_id, ResultStatus(status), None, finish_reason, None, None, code, code)


_OUTCOMES = [
    _outcome(0, finish_reason="stop", custom_id="a=b"),
    _outcome(1, finish_reason="length"),
    _outcome(2, "failed", code="engine_error", custom_id="1"),
    _outcome(3, "failed", code="invalid_json"),
    _outcome(4, "cancelled", code="cancelled"),
]


@pytest.mark.parametrize(
    ("where", "indexes"),
    [
        ([], [2, 3, 4]),
        (["status=failed"], [2, 3]),
        (["status=failed", "status=cancelled"], [2, 3, 4]),
        (["status=failed", "code=invalid_json"], [3]),
        (["code=engine_error", "finish_reason=stop"], []),
        (["finish_reason=length"], [1]),
        (["custom_id=a=b"], [0]),
        (["custom_id=1"], [2]),
        (["index=1", "index=004"], [1, 4]),
        (["index=" + "9" * 5000], []),
    ],
)
def test_values_of_one_field_are_alternatives_and_fields_conditions(
    where: list[str], indexes: list[int]
) -> None:
    chosen = parse_where(where)
    assert [one.index for one in _OUTCOMES if chosen.fits(one)] == indexes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope=1", "give FIELD=VALUE, of the fields status, code, finish_reason, custom_id, index"),
        ("status", "give FIELD=VALUE"),
        ("", "give FIELD=VALUE"),
        ("status=fialed", "status is one of succeeded, failed, cancelled, expired"),
        ("code=engine_eror", "code is one of engine_error, engine_crash, invalid_json, "),
        ("finish_reason=", "finish_reason is one of stop, length"),
        ("index=-1", "an index is a whole number, counted from 0"),
        ("index=²", "an index is a whole number, counted from 0"),
    ],
)
def test_a_field_or_value_that_there_is_not_is_told_with_those_there_are(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"--where {text}: {message}")):
        parse_where(["status=failed", text])


def test_a_retry_takes_codes_that_may_pass() -> None:
    assert parse_retry([]) == RETRYABLE_CODES
    assert parse_retry(["code=engine_crash"]) == ("engine_crash",)
    with pytest.raises(SettingsError, match="promptmill rerun JOB --where code=input_too_long --set"):
        parse_retry(["code=input_too_long"])
    with pytest.raises(SettingsError, match="of engine_error, engine_crash; rerun takes every field"):
        parse_retry(["status=failed"])
