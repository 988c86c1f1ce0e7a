"""The columns of results as a table: their names, their types, and where each value stands in a result line."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from jobs.forms.fields import getter

# More fields than this, and a request is one column, as JSON.
_MAX_REQUEST_FIELDS = 100


class Kind(Enum):
    """A column's type. What is no text in a column of TEXT is there as JSON."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    MESSAGES = "messages"


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind
    get: Callable[[dict[str, Any]], Any]


def _response(line: dict[str, Any]) -> Any:
    """The text, or the text of an event stream, which has no fields."""
    result = line["result"]
    return result if isinstance(result, str) else (result or {}).get("response")


_RESULT_COLUMNS = (
    Column("index", Kind.INTEGER, getter("index")),
    Column("custom_id", Kind.TEXT, getter("custom_id")),
    Column("status", Kind.TEXT, getter("status")),
    Column("response", Kind.TEXT, _response),
    Column("tool_calls", Kind.TEXT, getter("result.tool_calls")),
    Column("choices", Kind.TEXT, getter("result.choices")),
    Column("logprobs", Kind.TEXT, getter("result.logprobs")),
    Column("finish_reason", Kind.TEXT, getter("finish_reason")),
    Column("prompt_tokens", Kind.INTEGER, getter("usage.prompt_tokens")),
    Column("completion_tokens", Kind.INTEGER, getter("usage.completion_tokens")),
    Column("error_code", Kind.TEXT, getter("error.code")),
    Column("error_message", Kind.TEXT, getter("error.message")),
    Column("reused_from", Kind.TEXT, getter("reused_from")),
)
_POSITION = Column("position", Kind.INTEGER, getter("position"))
_PARAMS = Column("params", Kind.TEXT, getter("params"))
_JOB = Column("job", Kind.TEXT, getter("job"))
_INTEGER_FIELDS = {
    "params.seed",
    "params.max_tokens",
    "index",
    "position",
    "usage.prompt_tokens",
    "usage.completion_tokens",
    "usage.total_tokens",
}


def result_columns(
    *,
    with_position: bool,
    request_kinds: dict[str, Kind] | None,
    with_params: bool = False,
    with_job: bool = False,
) -> list[Column]:
    """The columns that every table has, the same for each job; then one for each field of the requests. A field whose
    name is taken is called request_NAME."""
    more = [(_POSITION, with_position), (_JOB, with_job), (_PARAMS, with_params)]
    columns = [*_RESULT_COLUMNS, *(column for column, is_wanted in more if is_wanted)]
    if request_kinds is None:
        return columns
    if len(request_kinds) > _MAX_REQUEST_FIELDS:
        return [*columns, Column("request", Kind.TEXT, getter("request"))]
    names = {column.name for column in columns}
    for field, kind in request_kinds.items():
        name = field
        while name in names or (name != field and name in request_kinds):
            name = f"request_{name}"
        names.add(name)
        columns.append(Column(name, kind, _request_field(field)))
    return columns


def _request_field(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda line: (line["request"] or {}).get(name)


def field_columns(paths: Sequence[str], request_kinds: dict[str, Kind]) -> list[Column]:
    """One column for each path, of that name."""

    def kind_of(path: str) -> Kind:
        first, _, rest = path.partition(".")
        if first == "request":
            return request_kinds.get(rest, Kind.TEXT)
        return Kind.INTEGER if path in _INTEGER_FIELDS else Kind.TEXT

    return [Column(path, kind_of(path), getter(path)) for path in paths]


def find_request_kinds(bodies: Iterable[str]) -> dict[str, Kind]:
    """The fields that these requests have, in the order in which they first come, and a type that holds each one's
    values. Without custom_id, which has its own column."""
    kinds: dict[str, Kind | None] = {}
    for body in bodies:
        for name, value in orjson.loads(body).items():
            if (kind := kinds.get(name)) is not Kind.TEXT:  # which holds everything
                kinds[name] = _common(kind, _kind_of(value))
        if len(kinds) > 10 * _MAX_REQUEST_FIELDS:
            break  # one column will hold them all
    kinds.pop("custom_id", None)
    return {name: kind or Kind.TEXT for name, kind in kinds.items()}


def _common(one: Kind | None, other: Kind | None) -> Kind | None:
    if one is None or other is None or one is other:
        return one or other
    return Kind.NUMBER if {one, other} == {Kind.INTEGER, Kind.NUMBER} else Kind.TEXT


def _kind_of(value: Any) -> Kind | None:
    """None for null, which every type holds."""
    match value:
        case None:
            return None
        case bool():
            return Kind.BOOLEAN
        case int():
            return Kind.INTEGER if -(2**63) <= value < 2**63 else Kind.TEXT
        case float():
            return Kind.NUMBER
        case list() if value and all(_is_plain_message(one) for one in value):
            return Kind.MESSAGES
        case _:
            return Kind.TEXT


def _is_plain_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) == 2
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def cell(kind: Kind, value: Any) -> Any:
    """A value as its column's type has it."""
    if value is None or kind is not Kind.TEXT:
        return float(value) if kind is Kind.NUMBER and value is not None else value
    return value if isinstance(value, str) else orjson.dumps(value).decode()
