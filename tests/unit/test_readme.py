"""The README is true: its settings, commands, error codes and limits are those of the code."""

import re
import shlex
from pathlib import Path

import click
from pydantic_core import PydanticUndefined

from cli import Exit, main
from jobs.generation import SAMPLING_FIELDS
from jobs.settings import PREFIX, Settings

_REPOSITORY = Path(__file__).parents[2]
_README = (_REPOSITORY / "README.md").read_text()


def settings_table() -> str:
    """What stands between the README's settings marks; on a failure, paste the expected text there."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", PydanticUndefined) else field.default
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_are_those_of_the_code() -> None:
    inside = _README.split("<!-- settings -->")[1].split("<!-- /settings -->")[0].strip()
    assert inside == settings_table()


def test_every_command_it_shows_exists() -> None:
    shown = re.findall(r"^\$ (?:\.venv/bin/)?promptmill (.+)$", _README, re.MULTILINE)
    assert len(shown) > 8
    for line in shown:
        words = shlex.split(line, comments=True)
        command: click.Command = main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert options.issuperset(
            word.split("=")[0] for word in words if word.startswith("-") and word != "-"
        )


def test_every_make_target_it_names_exists() -> None:
    makefile = (_REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)|`make (\w+)`", _README, re.MULTILINE):
        assert re.search(rf"^{target[0] or target[1]}:", makefile, re.MULTILINE), target


def test_every_error_code_is_explained() -> None:
    codes = {
        "invalid_json",
        "invalid_request",
        "duplicate_custom_id",
        "input_too_long",
        "max_total_tokens_exceeded",
        "engine_error",
        "engine_crash",
        "cancelled",
        "expired",
    }
    assert codes <= set(re.findall(r"`(\w+)`", _README))


def test_every_sampling_parameter_is_named() -> None:
    assert set(re.findall(r"`(\w+)`", _README)) >= SAMPLING_FIELDS


def test_the_workers_exit_codes_are_those_of_the_code() -> None:
    from workers.exits import EXIT_ENGINE_DIED, EXIT_UNAVAILABLE

    assert f"exits with {EXIT_ENGINE_DIED} when its engine died, and with {EXIT_UNAVAILABLE} when" in _README
    assert EXIT_UNAVAILABLE == Exit.UNAVAILABLE


def test_the_files_it_and_the_architecture_name_exist() -> None:
    text = _README + (_REPOSITORY / "ARCHITECTURE.md").read_text()
    for path in re.findall(r"`((?:tests|benchmarks|workers|db|jobs)/[\w/]+\.py)`", text):
        assert (_REPOSITORY / path).is_file(), path
