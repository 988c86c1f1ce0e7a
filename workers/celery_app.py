"""The Celery app: each option with its reason."""

import warnings

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import worker_shutting_down

from jobs.settings import Settings
from workers.runner import Runner

TICKET_TASK = "promptmill.ticket"


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


def run_worker(app: Celery, runner: Runner, card_name: str, worker_id: str, num_slots: int) -> None:
    """Take tickets until SIGTERM; then drain, and return once every slot has let go of its chunk."""

    @app.task(name=TICKET_TASK)  # type: ignore[untyped-decorator]
    def ticket() -> None:
        """There is work: claim and run chunks until there is none. A ticket names no chunk, so it may be
        lost, doubled or late without harm."""
        runner.work()

    def drain(**_: object) -> None:
        runner.drain()

    worker_shutting_down.connect(drain)
    # it warns of pickle under root; there is no pickle here, and a container often has no other user
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(
        hostname=f"{worker_id}@%h",
        # Threads: a child of prefork may not start vLLM's processes, and CUDA dies in a fork.
        pool_cls="threads",
        concurrency=num_slots,
        queues=[queue_name(card_name)],
        # None of these is needed, and each talks over the broker; they are where reconnects crash.
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
        quiet=True,
    )
    worker.start()
