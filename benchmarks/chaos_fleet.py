"""The workers of the long run: always as many, whatever becomes of each."""

import random

from plant import Plant, WorkerProcess
from servers import wait_until


class Fleet:
    """Workers that restart their engines; all are ready once it is made."""

    def __init__(self, plant: Plant, num_workers: int) -> None:
        self._plant = plant
        self._workers = [self._start() for _ in range(num_workers)]
        self.wait_ready()

    def _start(self) -> WorkerProcess:
        return self._plant.start_worker("--restart-engine", is_ready=False)

    def wait_ready(self) -> list[WorkerProcess]:
        """All of them."""
        return [worker.wait_ready() for worker in self._workers]

    def any(self, chance: random.Random) -> WorkerProcess:
        """One that holds chunks."""
        worker = chance.choice(self._workers).wait_ready()
        wait_until(lambda: self._plant.held([worker.id]), "a worker holds chunks")
        return worker

    def replace(self, gone: WorkerProcess, new: WorkerProcess | None = None) -> None:
        self._workers.remove(gone)
        self._workers.append(new or self._start())
