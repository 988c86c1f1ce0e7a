"""Arguments that a person hands to the engine as `key=value`, past our own choice and the card's."""

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from db.errors import SettingsError

_SIMPLE = (bool, int, float, str, type(None))


def parse_engine_args(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` as a mapping: JSON where the value is JSON, else text. Names are those of vLLM's options, with or
    without their dashes. Values are in no error: one may be a token."""
    arguments: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not sign or not name.isidentifier():
            raise SettingsError("an engine argument is given as key=value, like max_num_seqs=128")
        if name in arguments:
            raise SettingsError(f"engine argument {name} is given twice")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def check_engine_args(arguments: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Hold arguments against the engine's own: SettingsError names the first that it does not know, with the nearest,
    or whose value is of another type. `known` has a type for each name; what is more than simple the engine checks."""
    for name, value in arguments.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"{where}: the engine has no argument {name}{hint}")
        if not _fits(value, known[name]):
            raise SettingsError(f"{where}: engine argument {name} must be {_in_words(known[name])}")


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(member for one in typing.get_args(hint) for member in _members(one))
    return (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for member in _members(hint):
        if typing.get_origin(member) is typing.Literal:
            if value in typing.get_args(member):
                return True
        elif member not in _SIMPLE or type(value) is member or (member is float and type(value) is int):
            return True
    return False


def _in_words(hint: Any) -> str:
    words: list[str] = []
    for member in _members(hint):
        if typing.get_origin(member) is typing.Literal:
            words += [json.dumps(choice) for choice in typing.get_args(member)]
        else:
            words.append(
                {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(
                    member, "null"
                )
            )
    return " or ".join(words)
