"""Where settings are said: the environment, and `promptmill.toml` in the working folder and in the home."""

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from db.errors import SettingsError, why

PREFIX = "PROMPTMILL_"
TOML_NAME = "promptmill.toml"
_SQLITE_FILE = "sqlite:///"
_POSITION = re.compile(r" \(at (?:(line \d+, column \d+)|end of document)\)$")


@dataclass(frozen=True)
class Layer:
    """What is said in one place: values by setting, and for each where it stands, as a message names it."""

    source: Literal["caller", "environment", "file"]
    values: Mapping[str, Any]
    places: Mapping[str, str]


def environment_layer() -> Layer:
    """Variables that begin with PREFIX. An empty one is what compose and shells make of one that is not set."""
    said = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    names = {name: name.removeprefix(PREFIX).lower() if name.isupper() else name for name in said}
    return Layer(
        "environment",
        {names[name]: value for name, value in said.items() if value},
        {setting: name for name, setting in names.items()},
    )


def read_toml(path: Path, *, is_found_by_chance: bool = False) -> Layer | None:
    """The file as a layer, None where there is none; SettingsError says in which line it is no TOML.

    Relative paths in it count from its folder. One that is found by chance, in whatever folder the command is run,
    must be its user's own: it may name a database that prompts go to, and code for the engine to load.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {why(error, 'mend that, or move it away')}") from None
    if is_found_by_chance:
        _check_owner(path, status)
    values = _parse(path, data)
    places = {name: _place(path, data, name) for name in values}
    # as in the environment
    values = {name: value for name, value in values.items() if value != ""}
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = _from_folder(path.parent, name, value)
    return Layer("file", values, places)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise SettingsError(
            f"{path} belongs to somebody else, and its settings could send your prompts anywhere;"
            " run this in another folder, or put a copy of your own in its place"
        )
    if status.st_mode & stat.S_IWOTH:
        raise SettingsError(f"{path} may be written by everybody; run: chmod o-w {path}")


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except tomllib.TOMLDecodeError as error:
        text, position = str(error), _POSITION.search(str(error))
        where = (position[1] or "its end") if position else "somewhere"
        what = text[: position.start()] if position else text
    except UnicodeDecodeError as error:
        where, what = f"line {data.count(bytes([10]), 0, error.start) + 1}", "it is not UTF-8 text"
    except RecursionError:
        where, what = "somewhere", "it is nested too deeply"
    raise SettingsError(
        f'{path}, {where}: this is not TOML: {what}. Each line is name = value, with text in quotes: model = "NAME"'
    )


def _place(path: Path, data: bytes, name: str) -> str:
    """The file, and the line in which a setting, or the section of it, seems to begin: the parser does not tell."""
    begins = re.compile(rb"""\s*\[?\s*["']?""" + re.escape(name.encode()) + rb"""["']?\s*[=.\]]""")
    for number, line in enumerate(data.split(b"\n"), 1):
        if begins.match(line):
            return f"{path}, line {number}"
    return str(path)


def _from_folder(folder: Path, name: str, value: str) -> str:
    if name == "home":
        return str(folder / expand(value, TOML_NAME))
    if name == "database_url" and value.startswith(_SQLITE_FILE):
        file = value.removeprefix(_SQLITE_FILE)
        if file and file != ":memory:":
            return f"{_SQLITE_FILE}{folder / file}"
    return value


def expand(home: str | Path, where: str) -> Path:
    """`~` and `~user` as the folder that they mean."""
    try:
        return Path(home).expanduser()
    except RuntimeError:
        raise SettingsError(
            f"setting home ({where}): there is no such user's home folder; give a path"
        ) from None


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, Layer]]:
    """Values by setting, and the layer that each is from: the first that says it counts, whole."""
    values: dict[str, Any] = {}
    said_by: dict[str, Layer] = {}
    for layer in layers:
        for name, value in layer.values.items():
            if name not in values:
                values[name], said_by[name] = value, layer
    return values, said_by
