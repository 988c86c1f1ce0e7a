"""The Celery app: each option with its reason."""

import logging
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.worker import state
from celery.worker.consumer import Consumer

from jobs.settings import Settings
from workers.runner import Runner

TICKET_TASK = "promptmill.ticket"
_STOP_POLL_S = 0.1
# How long a worker that has let go of everything waits until it is written that it drains: a database may be away.
_ON_STOP_S = 2.0

# What reading a message raises that was never written by Celery.
_FORGED = (AttributeError, IndexError, KeyError, TypeError, ValueError)

_log = logging.getLogger(__name__)


def queue_name(card_name: str) -> str:
    return f"promptmill.{card_name}"


def create_app(settings: Settings) -> Celery:
    """A Celery app that sends and takes tickets; no pickle and no results."""
    app = Celery("promptmill", broker=settings.resolved_broker_url, set_as_current=False)
    app.conf.update(
        # JSON only: whoever can write to the broker must not be able to run code here.
        task_serializer="json",
        accept_content=["json"],
        # A ticket has no result; the database has.
        result_backend=None,
        task_ignore_result=True,
        # Acknowledged at once: a lost ticket is harmless, while late acknowledgement on Redis repeats long tasks
        # after the visibility timeout, and can crash a 5.7.0 worker when the connection is lost.
        task_acks_late=False,
        # No ticket parks on a busy worker while another is idle.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # Cancels go through the database; the control channel only adds ways to crash at a reconnect.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # A worker waits for its broker for as long as it takes.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A publish that fails is not repeated: the sweeper is the retry, and a submit must not hang.
        task_publish_retry=False,
        broker_transport_options={
            # Above the 1 s that a blocking read takes, and low enough to notice a broker that hangs.
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 15,
            "visibility_timeout": 3600,
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        # Logging is ours, and vLLM's.
        worker_redirect_stdouts=False,
        worker_hijack_root_logger=False,
        timezone="UTC",
    )
    return app


class _TicketConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Drops what is no ticket. Celery's own ends the worker over it, and puts some of it back for the next one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop: Callable[..., None] = _reconnecting(self.loop)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def take(message: Any) -> None:
            try:
                handle(message)
            except _FORGED as error:
                _log.error("a message that is no ticket was dropped (%s)", type(error).__name__)
                message.ack_log_error(_log, (OSError,))

        return take


def _reconnecting(loop: Callable[..., None]) -> Callable[..., None]:
    """A message that kombu itself cannot read is gone from the queue by then: to connect again is all it takes."""

    def run(*args: Any) -> None:
        try:
            loop(*args)
        except _FORGED as error:
            raise ConnectionError(f"a message that is no ticket ({type(error).__name__})") from error

    return run


def run_worker(
    app: Celery,
    runner: Runner,
    card_name: str,
    worker_id: str,
    num_slots: int,
    is_stop_asked: Callable[[], bool],
    on_stop: Callable[[], None],
) -> int:
    """Take tickets until `is_stop_asked`; then drain, and return once every slot has let go of its chunk.

    `on_stop` is called meanwhile, and waited for no longer than a moment. Celery's exit code: 0 after a stop that was
    asked for, another when Celery itself gave up.
    """

    @app.task(name=TICKET_TASK)  # type: ignore[untyped-decorator]
    def ticket() -> None:
        """There is work: claim and run chunks until there is none. A ticket names no chunk, so it may be
        lost, doubled or late without harm."""
        runner.work()

    # it warns of pickle under root; there is no pickle here, and a container often has no other user
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(
        hostname=f"{worker_id}@%h",
        # Threads: a child of prefork may not start vLLM's processes, and CUDA dies in a fork.
        pool_cls="threads",
        concurrency=num_slots,
        queues=[queue_name(card_name)],
        consumer_cls=_TicketConsumer,
        # None of these is needed, and each talks over the broker; they are where reconnects crash.
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
        quiet=True,
    )
    # Celery's signal handlers raise and take locks wherever the signal finds the main thread. Ours sets a flag.
    worker.install_platform_tweaks = lambda _: None
    stop = threading.Thread(
        target=_stop_when, args=(is_stop_asked, on_stop, runner), name="stop", daemon=True
    )
    stop.start()
    worker.start()
    if is_stop_asked():
        stop.join(_ON_STOP_S)
    return int(worker.exitcode or 0)


def _stop_when(is_stop_asked: Callable[[], bool], on_stop: Callable[[], None], runner: Runner) -> None:
    """Once a stop is asked for: no more claims, chunks given back, and Celery's loop ends by itself."""
    while not is_stop_asked():
        time.sleep(_STOP_POLL_S)
    runner.drain()
    state.should_stop = 0
    on_stop()
