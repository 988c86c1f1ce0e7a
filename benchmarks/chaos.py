"""`python -m benchmarks.chaos`: one long job while everything is broken in turn, against the same job left in peace.

Over Postgres and Redis, and over SQLite and the private Redis. Faults and pauses follow from the seed. Prints a
timeline, and exits with 1 when a request is lost or doubled, or an answer is wrong.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

# the servers and the installation that the tests break
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from plant import FAST, Plant, WorkerProcess
from servers import Postgres, Redis, wait_until
from sqlalchemy import func, select

from db.errors import PromptmillError
from db.tables import chunks
from jobs.export import export
from jobs.verify import verify
from workers.celery_app import create_app, queue_name
from workers.tickets import TicketOffice

_NUM_WORKERS = 3
_NUM_FAULTS = 12
_LEASE_S = 8.0
_SETTINGS = {
    **FAST,
    "lease_s": _LEASE_S,
    "heartbeat_s": 1,
    "sweep_s": 1,
    "flush_s": 0.5,
    "chunk_num_requests": 32,
    "engine_num_seqs": 64,
    "echo_latency_s": 0.7,
}
_PAUSES_S = (1.0, 3.0)
_RECOVERY_TIMEOUT_S = 90.0
_FROZEN_S = _LEASE_S + 3
_AWAY_S = 5.0

# What a fault hit: it is over when these leases have passed on; nothing: when the job moves again.
_Hit = frozenset[tuple[int, str]]
_NOTHING: _Hit = frozenset()


class Chaos:
    """One job under faults."""

    def __init__(self, plant: Plant, chance: random.Random, redis: Redis, postgres: Postgres | None) -> None:
        self._plant = plant
        self._chance = chance
        self._redis = redis
        self._postgres = postgres
        self._fleet = [plant.start_worker("--restart-engine", is_ready=False) for _ in range(_NUM_WORKERS)]
        for worker in self._fleet:
            worker.wait_ready()
        self._poisoned: list[str] = []
        self.num_faults = 0

    # the faults, each named by what is done

    def _any(self) -> WorkerProcess:
        return self._chance.choice(self._fleet).wait_ready()

    def _replace(self, worker: WorkerProcess) -> None:
        self._fleet.remove(worker)
        self._fleet.append(self._plant.start_worker("--restart-engine", is_ready=False))

    def kill_a_worker_process(self) -> _Hit:
        worker = self._any()
        held = self._plant.held([worker.id])
        worker.kill(with_supervisor=False)
        return held

    def cut_the_power_of_a_machine(self) -> _Hit:
        worker = self._any()
        held = self._plant.held([worker.id])
        worker.kill(with_supervisor=True)
        self._replace(worker)
        return held

    def kill_a_supervisor(self) -> _Hit:
        worker = self._any()
        held = self._plant.held([worker.id])
        worker.supervisor.kill()
        worker.supervisor.wait()
        self._replace(worker)
        return held

    def kill_all_workers(self) -> _Hit:
        fleet = [worker.wait_ready() for worker in self._fleet]
        held = self._plant.held([worker.id for worker in fleet])
        for worker in fleet:
            worker.kill(with_supervisor=True)
            self._replace(worker)
        return held

    def stop_a_worker_with_sigterm(self) -> _Hit:
        worker = self._any()
        held = self._plant.held([worker.id])
        worker.supervisor.terminate()
        self._replace(worker)
        return held

    def interrupt_a_worker_twice(self) -> _Hit:
        worker = self._any()
        held = self._plant.held([worker.id])
        worker.supervisor.send_signal(signal.SIGINT)
        time.sleep(0.1)
        worker.supervisor.send_signal(signal.SIGINT)
        self._replace(worker)
        return held

    def freeze_a_worker_for_longer_than_its_lease(self) -> _Hit:
        worker = self._any()
        held = self._plant.held([worker.id])
        pid = worker.freeze()
        time.sleep(_FROZEN_S)
        os.kill(pid, signal.SIGCONT)
        return held

    def empty_redis(self) -> _Hit:
        self._redis.client().flushall()
        return _NOTHING

    def send_300_tickets(self) -> _Hit:
        TicketOffice(create_app(self._plant.settings), self._plant.settings.model).send(300)
        return _NOTHING

    def forge_tickets(self) -> _Hit:
        client, queue = self._redis.client(), queue_name(self._plant.settings.model)
        for garbage in (b"\x00\xff", b"[]", b"{}", b'"text"'):
            client.lpush(queue, garbage)
        create_app(self._plant.settings).send_task("promptmill.no_such_task", queue=queue)
        return _NOTHING

    def hang_redis(self) -> _Hit:
        pid = int(self._redis.client().info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(_AWAY_S)
        os.kill(pid, signal.SIGCONT)
        return _NOTHING

    def kill_redis(self) -> _Hit:
        pid = int(self._redis.client().info("server")["process_id"])
        if self._postgres is None:  # a private one, which its supervisor starts again
            os.kill(pid, signal.SIGKILL)
            return _NOTHING
        self._redis.kill()
        time.sleep(_AWAY_S)
        self._redis.start()
        return _NOTHING

    def restart_postgres(self) -> _Hit:
        assert self._postgres is not None  # noqa: S101  only such a plant has this fault
        self._postgres.crash()
        self._postgres.come_back()
        return _NOTHING

    def take_postgres_away_for_longer_than_the_lease(self) -> _Hit:
        assert self._postgres is not None  # noqa: S101  the same
        self._postgres.crash()
        time.sleep(_LEASE_S + 2)
        self._postgres.come_back()
        return _NOTHING

    def submit_poison(self) -> _Hit:
        """Another job, whose third request kills its worker."""
        self._poisoned.append(self._plant.submit(["a", "b", "!kill", "d"], priority=5))
        wait_until(lambda: self._plant.job(self._poisoned[-1]).state.is_final, "the poison fails", 120)
        return _NOTHING

    def schedule(self) -> list[Callable[[], _Hit]]:
        """Every kind once, the commonest twice, in the seed's order."""
        faults = [
            self.kill_a_worker_process,
            self.kill_a_worker_process,
            self.cut_the_power_of_a_machine,
            self.kill_a_supervisor,
            self.kill_all_workers,
            self.stop_a_worker_with_sigterm,
            self.interrupt_a_worker_twice,
            self.freeze_a_worker_for_longer_than_its_lease,
            self.empty_redis,
            self.send_300_tickets,
            self.forge_tickets,
            self.hang_redis,
            self.kill_redis,
            self.submit_poison,
        ]
        if self._postgres is not None:
            faults += [self.restart_postgres, self.take_postgres_away_for_longer_than_the_lease]
        self._chance.shuffle(faults)
        return faults

    def run(self, job_id: str) -> None:
        """Inject faults until the job is over."""
        began = time.monotonic()
        for fault in self.schedule():
            time.sleep(self._chance.uniform(*_PAUSES_S))
            if self._plant.job(job_id).state.is_final:
                break
            at_s, before = time.monotonic() - began, time.monotonic()
            hit = fault()
            self.num_faults += 1
            done = self._plant.job(job_id).counts.num_closed
            wait_until(
                partial(self._is_over, job_id, hit, done),
                f"recovery from {fault.__name__}",
                _RECOVERY_TIMEOUT_S,
            )
            took_s = time.monotonic() - before
            print(
                f"  {at_s:6.1f} s  {fault.__name__.replace('_', ' '):46} recovered after {took_s:4.1f} s",
                flush=True,
            )
        wait_until(lambda: self._plant.job(job_id).state.is_final, "the job is over", 600)
        for poisoned in self._poisoned:
            outcomes = self._plant.wait_sound(poisoned)
            if [outcome.error_code for outcome in outcomes] != [None, None, "engine_crash", None]:
                raise AssertionError("the poison's neighbours failed, or the poison did not")

    def _is_over(self, job_id: str, hit: _Hit, num_done: int) -> bool:
        with suppress(PromptmillError):
            job = self._plant.job(job_id)
            if hit:
                return job.state.is_final or self._plant.is_recovered(hit)
            return job.state.is_final or job.counts.num_closed > num_done
        return False


