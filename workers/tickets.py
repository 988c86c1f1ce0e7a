"""Tickets: the Celery messages that say that a chunk of a card can be run."""

from amqp.exceptions import ChannelError
from celery import Celery
from kombu.exceptions import OperationalError

from db.errors import BrokerUnavailableError
from jobs.settings import Settings
from workers.celery_app import TICKET_TASK, create_app, queue_name

# Tickets of one submit: enough to wake the free slots of a few workers. The sweepers send more as needed.
MAX_SUBMIT_TICKETS = 16


class TicketOffice:
    """Sends tickets to one card's queue, and counts those that wait there.

    BrokerUnavailableError when the broker is away: nothing is lost by it, for the next sweep tries again.
    """

    def __init__(self, app: Celery, card_name: str) -> None:
        self._app = app
        self._queue = queue_name(card_name)

    def send(self, num_tickets: int) -> None:
        try:
            with (
                self._app.connection_for_write() as connection,
                self._app.amqp.Producer(connection) as producer,
            ):
                for _ in range(num_tickets):
                    self._app.send_task(TICKET_TASK, queue=self._queue, producer=producer, retry=False)
        except (OperationalError, OSError) as error:
            raise BrokerUnavailableError(_explain(self._app, error)) from error

    def num_waiting(self) -> int:
        try:
            with self._app.connection_for_read() as connection:
                declared = connection.default_channel.queue_declare(self._queue, passive=True)
                return int(declared.message_count)
        except ChannelError:
            return 0  # no ticket was ever sent: Redis knows a queue only while it holds something
        except (OperationalError, OSError) as error:
            raise BrokerUnavailableError(_explain(self._app, error)) from error


def _explain(app: Celery, error: Exception) -> str:
    # as_uri masks the password
    url = app.connection_for_write().as_uri()
    what = f"the broker {url} is not available ({type(error).__name__})"
    return f"{what}; start it, or set PROMPTMILL_BROKER_URL to one that runs"


def announce(settings: Settings, card_name: str, num_chunks: int) -> bool:
    """Send tickets for a new job, as well as it goes; False when the broker is away, and the job waits."""
    if settings.has_private_broker and not settings.private_broker_socket.exists():
        return False  # no worker runs; the first one's sweeper sends the tickets
    try:
        TicketOffice(create_app(settings), card_name).send(min(num_chunks, MAX_SUBMIT_TICKETS))
    except BrokerUnavailableError:
        return False
    return True
