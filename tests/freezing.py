"""Holding a worker process still at a chosen moment: inside a write to the database, or outside any."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plant import Plant, WorkerProcess
from sqlalchemy import text

_WRITE_LOCK_BYTE = 120


@contextmanager
def frozen(
    plant: Plant, worker: WorkerProcess, *, is_writing: bool, timeout_s: float = 30.0
) -> Iterator[int]:
    """Hold the worker process still, inside a write transaction or outside any; its process id."""
    deadline = time.monotonic() + timeout_s
    while True:
        pid = worker.freeze()
        # again and again: its last word may still be on its way when it stands still
        if all(_is_in_transaction(plant, pid, after_s) == is_writing for after_s in (0, *[0.1] * 7)):
            break
        os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < deadline, "it was never caught"
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _is_in_transaction(plant: Plant, pid: int, after_s: float) -> bool:
    time.sleep(after_s)
    if plant.database.is_sqlite:
        return _holds_write_lock(pid, Path(f"{plant.database.url.database}-shm"))
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction' AND backend_xid IS NOT NULL"
    )
    with plant.database.read() as tx:
        return bool(tx.execute(query).scalar_one())


def _holds_write_lock(pid: int, shared: Path) -> bool:
    """Whether it is this process that holds SQLite's write lock: byte 120 of the file that all of them map (SQLite's
    wal-index, walformat.html, 2.3). Another worker may hold it just as well, so it must be asked whose it is."""
    inode = str(shared.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        _, *waits, _kind, _mode, access, owner, file, first, last = line.split()
        held = not waits and access == "WRITE" and owner == str(pid) and file.rpartition(":")[2] == inode
        if held and int(first) <= _WRITE_LOCK_BYTE and (last == "EOF" or int(last) >= _WRITE_LOCK_BYTE):
            return True
    return False