def _elapsed_s(plant: Plant, job_id: str) -> float:
    job = plant.job(job_id)
    return (job.finished_at or 0) - (job.started_at or 0)


def _ideal_s(plant: Plant, num_requests: int) -> float:
    """The same job with nothing broken."""
    for worker in [plant.start_worker(is_ready=False) for _ in range(_NUM_WORKERS)]:
        worker.wait_ready()
    job_id = plant.submit(num_requests)
    plant.wait_sound(job_id, 600)
    return _elapsed_s(plant, job_id)


def _judge(plant: Plant, job_id: str, num_requests: int) -> tuple[int, int, int]:
    """Requests lost, doubled and wrongly answered in what a user gets; the invariants are verified on the way."""
    plant.wait_sound(job_id)
    output = plant.home / "out.jsonl"
    export(plant.database, job_id, str(output))
    verify(plant.database, job_id, output_path=str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    indices = [line["index"] for line in lines]
    num_wrong = sum(line["result"] != {"response": f"say {line['index']}"} for line in lines)
    return num_requests - len(set(indices)), len(indices) - len(set(indices)), num_wrong


def _num_chunk_attempts(plant: Plant) -> int:
    again = select(func.sum(chunks.c.attempt - 1)).where(chunks.c.attempt > 1)
    with plant.database.read() as tx:
        return int(tx.execute(again).scalar_one() or 0)


def _half(name: str, num_requests: int, seed: int, folder: Path) -> bool:
    """Run one kind of installation through it; whether it kept its promise."""
    postgres = Postgres(folder / "pg") if name == "Postgres + Redis" else None
    shared = Redis(folder)
    if postgres is not None:
        postgres.start()
        shared.start()

    def plant(kind: str) -> Plant:
        home = folder / kind
        home.mkdir()
        urls = {"database_url": postgres.create_database(kind), "broker_url": shared.url} if postgres else {}
        return Plant(home, **{**_SETTINGS, **urls})

    plants: list[Plant] = []
    try:
        plants.append(plant("ideal"))
        print(f"{name}: {num_requests:,} requests, {_NUM_WORKERS} workers, seed {seed}", flush=True)
        ideal_s = _ideal_s(plants[-1], num_requests)
        plants.pop().close()
        print(f"  undisturbed: {ideal_s:.1f} s", flush=True)
        plants.append(plant("chaos"))
        redis = shared if postgres else Redis(plants[-1].home)
        chaos = Chaos(plants[-1], random.Random(seed), redis, postgres)  # noqa: S311  no secret
        job_id = plants[-1].submit(num_requests)
        chaos.run(job_id)
        num_lost, num_doubled, num_wrong = _judge(plants[-1], job_id, num_requests)
        took_s, num_rerun = _elapsed_s(plants[-1], job_id), plants[-1].num_rerun(job_id)
        print(f"  {chaos.num_faults} faults: {took_s:.1f} s, {took_s / ideal_s:.2f} of the undisturbed run")
        print(
            f"  run again: {num_rerun} requests in {_num_chunk_attempts(plants[-1])} further attempts at chunks"
        )
        print(f"  lost = {num_lost}, doubled = {num_doubled}, wrong = {num_wrong}", flush=True)
        if chaos.num_faults < _NUM_FAULTS:
            print(f"  too few faults: the job was over before {_NUM_FAULTS} of them; give more --requests")
        return not (num_lost or num_doubled or num_wrong or chaos.num_faults < _NUM_FAULTS)
    finally:
        if postgres is not None:
            postgres.come_back()
        for one in plants:
            one.close()
        if postgres is not None:
            postgres.stop()
            with suppress(subprocess.SubprocessError):
                shared.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["postgres", "sqlite"])
    options = parser.parse_args()
    names = {"postgres": "Postgres + Redis", "sqlite": "SQLite + private Redis"}
    good = True
    for key, name in names.items():
        if options.only in (None, key):
            with tempfile.TemporaryDirectory(prefix="chaos") as folder:
                good &= _half(name, options.requests, options.seed, Path(folder))
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
