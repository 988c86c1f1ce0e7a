"""A card's own lines: other names that a request's custom_id goes by."""

from collections.abc import Sequence
from typing import Any

import orjson

# The first of them that is not null is the custom_id, where a line has none of its own; what is left is a field like
# any other, and without effect.
_ALIASES = ("external_reference", "id")
ALIAS_FIELDS = frozenset(_ALIASES)


def with_custom_id(body: Any) -> Any:
    """A body with its custom_id under that name; the very same object where there is nothing to change."""
    if not isinstance(body, dict) or ALIAS_FIELDS.isdisjoint(body) or body.get("custom_id") is not None:
        return body
    for alias in _ALIASES:
        value = body.get(alias)
        if isinstance(value, bool) or not isinstance(value, str | int):
            continue
        gone = {"custom_id", alias, *(other for other in _ALIASES if body.get(other) is None)}
        return {"custom_id": str(value), **{name: one for name, one in body.items() if name not in gone}}
    return body


def adopt_custom_ids(
    texts: Sequence[bytes], bodies: Sequence[Any]
) -> tuple[Sequence[bytes], Sequence[Any]] | None:
    """Lines with their custom_ids under that name; None where no line changes."""
    renamed = [with_custom_id(body) for body in bodies]
    if all(new is body for new, body in zip(renamed, bodies, strict=True)):
        return None
    new_texts = [
        text if new is body else orjson.dumps(new)
        for text, new, body in zip(texts, renamed, bodies, strict=True)
    ]
    return new_texts, renamed
