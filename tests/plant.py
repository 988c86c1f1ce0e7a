"""One installation to break: a database, a broker, worker processes and jobs; for fault tests and the long run."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servers import Cli, wait_until
from soundness import assert_job_is_sound
from sqlalchemy import func, select

from db import queries
from db.database import Database
from db.errors import DatabaseUnavailableError
from db.outcomes import Outcome
from db.queries import Job
from db.states import ChunkState, WorkerState
from db.tables import chunks, results, workers
from db.upgrade import open_database, upgrade
from jobs.cards import find_card
from jobs.settings import Settings
from jobs.submit import SubmitOptions, submit
from workers.tickets import announce

# Short enough that a test sees recovery within seconds, long enough for two slow cores.
LEASE_S = 3.0
# For tests in which no lease may run out: longer than any pause of a slow machine.
LONG_LEASE_S = 30.0
FAST = {
    "engine": "echo",
    "model": "smollm2-135m-instruct",
    "lease_s": LEASE_S,
    "heartbeat_s": 0.4,
    "sweep_s": 0.4,
    "flush_s": 0.2,
    "chunk_num_requests": 8,
    "engine_num_seqs": 8,
    "echo_latency_s": 0.2,
}
# What a dead worker's requests may take to run elsewhere, beyond the lease.
RECOVERY_MARGIN_S = 5.0

_Held = frozenset[tuple[int, str]]


class WorkerProcess:
    """`promptmill worker`: a supervisor, and the worker process that lives under it now."""

    def __init__(self, plant: "Plant", supervisor: "subprocess.Popen[str]", log: Path) -> None:
        self._plant = plant
        self.supervisor = supervisor
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def id(self) -> str:
        return self._row()[0]

    @property
    def pid(self) -> int:
        """Of the worker process, which is not the supervisor's."""
        return self._row()[1]

    def _row(self) -> tuple[str, int]:
        row = self._find()
        assert row is not None, f"no worker process is ready\n{self.log}"
        return row

    def _find(self) -> tuple[str, int] | None:
        ready = select(workers.c.id, workers.c.pid).where(workers.c.state == WorkerState.READY)
        with contextlib.suppress(DatabaseUnavailableError), self._plant.database.read() as tx:
            for id_, pid in tx.execute(ready.order_by(workers.c.started_at.desc())):
                if _parent_of(pid) == self.supervisor.pid:
                    return str(id_), int(pid)
        return None

    def wait_ready(self, timeout_s: float = 30.0) -> "WorkerProcess":
        wait_until(self._find, "the worker is ready", timeout_s)
        return self

    def kill(self, *, with_supervisor: bool) -> None:
        """SIGKILL. With the supervisor, as a machine's power cut: nobody is left to say that it is dead."""
        pid = self.pid
        if with_supervisor:
            # first, and both before either can act on the other's death
            os.kill(self.supervisor.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        if with_supervisor:
            self.supervisor.kill()
            self.supervisor.wait()

    def freeze(self) -> int:
        """SIGSTOP the worker process, not its supervisor; its process id."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: _state_of(pid) == "T", "the worker stands still")
        return pid


class Plant:
    """An installation with its settings; `settings` as keywords, times in the names' units."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.cli = Cli(home, **settings)
        self.settings = Settings(home=home, **settings)
        self.database: Database = open_database(self._migrated())
        self._numbers = itertools.count()

    def _migrated(self) -> str:
        url = self.settings.resolved_database_url
        database = Database(url)
        upgrade(database)
        database.close()
        return url

    def close(self) -> None:
        self.cli.stop_all()
        self.database.close()

    # workers

    def start_worker(
        self,
        *options: str,
        under: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        is_ready: bool = True,
        **settings: object,
    ) -> WorkerProcess:
        """One that is ready, unless `is_ready` is False; settings of its own as keywords."""
        log = self.home / f"worker{next(self._numbers)}.log"
        changed = {f"PROMPTMILL_{name.upper()}": str(value) for name, value in settings.items()}
        process = self.cli.start(
            "worker", *options, under=under, log=log, environment={**(environment or {}), **changed}
        )
        worker = WorkerProcess(self, process, log)
        return worker.wait_ready() if is_ready else worker

    def worker_ids(self) -> list[str]:
        """Of the workers that say they are ready."""
        with self.database.read() as tx:
            return list(
                tx.execute(select(workers.c.id).where(workers.c.state == WorkerState.READY)).scalars()
            )

    def worker_pids(self) -> list[int]:
        """Of the worker processes that are ready."""
        with self.database.read() as tx:
            return list(
                tx.execute(select(workers.c.pid).where(workers.c.state == WorkerState.READY)).scalars()
            )

    def has_beaten(self, worker_id: str) -> bool:
        """Whether this worker was heard of within a lease's time."""
        return any(
            worker.id == worker_id and worker.heartbeat_age_s < self.settings.lease_s
            for worker in queries.list_workers(self.database)
        )

    def num_workers(self) -> int:
        """Worker processes that ever were."""
        with self.database.read() as tx:
            return tx.execute(select(func.count()).select_from(workers)).scalar_one()

    # jobs

    def write(self, requests: int | Sequence[str]) -> Path:
        """An input file: so many echo requests, or these prompts."""
        prompts = [f"say {n}" for n in range(requests)] if isinstance(requests, int) else requests
        path = self.home / f"in{next(self._numbers)}.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        return path

    def submit(self, requests: int | Sequence[str], **options: Any) -> str:
        """The id of a new job."""
        return self.submit_file(self.write(requests), **options)

    def submit_file(self, path: Path, **options: Any) -> str:
        card = find_card(self.home, self.settings.model)
        job = submit(self.database, self.settings, card, str(path), SubmitOptions(**options)).job
        announce(self.settings, card.name, job.counts.total)
        return job.id

    def job(self, job_id: str) -> Job:
        return queries.get_job(self.database, job_id)

    def wait_results(self, job_id: str, num_results: int = 1, timeout_s: float = 30.0) -> None:
        """Until so many requests have an outcome, while the database may be away."""
        wait_until(
            lambda: self._peek(job_id, lambda job: job.counts.num_closed >= num_results),
            f"{num_results} results",
            timeout_s,
        )

    def wait_running(self, job_id: str) -> None:
        wait_until(lambda: self._peek(job_id, lambda job: job.counts.running > 0), "a chunk runs")

    def wait_sound(self, job_id: str, timeout_s: float = 60.0) -> list[Outcome]:
        """Until the job is over; it is checked, and its outcomes come back."""
        wait_until(lambda: self._peek(job_id, lambda job: job.state.is_final), "the job is over", timeout_s)
        return assert_job_is_sound(self.database, job_id)

    def _peek(self, job_id: str, is_so: Any) -> bool:
        with contextlib.suppress(DatabaseUnavailableError):
            return bool(is_so(self.job(job_id)))
        return False

    def num_rerun(self, job_id: str) -> int:
        """Requests that did not succeed at their first attempt."""
        again = (
            select(func.count()).select_from(results).where(results.c.job_id == job_id, results.c.attempt > 1)
        )
        with self.database.read() as tx:
            return tx.execute(again).scalar_one()

    def finished(self, job_id: str) -> dict[int, float]:
        """When each finished request got its outcome."""
        rows = select(results.c.index, results.c.finished_at).where(results.c.job_id == job_id)
        with self.database.read() as tx:
            return dict(tx.execute(rows).tuples().all())

    # recovery

    def held(self, worker_ids: Collection[str]) -> _Held:
        """The chunks that these workers hold now, each with its lease."""
        rows = select(chunks.c.id, chunks.c.lease_id).where(
            chunks.c.worker_id.in_(worker_ids), chunks.c.state == ChunkState.RUNNING
        )
        with self.database.read() as tx:
            return frozenset((id_, lease_id) for id_, lease_id in tx.execute(rows))

    def is_recovered(self, held: _Held) -> bool:
        """Whether none of these leases lives, and each chunk is over or runs under another."""
        rows = select(chunks.c.id, chunks.c.lease_id, chunks.c.state).where(
            chunks.c.id.in_([id_ for id_, _ in held])
        )
        with self.database.read() as tx:
            return all(
                state != ChunkState.QUEUED and (id_, lease_id) not in held
                for id_, lease_id, state in tx.execute(rows)
            )

    @contextmanager
    def recovers_within(self, bound_s: float, worker_ids: Collection[str]) -> Iterator[None]:
        """The block breaks these workers; what they held must run elsewhere within `bound_s` of its end."""
        held = self.held(worker_ids)
        assert held, "the fault hits nothing: these workers hold no chunk"
        yield
        began = time.monotonic()
        wait_until(lambda: self.is_recovered(held), f"recovery in {bound_s:g} s", bound_s)
        print(f"recovered after {time.monotonic() - began:.1f} s")


# A plant with the quick settings; changed ones as keywords.
MakePlant = Callable[..., Plant]


def _parent_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("PPid:"):
                return int(line.split()[1])
    return None


def _state_of(pid: int) -> str:
    """R, S, T for stopped, Z …; empty when there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
