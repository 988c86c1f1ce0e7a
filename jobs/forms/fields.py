"""Fields of a result line by their paths, like `result.response` or `request.messages.0.content`: `--fields`."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from db.errors import SettingsError
from db.outcomes import Outcome
from jobs.forms.native import error_of, usage_of
from jobs.progress import format_time

FIELDS = (
    "index",
    "custom_id",
    "status",
    "result",
    "finish_reason",
    "usage",
    "error",
    "reused_from",
    "position",
    "finished_at",
    "request",
    "params",
    "job",
)


def parse_fields(text: str | None) -> tuple[str, ...]:
    """Paths, separated by commas; SettingsError when one begins with no field of a result line."""
    if text is None:
        return ()
    paths = [path.strip() for path in text.split(",")]
    for path in paths:
        first, *rest = path.split(".")
        if first not in FIELDS or not all(rest):
            raise SettingsError(
                f"--fields: {path or 'an empty name'} is no field of a result line;"
                f" there are {', '.join(FIELDS)}, and what is in them, like result.response"
            )
    if len(set(paths)) < len(paths):
        raise SettingsError("--fields names a field twice")
    return tuple(paths)


def roots(paths: Sequence[str]) -> frozenset[str]:
    """The fields of a result line that these paths begin with."""
    return frozenset(path.split(".")[0] for path in paths)


def getter(path: str) -> Callable[[dict[str, Any]], Any]:
    """Takes the value at `path` out of a `view`; None where there is nothing."""
    names = path.split(".")

    def get(view: dict[str, Any]) -> Any:
        value: Any = view
        for name in names:
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                return None
        return value

    return get


def view(outcome: Outcome) -> dict[str, Any]:
    """A result line with every field that one can have, and no JSON text in it."""
    return {
        "index": outcome.index,
        "custom_id": outcome.custom_id,
        "status": outcome.status.value,
        "result": None if outcome.result is None else orjson.loads(outcome.result),
        "finish_reason": outcome.finish_reason,
        "usage": usage_of(outcome),
        "error": error_of(outcome),
        "reused_from": outcome.reused_from,
        "position": outcome.position,
        "finished_at": format_time(outcome.finished_at),
        "request": None if outcome.body is None else orjson.loads(outcome.body),
        "params": None if outcome.params is None else orjson.loads(outcome.params),
        "job": outcome.job_id,
    }


def field_formatter(paths: Sequence[str]) -> Callable[[Outcome], bytes]:
    """JSON lines with these fields, each named by its path."""
    getters = [(path, getter(path)) for path in paths]

    def format_fields(outcome: Outcome) -> bytes:
        seen = view(outcome)
        return orjson.dumps({path: get(seen) for path, get in getters}, option=orjson.OPT_APPEND_NEWLINE)

    return format_fields
