"""Doubled, lost, reordered and forged tickets: whoever can write to Redis cannot lose or double a request."""

from typing import Any

from kombu import Connection, Exchange, Producer
from plant import LONG_LEASE_S, MakePlant, Plant
from servers import Redis

from workers.celery_app import TICKET_TASK, create_app, queue_name
from workers.tickets import TicketOffice


def _publish(plant: Plant, body: Any, **options: Any) -> None:
    """Any message into the card's queue."""
    with Connection(plant.settings.resolved_broker_url) as connection:
        producer = Producer(connection.default_channel, exchange=Exchange(""), auto_declare=False)
        producer.publish(body, routing_key=queue_name(plant.settings.model), **options)


_HEADERS = {"lang": "py", "task": TICKET_TASK, "id": "1", "root_id": "1", "parent_id": None, "group": None}


def _forge(plant: Plant, redis: Redis, kind: str) -> None:  # noqa: C901  a table of messages
    app, queue = create_app(plant.settings), queue_name(plant.settings.model)
    match kind:
        case "unknown task":
            app.send_task("promptmill.no_such_task", queue=queue)
        case "arguments":
            app.send_task(TICKET_TASK, args=["a", {"b": 1}], queue=queue)
        case "far future":
            app.send_task(TICKET_TASK, queue=queue, countdown=10**6)
        case "pickle":
            _publish(
                plant, b"\x80\x04N.", content_type="application/x-python-serialize", content_encoding="binary"
            )
        case "pickle with headers":
            _publish(
                plant,
                b"\x80\x04N.",
                content_type="application/x-python-serialize",
                content_encoding="binary",
                headers=_HEADERS,
            )
        case "undecodable body":
            _publish(
                plant,
                b"\xff\xfe",
                content_type="application/json",
                content_encoding="utf-8",
                headers=_HEADERS,
            )
        case "body that is no call":
            _publish(plant, 5, serializer="json", headers=_HEADERS)
        case "text":
            _publish(plant, "nothing of ours", serializer="json")
        case "bytes":
            redis.client().lpush(queue, b"\x00\xff garbage")
        case "object":
            redis.client().lpush(queue, b'{"a": 1}')
        case "list":
            redis.client().lpush(queue, b"[]")
        case _:
            raise AssertionError(kind)


FORGED = [
    "unknown task",
    "arguments",
    "far future",
    "pickle",
    "pickle with headers",
    "undecodable body",
    "body that is no call",
    "text",
    "bytes",
    "object",
    "list",
]


def test_hundreds_of_tickets_run_each_request_once(big: MakePlant) -> None:
    plant = big(echo_latency_s=0.1, lease_s=LONG_LEASE_S)
    plant.start_worker(is_ready=False)
    plant.start_worker()
    office = TicketOffice(create_app(plant.settings), plant.settings.model)
    office.send(150)
    job_id = plant.submit(120)
    office.send(150)
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0


def test_tickets_in_another_order_and_twice_make_no_difference(big: MakePlant, redis: Redis) -> None:
    """Of two jobs, with nobody there yet: a ticket names no chunk, so neither its place nor a copy of it counts."""
    plant = big(lease_s=LONG_LEASE_S)
    low, high = plant.submit(40), plant.submit(40, priority=5)
    client, queue = redis.client(), queue_name(plant.settings.model)
    tickets = client.lrange(queue, 0, -1)
    assert len(tickets) > 2
    client.delete(queue)
    client.rpush(queue, *reversed(tickets), *tickets)
    plant.start_worker()
    plant.wait_sound(low)
    plant.wait_sound(high)
    assert plant.num_rerun(low) == plant.num_rerun(high) == 0
    assert max(plant.finished(high).values()) <= max(plant.finished(low).values()), "priority decides"


def test_forged_tickets_stop_no_worker(big: MakePlant, redis: Redis) -> None:
    """Each is dropped: no process ends of it, none is handed out again, and jobs go on."""
    plant = big(echo_latency_s=0.05)
    worker = plant.start_worker("--restart-engine")
    for kind in FORGED:
        _forge(plant, redis, kind)
        plant.wait_sound(plant.submit(20), 40)
    for kind in FORGED:
        _forge(plant, redis, kind)
    plant.wait_sound(plant.submit(40), 40)
    assert worker.supervisor.poll() is None
    assert plant.num_workers() == 1, worker.log
