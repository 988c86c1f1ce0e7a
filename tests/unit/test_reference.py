"""docs/reference.md is what the code says, and is whole."""

import re

import pytest
from reference import PAGE, page

from cli import Exit
from jobs.error_codes import ERROR_CODES
from jobs.settings import Settings
from workers.exits import EXIT_ENGINE_DIED, EXIT_REFUSED, EXIT_UNAVAILABLE


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "write it anew: python tests/reference.py"


def _first_cells(heading: str) -> list[str]:
    section = page().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `?([^|` -][^|`]*?)`? \|", section, re.MULTILINE)[1:]


def test_every_setting_exit_code_and_error_code_is_in_it() -> None:
    assert _first_cells("Settings") == list(Settings.model_fields)
    codes = {*(code.value for code in Exit), EXIT_ENGINE_DIED, EXIT_REFUSED, EXIT_UNAVAILABLE}
    assert _first_cells("Exit codes") == [str(code) for code in sorted(codes)]
    assert _first_cells("Error codes") == list(ERROR_CODES)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("home", "`PROMPTMILL_HOME` | path |  |"),
        ("engine", "`PROMPTMILL_ENGINE` | `vllm` or `echo` | `vllm` |"),
        ("worker_num_chunks", "`PROMPTMILL_WORKER_NUM_CHUNKS` | whole number, at least 1, at most 256 |  |"),
        ("lease_s", "`PROMPTMILL_LEASE_S` | number, above 0 | `30.0` |"),
        ("engine_args", "`PROMPTMILL_ENGINE_ARGS` | section, or JSON object |  |"),
    ],
)
def test_types_bounds_and_defaults_are_said(name: str, cells: str) -> None:
    assert f"| `{name}` | {cells}" in page()


def test_every_row_has_the_cells_of_its_head() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page(), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table
