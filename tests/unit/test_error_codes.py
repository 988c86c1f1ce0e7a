"""The table of error codes: it knows every code that the source can give a result, and the README shows it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.error_codes import ERROR_CODES, explain

ROOT = Path(__file__).parents[2]
_TAKES_A_CODE = {"Problem": 0}
_KEYWORDS = {"code", "error_code"}


def codes_in(path: Path) -> Iterator[str]:
    """Codes written down in a file: as the first argument of a Problem, as an argument named code, or as a constant
    that is one of these."""
    tree = ast.parse(path.read_text("utf-8"))
    constants = {
        target.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = [keyword.value for keyword in call.keywords if keyword.arg in _KEYWORDS]
        if ast.unparse(call.func) in _TAKES_A_CODE and call.args:
            given.append(call.args[0])
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value
            elif isinstance(value, ast.Name) and value.id in constants:
                yield constants[value.id]


def test_every_code_that_the_source_gives_is_in_the_table() -> None:
    found = {
        code
        for rung in ("db", "jobs", "workers")
        for path in (ROOT / rung).rglob("*.py")
        for code in codes_in(path)
    }
    assert len(found) > 12, "the search finds them"
    assert found <= set(ERROR_CODES)


def test_the_readme_shows_the_table() -> None:
    text = (ROOT / "README.md").read_text()
    inside = text.split("<!-- error codes -->")[1].split("<!-- /error codes -->")[0].strip()
    rows = ["| code | meaning |", "|---|---|"]
    rows += [f"| `{one.code}` | {one.meaning} |" for one in ERROR_CODES.values()]
    assert inside == "\n".join(rows)


@pytest.mark.parametrize("code", ERROR_CODES)
def test_each_code_fits_its_column_and_says_what_to_do(code: str) -> None:
    known = explain(code)
    assert known.code == code
    assert len(code) <= 32
    assert known.advice
    for text in (known.meaning, known.advice):
        assert not re.search(r"[.\s]$|\n", text)


def test_what_the_advice_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    for one in ERROR_CODES.values():
        for name in re.findall(r"PROMPTMILL_\w+|docs/\w+\.md", one.advice):
            assert name in readme
        for path in re.findall(r"docs/\w+\.md", one.advice):
            assert (ROOT / path).is_file()


def test_a_code_of_another_version_is_no_error() -> None:
    assert "another version" in explain("meteor_strike").meaning
