"""The worker process: `python -m workers.main`, started by the supervisor only."""

import argparse
import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from db import transitions
from db.database import Database
from db.errors import (
    CardError,
    EngineError,
    PromptmillError,
    SettingsError,
    UnavailableError,
    WrongStateError,
)
from db.upgrade import open_database
from jobs.cards import Card, find_card
from jobs.settings import Settings, load_settings
from workers.appetite import NUM_BATCHES_IN_FLIGHT
from workers.celery_app import create_app, run_worker
from workers.engine import Engine
from workers.exits import EXIT_ENGINE_DIED, EXIT_REFUSED, EXIT_UNAVAILABLE
from workers.feed import Feed
from workers.housekeeping import Heartbeat, Sweeper
from workers.provenance import describe_machine, describe_packages
from workers.runner import Runner
from workers.scheduler import Scheduler
from workers.tickets import TicketOffice

_log = logging.getLogger("promptmill")
_MIN_CHUNKS, _MAX_CHUNKS = 4, 256
_ECHO_NUM_SEQS = 64
# One for the claims, which come one at a time, and one each for writer, heartbeat and sweeper; as many again for a
# moment. With hundreds of workers the database counts them.
_NUM_CONNECTIONS = 4


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--job")
    parser.add_argument("--watch-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "kombu", "celery", "amqp"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Celery sets the root's level to its own
    _log.setLevel(logging.INFO)
    _die_with_supervisor(arguments.watch_fd)
    try:
        settings = load_settings()
        card = find_card(settings.home, arguments.model)
        return _Worker(settings, card, arguments.worker_id, arguments.job).run()
    except EngineError as error:
        _log.critical("%s", error)
        return EXIT_ENGINE_DIED
    except UnavailableError as error:
        _log.critical("%s", error)
        return EXIT_UNAVAILABLE
    except (SettingsError, CardError) as error:
        _log.critical("%s", error)
        return EXIT_REFUSED
    except PromptmillError as error:
        _log.critical("%s", error)
        return 1


def _create_engine(settings: Settings, card: Card) -> Engine:
    """The engine that the settings name, loaded: this takes as long as the weights do."""
    if settings.engine == "echo":
        from workers.echo_engine import EchoEngine

        return EchoEngine(settings.engine_num_seqs or _ECHO_NUM_SEQS, settings.echo_latency_s)
    # Half a million objects come to stay. Python would look through all of them again and again while they come, for
    # two seconds of the load, and later for a third of a second in the middle of a step.
    gc.disable()
    try:
        from workers.vllm_engine import VllmEngine

        return VllmEngine(settings, card)
    finally:
        gc.freeze()
        gc.enable()


def _num_slots(num_seqs: int, chunk_num_requests: int) -> int:
    """As many chunks as may be in flight: the feed says when there is room for another."""
    enough = math.ceil(NUM_BATCHES_IN_FLIGHT * num_seqs / chunk_num_requests)
    return min(max(_MIN_CHUNKS, enough), _MAX_CHUNKS)


def _die_with_supervisor(watch_fd: int) -> None:
    """Kill this whole session when the supervisor's end of the pipe closes."""

    def watch() -> None:
        os.read(watch_fd, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch", daemon=True).start()


class _StoppedError(Exception):
    """The stop was asked for while the engine was being loaded."""


class _Worker:
    """One worker from its row in the database to its last breath."""

    def __init__(self, settings: Settings, card: Card, worker_id: str, only_job_id: str | None) -> None:
        self._settings = settings
        self._card = card
        self._worker_id = worker_id
        self._only_job_id = only_job_id
        self._engine_died = False
        # a plain flag, since nothing else is safe to touch in a signal's handler
        self._is_stop_asked = False

    def run(self) -> int:
        """0 after a stop that was asked for, EXIT_ENGINE_DIED when the engine ended first, else Celery's own."""
        settings = self._settings
        database = open_database(settings.resolved_database_url, pool_size=_NUM_CONNECTIONS)
        engine_name = settings.engine
        with database.write() as tx:
            transitions.register_worker(
                tx,
                self._worker_id,
                self._card.name,
                engine_name,
                socket.gethostname(),
                os.getpid(),
            )
        heartbeat = Heartbeat(database, settings, self._worker_id)
        heartbeat.start()
        feed = Feed(lambda: _create_engine(settings, self._card))
        code = EXIT_ENGINE_DIED
        try:
            code = self._serve(database, heartbeat, feed)
        except _StoppedError:
            _log.info("stopped before the engine was loaded")
            self._say(database, transitions.stop_worker)
            # a load cannot be interrupted, and holds nothing that must be put in order
            os._exit(0)
        finally:
            heartbeat.stop()
            # Its supervisor buries a worker that failed: it takes the chunks back, and reads in this worker's row
            # whether the engine had been loaded, which tells a death from a load that fails each time.
            if code == 0 and not self._engine_died:
                self._say(database, transitions.stop_worker)
            feed.stop()
            _log.info("the engine: %s", feed.counters)
            database.close()
        return EXIT_ENGINE_DIED if self._engine_died else code

    def _serve(self, database: Database, heartbeat: Heartbeat, feed: Feed) -> int:
        settings = self._settings
        signal.signal(signal.SIGTERM, self._ask_stop)
        started_at = time.monotonic()
        feed.start()
        # while the engine loads, since a GPU's driver may take its time over an answer
        surroundings = {"machine": describe_machine(), "packages": describe_packages()}
        while (engine := feed.wait_ready(0.2)) is None:
            if self._is_stop_asked:
                raise _StoppedError
        num_slots = settings.worker_num_chunks or _num_slots(engine.num_seqs, settings.chunk_num_requests)
        runner = Runner(
            database,
            settings,
            self._card.name,
            self._worker_id,
            feed,
            engine,
            only_job_id=self._only_job_id,
            on_engine_death=self._on_engine_death,
        )
        heartbeat.runner = runner
        details = json.dumps({"engine": engine.details, **surroundings})
        self._say(database, partial(transitions.ready_worker, details=details))
        _log.info(
            "ready: %s with %s, loaded in %.1f s; up to %d chunks in flight, %d requests at once",
            self._card.name,
            engine.label,
            time.monotonic() - started_at,
            num_slots,
            engine.num_seqs,
        )
        app = create_app(settings)
        tickets = TicketOffice(app, self._card.name)
        # `run` has a worker for its own job, which ends with it
        scheduler = Scheduler(database, settings) if self._only_job_id is None else None
        sweeper = Sweeper(
            database, settings, self._card.name, runner, tickets, num_slots, heartbeat, scheduler
        )
        sweeper.start()
        try:
            code = run_worker(
                app,
                runner,
                self._card.name,
                self._worker_id,
                num_slots,
                is_stop_asked=lambda: self._is_stop_asked,
                on_stop=lambda: self._say(database, transitions.drain_worker),
            )
        finally:
            sweeper.stop()
            if scheduler is not None:
                scheduler.stop()
            runner.drain()
            runner.close()
        return code

    def _ask_stop(self, *_: object) -> None:
        self._is_stop_asked = True

    def _on_engine_death(self) -> None:
        self._engine_died = True
        self._ask_stop()

    def _say(self, database: Database, transition: Callable[..., None]) -> None:
        try:
            with database.write() as tx:
                transition(tx, self._worker_id)
        except WrongStateError:
            pass  # it is further on already: a stop may be over before it is said that it began
        except PromptmillError as error:
            _log.warning("could not write this worker's state: %s", error)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # vLLM and torch leave threads that would hold up the interpreter's own way out
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
