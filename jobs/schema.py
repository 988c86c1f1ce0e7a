"""The card's JSON Schema as the authority over a request line, and its errors in words a person can act on."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from db.errors import CardError

# Fields of a line that are ours and not the card's.
OWN_FIELDS = frozenset({"custom_id"})
_MAX_MESSAGE_CHARS = 300
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
        jsonschema_rs.validator_for(dict(schema))
    except (jsonschema_rs.ValidationError, ValueError, TypeError) as error:
        reason = getattr(error, "message", str(error))
        raise CardError(f"{where} is not a JSON Schema: {reason}") from None


def format_path(parts: Sequence[str | int]) -> str:
    """("messages", 2, "role") as `messages[2].role`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class RequestSchema:
    """A card's input schema, compiled once: the verdict is the validator's alone."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = jsonschema_rs.validator_for(dict(schema), mask=_MASK)
        branches = schema.get("oneOf") or schema.get("anyOf") or [schema]
        self._branches = [(branch, jsonschema_rs.validator_for(_whole(branch))) for branch in branches]
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
        for error in self._validator.iter_errors(body):
            found += self._explain(error, body)
        return list(dict.fromkeys(found))

    def defaults_of(self, body: Mapping[str, Any]) -> tuple[frozenset[str], dict[str, Any]]:
        """The fields that the form of a valid `body` knows, and the defaults that the schema gives them."""
        for branch, validator in self._branches:
            if validator.is_valid(body):
                properties: Mapping[str, Any] = branch.get("properties", {})
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


def _whole(branch: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", **branch}


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
