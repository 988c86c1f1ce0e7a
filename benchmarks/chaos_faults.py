"""The faults of the long run: what each does to the installation, and what shows that it is over."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence

from freezing import frozen
from other_machine import OtherMachine
from plant import Plant, WorkerProcess
from servers import Postgres, Redis, wait_until
from sqlalchemy import func, select

from benchmarks.chaos_fleet import Fleet
from db.states import JobState
from db.tables import jobs, requests
from workers.celery_app import create_app, queue_name
from workers.tickets import TicketOffice

_HUNG_S = 5.0
_REDIS_AWAY_S = 60.0
_POSTGRES_AWAY_S = 30.0
_NUM_CUT_OFF = 400_000
_CAUGHT_TIMEOUT_S = 120.0

# What a fault hit: it is over when these leases have passed on; nothing: when the job moves again.
Hit = frozenset[tuple[int, str]]
_NOTHING: Hit = frozenset()


class Faults:
    """A fleet of workers, and everything that is done to it; each fault is named by what it does."""

    def __init__(
        self,
        plant: Plant,
        chance: random.Random,
        redis: Redis,
        postgres: Postgres | None,
        *,
        num_workers: int,
    ) -> None:
        self._plant = plant
        self._chance = chance
        self._redis = redis
        self._postgres = postgres
        self._frozen_s = plant.settings.lease_s + 3
        self._other_machine = (
            OtherMachine(postgres, redis) if postgres is not None and OtherMachine.is_permitted() else None
        )
        self._fleet = Fleet(plant, num_workers)
        self.poisoned: list[str] = []
        # when the last fault began, its victim found
        self.struck_at = 0.0

    def close(self) -> None:
        if self._other_machine is not None:
            self._other_machine.close()

    def schedule(self) -> list[Callable[[], Hit]]:
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
            self.freeze_a_worker_in_a_write,
            self.empty_redis,
            self.send_300_tickets,
            self.forge_tickets,
            self.hang_redis,
            self.kill_a_submit,
            self.submit_poison,
        ]
        if self._postgres is None:
            faults.append(self.kill_redis)
        else:
            faults += [
                self.take_redis_away_for_60_s,
                self.restart_postgres,
                self.take_postgres_away_for_30_s,
            ]
        if self._other_machine is not None:
            faults.append(self.cut_a_worker_off)
        self._chance.shuffle(faults)
        return faults

    def strike(self, fault: Callable[[], Hit]) -> Hit:
        self.struck_at = time.monotonic()
        return fault()

    def _held_now(self, workers: Sequence[WorkerProcess]) -> Hit:
        held = self._plant.held([worker.id for worker in workers])
        self.struck_at = time.monotonic()
        return held

    def _any(self) -> tuple[WorkerProcess, Hit]:
        worker = self._fleet.any(self._chance)
        return worker, self._held_now([worker])

    # workers

    def kill_a_worker_process(self) -> Hit:
        worker, held = self._any()
        worker.kill(with_supervisor=False)
        return held

    def cut_the_power_of_a_machine(self) -> Hit:
        worker, held = self._any()
        worker.kill(with_supervisor=True)
        self._fleet.replace(worker)
        return held

    def kill_a_supervisor(self) -> Hit:
        worker, held = self._any()
        worker.supervisor.kill()
        worker.supervisor.wait()
        self._fleet.replace(worker)
        return held

    def kill_all_workers(self) -> Hit:
        fleet = self._fleet.wait_ready()
        held = self._held_now(fleet)
        for worker in fleet:
            worker.kill(with_supervisor=True)
            self._fleet.replace(worker)
        return held

    def stop_a_worker_with_sigterm(self) -> Hit:
        worker, held = self._any()
        worker.supervisor.terminate()
        self._fleet.replace(worker)
        return held

    def interrupt_a_worker_twice(self) -> Hit:
        worker, held = self._any()
        worker.supervisor.send_signal(signal.SIGINT)
        time.sleep(0.1)
        worker.supervisor.send_signal(signal.SIGINT)
        self._fleet.replace(worker)
        return held

    def freeze_a_worker_for_longer_than_its_lease(self) -> Hit:
        worker, held = self._any()
        pid = worker.freeze()
        time.sleep(self._frozen_s)
        os.kill(pid, signal.SIGCONT)
        return held

    def freeze_a_worker_in_a_write(self) -> Hit:
        """With rows locked, or SQLite's one write lock."""
        worker, _ = self._any()
        with frozen(self._plant, worker, is_writing=True, timeout_s=_CAUGHT_TIMEOUT_S):
            held = self._held_now([worker])
            time.sleep(self._frozen_s)
        return held

    def cut_a_worker_off(self) -> Hit:
        """One on another machine, which takes a place in the fleet; the cable is back after its lease."""
        assert self._other_machine is not None  # noqa: S101  only such a plant has this fault
        near, _ = self._any()
        near.supervisor.terminate()
        urls = self._other_machine.urls(self._plant.settings.resolved_database_url)
        far = self._plant.start_worker("--restart-engine", under=self._other_machine.enter, **urls)
        self._fleet.replace(near, far)
        wait_until(lambda: self._plant.held([far.id]), "the far worker holds chunks")
        held = self._held_now([far])
        self._other_machine.cut()
        time.sleep(self._frozen_s)
        self._other_machine.mend()
        return held

    # the broker

    def empty_redis(self) -> Hit:
        self._redis.client().flushall()
        return _NOTHING

    def send_300_tickets(self) -> Hit:
        TicketOffice(create_app(self._plant.settings), self._plant.settings.model).send(300)
        return _NOTHING

    def forge_tickets(self) -> Hit:
        client, queue = self._redis.client(), queue_name(self._plant.settings.model)
        for garbage in (b"\x00\xff", b"[]", b"{}", b'"text"'):
            client.lpush(queue, garbage)
        create_app(self._plant.settings).send_task("promptmill.no_such_task", queue=queue)
        return _NOTHING

    def hang_redis(self) -> Hit:
        pid = int(self._redis.client().info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(_HUNG_S)
        os.kill(pid, signal.SIGCONT)
        return _NOTHING

    def kill_redis(self) -> Hit:
        """The private one, which its supervisor starts again."""
        os.kill(int(self._redis.client().info("server")["process_id"]), signal.SIGKILL)
        return _NOTHING

    def take_redis_away_for_60_s(self) -> Hit:
        self._redis.kill()
        time.sleep(_REDIS_AWAY_S)
        self._redis.start()
        return _NOTHING

    # the database

    def restart_postgres(self) -> Hit:
        assert self._postgres is not None  # noqa: S101  only such a plant has this fault
        return self._restart(self._postgres, 0)

    def take_postgres_away_for_30_s(self) -> Hit:
        assert self._postgres is not None  # noqa: S101  the same
        return self._restart(self._postgres, _POSTGRES_AWAY_S)

    def _restart(self, postgres: Postgres, away_s: float) -> Hit:
        postgres.crash()
        time.sleep(away_s)
        postgres.come_back()
        return _NOTHING

    # what people hand in

    def submit_poison(self) -> Hit:
        """Another job, whose third request kills its worker."""
        self.poisoned.append(self._plant.submit(["a", "b", "!kill", "d"], priority=5))
        wait_until(lambda: self._plant.job(self.poisoned[-1]).state.is_final, "the poison fails", 120)
        return _NOTHING

    def kill_a_submit(self) -> Hit:
        """In the middle of a file; what it stored is cleared away once its lease is over."""
        path = self._plant.write(_NUM_CUT_OFF)
        before = self._num_staged()
        submitting = self._plant.cli.start("submit", str(path))
        wait_until(lambda: self._num_staged() > before, "lines are on their way in")
        submitting.kill()
        submitting.wait()
        path.unlink()
        return _NOTHING

    def _num_staged(self) -> int:
        """Requests of jobs that nobody sees yet, or any more."""
        unseen = select(jobs.c.id).where(jobs.c.state.in_([JobState.VALIDATING, JobState.DELETING]))
        rows = select(func.count()).select_from(requests).where(requests.c.job_id.in_(unseen))
        with self._plant.database.read() as tx:
            return tx.execute(rows).scalar_one()

    def is_swept(self) -> bool:
        """Whether nothing is left of submits that were killed."""
        return self._num_staged() == 0
