"""The card's JSON Schema as the authority over a request line, and its errors in words a person can act on."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from db.errors import CardError

# Fields of a line that are ours and not the card's.
OWN_FIELDS = frozenset({"custom_id"})
# What stands beside a request and is kept with it: what it should be answered, for `promptmill compare`.
REFERENCE_FIELDS = frozenset({"metadata", "reference", "match"})
# What a form of a schema may refer to, and so needs when it is compiled alone.
_SHARED_KEYWORDS = ("$schema", "$defs", "definitions")
_MAX_MESSAGE_CHARS = 300
_MAX_NAME_CHARS = 100
_MASK = "the value"


@dataclass(frozen=True)
class Problem:
    """Why a line is refused. `path` is like `messages[2].role`, empty for the whole line; no value is quoted."""

    code: str
    path: str
    message: str


def check_schema(schema: Mapping[str, Any], where: str) -> None:
    """CardError when `schema` is no JSON Schema."""
    try:
        jsonschema_rs.validator_for(dict(schema), retriever=_refuse_to_fetch)
    except (jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
        reason = getattr(error, "message", str(error))
        raise CardError(f"{where} is not a JSON Schema: {reason}") from None


def find_schema_fault(schema: Mapping[str, Any]) -> str | None:
    """Why `schema`, which a request brings, is no JSON Schema that is whole in itself; None when it is one."""
    try:
        jsonschema_rs.meta.validate(dict(schema))
    except jsonschema_rs.ValidationError as error:
        where = format_path(error.instance_path)
        return f"it is not a JSON Schema{f', at {where}' if where else ''}"
    except (jsonschema_rs.ReferencingError, ValueError, TypeError):
        return "it is not a JSON Schema: its $schema is unknown"
    try:
        jsonschema_rs.validator_for(dict(schema), retriever=_refuse_to_fetch)
    except (jsonschema_rs.ReferencingError, ValueError, TypeError):
        return "it is not a JSON Schema that is whole in itself: a $ref leads nowhere"
    return None


def format_path(parts: Sequence[str | int]) -> str:
    """("messages", 2, "role") as `messages[2].role`. What a terminal would not show as it is comes escaped, and a
    long name cut: a path is for reading, and its names may come from the file."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if len(part) <= _MAX_NAME_CHARS else part[:_MAX_NAME_CHARS] + "…"
            name = name if name.isprintable() else json.dumps(name)[1:-1]
            text += f".{name}" if text else name
    return text


class RequestSchema:
    """A card's input schema, compiled once: the verdict is the validator's alone."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = compile_schema(schema)
        branches = schema.get("oneOf") or schema.get("anyOf") or [schema]
        if not all(isinstance(branch, dict) and "$ref" not in branch for branch in branches):
            raise ValueError("its forms, under oneOf or anyOf, must be objects that stand there themselves")
        shared = {name: schema[name] for name in _SHARED_KEYWORDS if name in schema}
        self._branches = [
            (branch, compile_schema({**shared, "type": "object", **branch})) for branch in branches
        ]
        self._shared: Mapping[str, Any] = schema.get("properties", {})
        self.known_fields = frozenset(
            name for part in [schema, *branches] for name in part.get("properties", {})
        )

    def is_valid(self, body: object) -> bool:
        return self._validator.is_valid(body)

    def problems(self, body: object) -> list[Problem]:
        """What is wrong with `body`, nearest cause first; empty for a valid one."""
        if not isinstance(body, dict):
            return [
                Problem(
                    "invalid_request",
                    "",
                    f"a request is a JSON object, not {_kind(body)}",
                )
            ]
        found = []
        try:
            for error in self._validator.iter_errors(body):
                found += self._explain(error, body)
        except ValueError:
            # the verdict stands; only the error could not be put together
            return [Problem("invalid_request", "", "it is nested too deeply")]
        return list(dict.fromkeys(found))

    def defaults_of(self, body: Mapping[str, Any]) -> tuple[frozenset[str], dict[str, Any]]:
        """The fields that the form of a valid `body` knows, and the defaults that the schema gives them."""
        for branch, validator in self._branches:
            if validator.is_valid(body):
                properties: Mapping[str, Any] = {**self._shared, **branch.get("properties", {})}
                defaults = {
                    name: field["default"]
                    for name, field in properties.items()
                    if isinstance(field, dict) and "default" in field
                }
                return frozenset(properties), defaults
        return frozenset(), {}

    def nearest_field(self, name: str, others: frozenset[str] = frozenset()) -> str | None:
        near = difflib.get_close_matches(name, sorted(self.known_fields | others | OWN_FIELDS), n=1)
        return near[0] if near else None

    def _explain(self, error: jsonschema_rs.ValidationError, body: Mapping[str, Any]) -> list[Problem]:
        context = getattr(error.kind, "context", None)
        if not context or error.instance_path:
            return [_problem(error)]
        forms = [self._form(branch) for branch, _ in self._branches]
        if all(not errors for errors in context) or (
            error.kind.name == "oneOf" and any(not e for e in context)
        ):
            both = " and ".join(form for form, errors in zip(forms, context, strict=False) if not errors)
            return [
                Problem(
                    "invalid_request",
                    "",
                    f"a request has one of {both}, and this has more than one",
                )
            ]
        # The form that the line's author meant: the one whose required fields are there.
        meant = [
            errors
            for (branch, _), errors in zip(self._branches, context, strict=False)
            if branch.get("required") and all(name in body for name in branch["required"])
        ]
        if meant:
            closest = min(meant, key=len)
            return [_problem(one) for one in closest]
        return [Problem("invalid_request", "", f"a request needs {' or '.join(forms)}")]

    @staticmethod
    def _form(branch: Mapping[str, Any]) -> str:
        return " with ".join(branch.get("required", [])) or "another form"


def compile_schema(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    # a format is a note on the value, in drafts too where the validator would otherwise hold the value against it
    return jsonschema_rs.validator_for(
        dict(schema), mask=_MASK, retriever=_refuse_to_fetch, validate_formats=False
    )


def _refuse_to_fetch(uri: str) -> Any:
    """A card is whole in itself: reading one must not reach into the network or the file system."""
    raise ValueError(f"a card's schema refers to nothing outside itself, and this to {uri}")


def _problem(error: jsonschema_rs.ValidationError) -> Problem:
    message = error.message
    if len(message) > _MAX_MESSAGE_CHARS:
        message = message[:_MAX_MESSAGE_CHARS] + "…"
    return Problem("invalid_request", format_path(error.instance_path), message)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    for kinds, name in (
        (bool, "a boolean"),
        (str, "a string"),
        ((int, float), "a number"),
        (list, "an array"),
    ):
        if isinstance(value, kinds):
            return name
    return "an object"
