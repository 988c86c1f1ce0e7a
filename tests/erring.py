"""A folder of good and bad things to run commands in, and how the text of an error is held to what it should be."""

import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import cli
from db.database import Database

# the password in every URL of the cases
SECRET = "hunter2"  # noqa: S105  it stands for one
_CARD = Path(cli.__file__).parent / "jobs" / "cards" / "smollm2-135m-instruct.yaml"
_FILES: dict[str, str | bytes] = {
    "good.jsonl": '{"prompt": "x"}\n',
    "bad.jsonl": '{"prompt": "x"}\n{"prompt": 5}\n',
    "empty.jsonl": "",
    "noise": b"\xff\xfe\x00",
    "damaged.gz": b"\x1f\x8b\x08\x00 and no more",
    "table.csv": "a,b\n1,2\n",
    "open.yaml": "model: [\n",
    "half.yaml": "model_display_name: owl\n",
    "big.yaml": "#" * 1_100_000,
    "no.db": "no database\n" * 1000,
    "broken/promptmill.toml": "flush_s = 1\nmodel = owl\n",
    "unknown/promptmill.toml": 'flush_s = 1\n\nmodle = "owl"\n',
}

# the command with variables before it, the exit code, and the text
Case = tuple[str, int, str]
Cause = Callable[[str, int, str], None]


def make_world(folder: Path, home: Path, database: Database) -> None:
    """All that the cases name."""
    for name, content in _FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    _make_cards(folder, home)
    _make_databases(folder, Path(str(database.url.database)))


def _make_cards(folder: Path, home: Path) -> None:
    def save(name: str, *changes: Callable[[dict[str, Any]], object], where: Path = folder) -> None:
        fields = yaml.safe_load(_CARD.read_text("utf-8"))
        fields["model_display_name"] = "owl"
        for change in changes:
            change(fields)
        (where / name).write_text(yaml.safe_dump(fields))

    def property_of(card: dict[str, Any], name: str) -> dict[str, str]:
        return next(entry for entry in card["model"]["properties"] if entry["property_id"] == name)

    save("good.yaml")
    save("name.yaml", lambda card: card.update(model_display_name="A B"))
    save("task.yaml", lambda card: card.update(task_type="text-to-image"))
    save("limit.yaml", lambda card: property_of(card, "max_total_tokens").update(value="many"))
    save("order.yaml", lambda card: property_of(card, "max_input_length").update(value="4096"))
    save("json.yaml", lambda card: card["json_schema"].update(input="no JSON"))
    save("schema.yaml", lambda card: card["json_schema"].update(input='{"type": "objectx"}'))
    save("own.yaml", lambda card: card.update(promptmill={"weigths": "x"}))
    save("sampling.yaml", lambda card: card.update(promptmill={"sampling": {"temperature": 9}}))
    save("other.yaml", lambda card: card.update(title="another"))
    (home / "cards").mkdir()
    (home / "cards" / "owl.yaml").write_text((folder / "good.yaml").read_text())


def _make_databases(folder: Path, whole: Path) -> None:
    def change(name: str, statement: str) -> None:
        shutil.copyfile(whole, folder / name)
        with sqlite3.connect(folder / name) as connection:
            connection.execute(statement)
        connection.close()

    with sqlite3.connect(whole) as connection:  # what is in the log still
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    change("newer.db", "UPDATE alembic_version SET version_num = '9999'")
    change("other.db", "UPDATE alembic_version SET version_num = '00aa'")
    change("lost.db", "DROP TABLE requests")
    data = whole.read_bytes()
    (folder / "cut.db").write_bytes(data[: len(data) // 3])


def assert_error(
    words: Mapping[str, str], patch: pytest.MonkeyPatch, command: str, code: int, text: str
) -> None:
    """The command ends with this code and this text, and shows neither a traceback, a secret nor a result."""
    arguments = shlex.split(command.format_map(words))
    while "=" in arguments[0]:
        name, _, value = arguments.pop(0).partition("=")
        patch.setenv(name, value)
    done = CliRunner().invoke(cli.main, arguments, input="")
    said = done.stderr.rstrip("\n")
    if said.startswith("Usage: "):
        said = said.partition("\n\nError: ")[2]
    expected = text.format_map(words)
    pattern = re.escape(expected).replace("…", ".*")
    assert re.fullmatch(rf"(?:error: )?{pattern}", said), f"expected:\n{expected}\nsaid:\n{said}"
    assert done.exit_code == code
    assert done.stdout == ""
    for unwanted in ("Traceback", "unexpected error", SECRET):
        assert unwanted not in done.output
