"""Request lines near to valid ones: bodies changed at random, toward the limits of a schema, and written out anew."""

import copy
import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

_LETTERS = ("x", "é", "😀", "e\u0301")
_NUMBERS = (0, -1, 1, 256, 256.0, 256.5, -0.0, 1e300, 2**53 + 1, 2**63, 2**64, 10**30, 0.1)
_OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "user",
    [],
    {},
    [1, True],
    [[], {}],
    {"role": "user", "content": "hi"},
    ["a", "a"],
)
_NAMES = ("prompt", "messages", "max_tokens", "raw", "stream", "role", "content", "unknown", "")
_JUNK = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"0",
    b"-",
    b"e",
    b".",
    b" ",
    b"\0",
    b"\xff",
    b"\\ud800",
    b"tru",
)


class Mutator:
    """Draws from one seed: the same seed, the same lines."""

    def __init__(self, schema: Mapping[str, Any], seed: int) -> None:
        self._random = Random(seed)  # noqa: S311  for tests
        self._names = [*_NAMES, *_property_names(schema)]
        self._values = [*_NUMBERS, *_OTHERS, *_edges(schema)]

    def lines(self, bodies: list[Any], num_lines: int) -> Iterator[bytes]:
        for _ in range(num_lines):
            body = copy.deepcopy(self._random.choice(bodies))
            for _ in range(self._random.choice((0, 1, 1, 1, 2, 3))):
                body = self._changed(body)
            text = self._written(body)
            yield self._damaged(text) if self._random.random() < 0.1 else text

    def _changed(self, value: Any) -> Any:
        """`value` with one thing in it put wrong, put in or taken out."""
        draw = self._random
        if isinstance(value, dict) and value and draw.random() < 0.9:
            name = draw.choice(list(value))
            act = draw.random()
            if act < 0.2:
                del value[name]
            elif act < 0.4:
                value[draw.choice(self._names)] = self._value()
            else:
                value[name] = self._changed(value[name])
            return value
        if isinstance(value, list) and value and draw.random() < 0.8:
            place = draw.randrange(len(value))
            if draw.random() < 0.5:
                value[place] = self._changed(value[place])
            else:
                value.insert(place, copy.deepcopy(draw.choice(value)))
            return value
        return self._value()

    def _value(self) -> Any:
        return copy.deepcopy(self._random.choice(self._values))

    def _written(self, body: Any) -> bytes:
        draw = self._random
        separators = draw.choice(((",", ":"), (", ", ": "), (" ,\t", "  : ")))
        return json.dumps(body, ensure_ascii=draw.random() < 0.5, separators=separators).encode()

    def _damaged(self, text: bytes) -> bytes:
        place = self._random.randrange(len(text) + 1)
        rest = text[place + self._random.choice((0, 0, 1, 5)) :]
        return text[:place] + self._random.choice((b"", *_JUNK)) + rest


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all that stand in it."""
    if isinstance(schema, dict):
        yield schema
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _schemas(inner)


def _property_names(schema: Mapping[str, Any]) -> list[str]:
    return [name for part in _schemas(schema) for name in part.get("properties", {})]


def _edges(schema: Mapping[str, Any]) -> list[Any]:
    """Values at, under and over each limit of a schema, and those that it names."""
    values: list[Any] = []
    for part in _schemas(schema):
        values += part["enum"] if isinstance(part.get("enum"), list) else []
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            if isinstance(edge := part.get(name), int | float):
                values += [edge, edge - 1, edge + 1, edge + 0.5, float(edge), edge * 2]
        for name in ("minLength", "maxLength"):
            if isinstance(edge := part.get(name), int):
                values += [letter * length for letter in _LETTERS for length in (edge - 1, edge, edge + 1)]
        for name in ("minItems", "maxItems"):
            if isinstance(edge := part.get(name), int):
                values += [list(range(edge)), list(range(edge + 1))]
    return values
