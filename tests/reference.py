"""docs/reference.md, written from the code: `python tests/reference.py`. A test holds the page to it."""

import types
import typing
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cli import _MEANINGS
from jobs.error_codes import ERROR_CODES
from jobs.settings import PREFIX, Settings
from workers.exits import EXIT_ENGINE_DIED

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
_TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    Path: "path",
    dict[str, Any]: "section, or JSON object",
}
_SIGNS = {"ge": "at least", "gt": "above", "le": "at most"}


def page() -> str:
    settings = [_setting(name, field) for name, field in Settings.model_fields.items()]
    meanings = {code.value: meaning for code, meaning in _MEANINGS.items()}
    meanings[EXIT_ENGINE_DIED] = "of worker: the engine died, or cannot be started; start it again"
    codes = [[f"`{one.code}`", one.meaning, one.advice] for one in ERROR_CODES.values()]
    return _TEXT.format(
        settings=_table(["in promptmill.toml", "variable", "type", "default", "meaning"], settings),
        exits=_table(["exit code", "meaning"], [[str(code), meanings[code]] for code in sorted(meanings)]),
        codes=_table(["code", "meaning", "what to do"], codes),
    )


def _setting(name: str, field: FieldInfo) -> list[str]:
    default = "" if field.default in (None, "", PydanticUndefined) else f"`{field.default}`"
    return [f"`{name}`", f"`{PREFIX}{name.upper()}`", _type(field), default, field.description or ""]


def _type(field: FieldInfo) -> str:
    kinds = [field.annotation]
    if typing.get_origin(field.annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(field.annotation) if kind is not type(None)]
    if typing.get_origin(kinds[0]) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(kinds[0]))
    bounds = [
        f"{words} {getattr(rule, sign):,}"
        for rule in field.metadata
        for sign, words in _SIGNS.items()
        if hasattr(rule, sign)
    ]
    return ", ".join([" or ".join(_TYPES[kind] for kind in kinds), *bounds])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


_TEXT = """\
# Reference

<!-- Written from the code by: python tests/reference.py -->

## Settings

A setting is said by its environment variable, or by a line of `promptmill.toml`:

```toml
model = "smollm2-135m-instruct"
database_url = "sqlite:///jobs.db"

[engine_args]
dtype = "bfloat16"
```

The first of these that says a setting counts, for that setting as a whole:

1. the environment variable, unless it is empty;
2. `promptmill.toml` in the working folder;
3. `promptmill.toml` in the home folder;
4. the default.

`promptmill config` shows each setting's value and where it comes from, `--json` for programs. Passwords and tokens
are hidden. An unknown name is refused, with the nearest one that there is.

The home is the setting `home`, else `./.promptmill` where there is one, else `~/.promptmill`. The file in the working
folder may name it. The file in a home may not: it would be read for one home, and hold for another.

A relative path in a file (`home`, or the file in a `sqlite:///` URL) counts from that file's folder, one in a variable
from the working folder.

A `promptmill.toml` in the working folder can send prompts to another database and hand the engine any argument, so one
that belongs to somebody else, or that everybody may write, is refused. Where others of your group may write into your
working folder, you trust them with your prompts.

{settings}

## Exit codes

{exits}

## Error codes

A request that did not succeed has one of these in `error.code`.

{codes}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
