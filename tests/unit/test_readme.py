"""The README is true: its settings, commands and limits are those of the code."""

import re
import shlex
from pathlib import Path

import click
from pydantic_core import PydanticUndefined

from cli import Exit, main
from db.states import InputFormat
from jobs.forms import Form, choose_form
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
        if "--" in words:  # a command within the command
            dashes = words.index("--")
            root = click.Context(main, **main.context_settings)
            main.commands[words[dashes + 1]].make_context("inner", words[dashes + 2 :], parent=root)
            del words[dashes:]
        assert options.issuperset(
            word.split("=")[0] for word in words if word.startswith("-") and word != "-"
        )


def test_every_make_target_it_names_exists() -> None:
    makefile = (_REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)|`make (\w+)`", _README, re.MULTILINE):
        assert re.search(rf"^{target[0] or target[1]}:", makefile, re.MULTILINE), target


def test_the_formats_in_are_those_of_the_code_and_each_is_explained() -> None:
    inside = _README.split("<!-- formats in -->")[1].split("<!-- /formats in -->")[0]
    assert re.findall(r"^\| `(\w+)` \|", inside, re.MULTILINE) == [kind.value for kind in InputFormat]
    explained = (_REPOSITORY / "docs" / "formats.md").read_text().split("## Forms out")[0]
    for kind in InputFormat:
        assert re.search(rf"^### .*\b{kind}\b", explained, re.MULTILINE), kind
    options = {name for command in ("run", "submit", "validate") for name in _options_of(command)}
    named = set(re.findall(r"`(--[a-z-]+)", inside + explained))
    assert named <= options | _options_of("verify")


def _options_of(command: str) -> set[str]:
    return {name for parameter in main.commands[command].params for name in parameter.opts}


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


def test_the_forms_that_results_come_out_in_are_those_of_the_code() -> None:
    text = (_REPOSITORY / "docs" / "formats.md").read_text()
    inside = text.split("<!-- forms out -->")[1].split("<!-- /forms out -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`(?:, on stdout `(\w+)`)? \|$", inside, re.MULTILINE)
    assert {name: (to_file, to_stdout or to_file) for name, to_file, to_stdout in rows} == {
        one.value: (choose_form(None, "out", one), choose_form(None, "-", one)) for one in InputFormat
    }
    assert {f"### {form}" for form in (Form.JSONL, Form.OPENAI, Form.CLOUDFLARE)} <= set(text.splitlines())


def test_the_options_of_results_are_explained() -> None:
    text = (_REPOSITORY / "docs" / "formats.md").read_text() + _README
    for parameter in main.commands["results"].params:
        if parameter.param_type_name == "option":
            assert f"`{max(parameter.opts, key=len)}" in text or f"{parameter.opts[0]} " in text, (
                parameter.name
            )
