"""The process above a worker: starts it in a session of its own, passes signals on, and leaves nothing behind.

A terminal's Ctrl-C goes to every process of its group, and would kill vLLM's processes under running chunks. So
the worker lives in another session, and gets one SIGTERM. The other way round, a pipe tells the worker when this
process is gone, however it died; and when the worker is gone, what is left of its session is killed, because
vLLM's processes outlive their parent and keep the GPU's memory.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from db import queries, recovery
from db.database import Database
from db.errors import OutputError, UnavailableError, why
from jobs.settings import PREFIX, Settings
from workers import stop_signals
from workers.exits import EXIT_REFUSED
from workers.private_redis import PrivateRedis
from workers.stop_signals import held

_POLL_S = 0.1
_LOOK_INTERVAL_S = 1.0
_MAX_FAILED_LOADS = 3

_log = logging.getLogger(__name__)


class Supervisor:
    """One worker process, and the private Redis if the settings want one and no one else runs it.

    When the worker dies, its chunks are taken back at once. With `restart` another is started, unless it was asked
    to end, or failed to load its engine a few times in a row.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        card_name: str,
        *,
        only_job_id: str | None = None,
        log_path: Path | None = None,
        restart: bool = False,
    ) -> None:
        self._database = database
        self._settings = settings
        self._card_name = card_name
        self._only_job_id = only_job_id
        self._log_path = log_path
        self._restart = restart
        self._redis = PrivateRedis(settings) if settings.has_private_broker else None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._look_at = 0.0
        self._locked_since: float | None = None
        self._num_failed_loads = 0
        self.worker_id = ""

    @held()
    def start(self) -> None:
        """Start the worker; BrokerUnavailableError when there is no Redis to be had."""
        stop_signals.check()
        if self._redis is not None:
            self._redis.ensure()
        self.worker_id = f"worker_{secrets.token_hex(6)}"
        read_end, self._pipe = os.pipe()
        command = [sys.executable, "-m", "workers.main", "--worker-id", self.worker_id]
        command += ["--model", self._card_name, "--watch-fd", str(read_end)]
        if self._only_job_id is not None:
            command += ["--job", self._only_job_id]
        with self._open_log() as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[read_end],
                env={**os.environ, **self._environment()},
            )
        os.close(read_end)
        if self._redis is not None:
            # by the time that it answers the worker is on its way
            self._redis.ensure(wait=True)

    def _environment(self) -> dict[str, str]:
        """What the worker's own settings do not have from elsewhere. Not on its command line: that, everybody on this
        machine can read, and an engine argument may be a token."""
        settings = {f"{PREFIX}HOME": str(self._settings.home)}
        if self._settings.engine_args:
            settings[f"{PREFIX}ENGINE_ARGS"] = json.dumps(self._settings.engine_args)
        return settings

    @held()
    def poll(self) -> int | None:
        """The worker's exit code once it is over for good, None while one runs."""
        stop_signals.check()
        code = self._worker().poll()
        if code is None:
            if time.monotonic() >= self._look_at:
                if self._redis is not None:
                    self._redis.ensure()
                self._end_suspended_writer()
                self._look_at = time.monotonic() + _LOOK_INTERVAL_S
            return None
        was_loaded = self._bury()
        if code in (0, EXIT_REFUSED) or not self._restart:
            return code
        self._num_failed_loads = 0 if was_loaded else self._num_failed_loads + 1
        if self._num_failed_loads >= _MAX_FAILED_LOADS:
            return code
        _log.warning("the worker ended with exit code %d; starting another", code)
        self.start()
        return None

    def _end_suspended_writer(self) -> None:
        """Kill the worker once it has been suspended in the middle of a write for a lease's time: SQLite has one
        write lock, and nobody else could write until it wakes. One that holds no lock may sleep as long as it likes.
        """
        if not (_is_suspended(self._worker().pid) and self._database.is_locked()):
            self._locked_since = None
            return
        now = time.monotonic()
        self._locked_since = self._locked_since or now
        if now - self._locked_since >= self._settings.lease_s:
            _log.error("the worker is suspended, and keeps all others from writing: it is killed")
            self._kill_session()

    def wait(self) -> int:
        """Wait until the worker ends for good."""
        while (code := self.poll()) is None:
            time.sleep(_POLL_S)
        return code

    def _bury(self) -> bool:
        """End what is left of a dead worker's session, and take its chunks back; whether it had loaded its engine."""
        self._kill_session()
        self._close_pipe()
        try:
            was_loaded = queries.has_worker_loaded(self._database, self.worker_id)
            recovery.worker_died(self._database, self.worker_id, self._settings.max_attempts)
        except UnavailableError as error:
            _log.warning("its leases will expire by themselves: %s", error)
            return True
        return was_loaded

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    @held()
    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL once the grace is over or somebody asked again; the worker's exit code.

        Safe to call again, and after the worker ended by itself.
        """
        try:
            if self._process is None:
                return None
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                give_up_at = time.monotonic() + self._settings.stop_grace_s
                while (
                    self._process.poll() is None
                    and time.monotonic() < give_up_at
                    and not stop_signals.is_hurried()
                ):
                    time.sleep(_POLL_S)
            self._kill_session()
            code = self._process.wait()
            if code != 0:
                self._bury()
            return code
        finally:
            self._close_pipe()
            if self._redis is not None:
                self._redis.stop()

    def _kill_session(self) -> None:
        # The worker leads its process group, whose id is its own process id.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._worker().pid, signal.SIGKILL)

    def _worker(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError("start() comes first")
        return self._process

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[IO[bytes] | None]:
        if self._log_path is None:
            yield None
            return
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(f"cannot write the worker's log {self._log_path}: {why(error)}") from error
        with os.fdopen(descriptor, "wb") as log:
            yield log


def _is_suspended(pid: int) -> bool:
    """Whether a child of this process stands still, by SIGSTOP or a terminal."""
    options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT  # the last, so that whoever asks next is told so too
    try:
        return os.waitid(os.P_PID, pid, options) is not None
    except ChildProcessError:
        return False
