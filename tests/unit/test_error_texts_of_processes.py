"""The same as test_error_texts for what takes a process or a server of its own: another user, a full disk, Postgres."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from erring import SECRET
from servers import Postgres
from sqlalchemy import make_url

import cli
from cli import Exit
from db.database import HEAD_REVISION, Database
from workers import private_redis

_SOURCE = Path(cli.__file__).parent
_OWN_PLACE = "set PROMPTMILL_HOME or PROMPTMILL_DATABASE_URL to a place that you can write to"


def _run(*arguments: str, under: tuple[str, ...] = (), **options: Any) -> tuple[int, str]:
    """Exit code and stderr of `promptmill` as a process."""
    environment = {**os.environ, "PYTHONPATH": str(_SOURCE), **options.pop("env", {})}
    done = subprocess.run(
        [*under, sys.executable, "-m", "cli", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert done.stdout == ""
    for unwanted in ("Traceback", "unexpected error", SECRET):
        assert unwanted not in done.stderr
    return done.returncode, done.stderr.rstrip("\n")


# permissions


@pytest.fixture
def held(tmp_path: Path, home: Path) -> Iterator[tuple[str, ...]]:
    """What a command is run under so that the modes of files hold it; root without its privilege to pass them by."""
    (tmp_path / "good.jsonl").write_text('{"prompt": "x"}\n')
    under: tuple[str, ...] = ()
    if os.geteuid() == 0:
        under = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        if shutil.which("setpriv") is None:
            pytest.skip("NOT TESTED: errors of permissions. Root needs setpriv for it (package util-linux)")
    yield under
    for folder in (tmp_path, home, home / "cards", tmp_path / "closed"):
        if folder.exists():
            folder.chmod(0o700)


def test_a_file_that_may_not_be_read(tmp_path: Path, held: tuple[str, ...]) -> None:
    (tmp_path / "good.jsonl").chmod(0)
    denied = "error: cannot read good.jsonl: Permission denied; ls -ld shows who may do so"
    assert _run("validate", "good.jsonl", under=held) == (Exit.INPUT_REFUSED, denied)
    denied = "error: cannot read the card good.jsonl: Permission denied; ls -ld shows who may do so"
    assert _run("models", "add", "good.jsonl", under=held) == (Exit.USAGE, denied)


def test_a_home_that_may_not_be_written(home: Path, held: tuple[str, ...]) -> None:
    home.chmod(0o555)
    text = f"error: cannot open or make the database {home}/promptmill.db: Permission denied; {_OWN_PLACE}"
    for command in (
        ("list",),
        ("submit", "good.jsonl"),
        ("run", "good.jsonl"),
        ("worker",),
        ("db", "upgrade"),
    ):
        assert _run(*command, under=held) == (Exit.UNAVAILABLE, text)
    text = f"error: cannot keep the card in {home}/cards: Permission denied; ls -ld shows who may do so"
    card = str(_SOURCE / "jobs" / "cards" / "smollm2-135m-instruct.yaml")
    assert _run("models", "add", card, under=held) == (Exit.USAGE, text)


def test_a_home_that_may_not_be_entered(home: Path, held: tuple[str, ...]) -> None:
    (home / "cards").mkdir()
    home.chmod(0)
    text = f"error: cannot read {home}/promptmill.toml: Permission denied; mend that, or move it away"
    for command in (("list",), ("models", "list"), ("check",), ("config",)):
        assert _run(*command, under=held) == (Exit.USAGE, text)


def test_cards_that_may_not_be_read(home: Path, held: tuple[str, ...]) -> None:
    cards = home / "cards"
    cards.mkdir()
    cards.chmod(0)
    text = f"error: cannot look into {cards}: Permission denied; ls -ld shows who may do so"
    assert _run("models", "list", under=held) == (Exit.USAGE, text)


def test_an_output_that_may_not_be_written(tmp_path: Path, held: tuple[str, ...]) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o555)
    text = f"error: cannot write {tmp_path}/closed/out: Permission denied; ls -ld shows who may do so"
    assert _run("run", "good.jsonl", "-o", "closed/out", under=held) == (Exit.UNEXPECTED, text)
    text = f"error: cannot write into {tmp_path}; ls -ld {tmp_path} shows who may do so"
    assert _run("run", "good.jsonl", "-o", "out", under=held) == (Exit.UNEXPECTED, text)
    text = "error: cannot write bad: Permission denied; ls -ld shows who may do so"
    assert _run("validate", "good.jsonl", "--errors", "bad", under=held) == (Exit.UNEXPECTED, text)


def test_a_database_that_may_not_be_written(home: Path, held: tuple[str, ...]) -> None:
    assert _run("db", "upgrade", under=held)[0] == 0
    (home / "promptmill.db").chmod(0o400)
    text = f"error: cannot open or make the database {home}/promptmill.db: Permission denied; {_OWN_PLACE}"
    assert _run("list", under=held) == (Exit.UNAVAILABLE, text)


# room


def test_a_full_disk(tmp_path: Path) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("NOT TESTED: a full disk by its limit. There is no prlimit here (package util-linux)")
    limited = ("prlimit", "--fsize=10")
    (tmp_path / "bad.jsonl").write_text('{"prompt": 5}\n')
    code, text = _run("validate", "bad.jsonl", "--errors", "errors.jsonl", under=limited)
    assert code == Exit.UNEXPECTED
    assert text == (
        "error: cannot write errors.jsonl: File too large; raise the limit on a file's size: ulimit -f shows it"
    )
    code, text = _run("list", under=limited)
    assert code == Exit.UNAVAILABLE
    assert text.startswith(f"error: the database sqlite:///{tmp_path}/home/promptmill.db is not available: ")
    assert text.endswith("; promptmill check looks at each part")


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); from cli import main; sys.argv[1:] = ['list']; main()"
    gone = tmp_path / "gone"
    gone.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(_SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=gone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == Exit.USAGE
    assert done.stderr == "error: the working folder is there no more; go to another one: cd\n"


# Postgres


@pytest.fixture
def strict_server() -> Iterator[str]:
    """What a Postgres says to a wrong password, each time it is asked; ours asks its own user for none."""
    fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "ada"\0\0'

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # closed
            with connection:
                connection.recv(1024)
                connection.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"postgresql://ada:{SECRET}@127.0.0.1:{server.getsockname()[1]}/mill?sslmode=disable&gssencmode=disable"
        server.shutdown(socket.SHUT_RDWR)


def test_a_wrong_password(strict_server: str) -> None:
    code, text = _run("list", env={"PROMPTMILL_DATABASE_URL": strict_server})
    assert code == Exit.UNAVAILABLE
    assert 'password authentication failed for user "ada"; give it in PGPASSWORD or ~/.pgpass' in text


def test_a_postgres_that_has_no_such_database_or_user(postgres: Postgres) -> None:
    url = make_url(postgres.url)
    for wrong, what, step in (
        (
            url.set(database="nowhere"),
            'database "nowhere" does not exist',
            "make it with createdb, then run: promptmill db upgrade",
        ),
        (
            url.set(username="nowhere"),
            'role "nowhere" does not exist',
            "check the user in PROMPTMILL_DATABASE_URL",
        ),
    ):
        code, text = _run(
            "list", env={"PROMPTMILL_DATABASE_URL": wrong.render_as_string(hide_password=False)}
        )
        assert code == Exit.UNAVAILABLE
        assert text.startswith(f"error: the database {wrong.render_as_string()} is not available: ")
        assert text.endswith(f"{what}; {step}")


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        (None, f"is at revision none and not {HEAD_REVISION}; run: promptmill db upgrade"),
        ("0002", f"is at revision 0002 and not {HEAD_REVISION}; run: promptmill db upgrade"),
        (
            "9999",
            f"was written by a newer promptmill: it is at revision 9999, and this one knows {HEAD_REVISION};"
            " run: pip install --upgrade promptmill",
        ),
    ],
)
def test_a_postgres_at_another_revision(postgres: Postgres, revision: str | None, text: str) -> None:
    url = postgres.create_database(f"revision_{revision or 'none'}", template="template_promptmill")
    database = Database(url)
    with database.write() as tx:
        tx.exec_driver_sql("DELETE FROM alembic_version")
        if revision:
            tx.exec_driver_sql("INSERT INTO alembic_version VALUES (%s)", (revision,))
    database.close()
    code, said = _run("list", env={"PROMPTMILL_DATABASE_URL": url})
    assert (code, said) == (Exit.UNAVAILABLE, f"error: the database {database.label} {text}")


# Redis


def test_a_worker_without_a_redis(
    monkeypatch: pytest.MonkeyPatch, sqlite_database: Database, home: Path
) -> None:
    from click.testing import CliRunner

    assert sqlite_database
    monkeypatch.setattr("workers.stop_signals.stop_on_signals", lambda: None)
    monkeypatch.setattr(private_redis, "find_redis_server", lambda: None)
    done = CliRunner().invoke(cli.main, ["worker"])
    assert (done.exit_code, done.stderr) == (
        Exit.UNAVAILABLE,
        "error: no redis-server was found: install one (package redis-server or valkey), or set"
        " PROMPTMILL_BROKER_URL to a Redis that runs\n",
    )
    (home / "redis.lock").unlink()
    (home / "redis.lock").mkdir()
    done = CliRunner().invoke(cli.main, ["worker"])
    assert (done.exit_code, done.stderr) == (
        Exit.UNAVAILABLE,
        f"error: cannot use {home} for a private Redis: Is a directory; give a file\n",
    )
