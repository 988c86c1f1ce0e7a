"""A worker with the echo engine inside the test's own process, without broker, lease renewal or supervisor."""

from db import transitions
from db.database import Database
from jobs.settings import Settings
from workers.echo_engine import EchoEngine
from workers.feed import Feed
from workers.runner import Runner


def work(database: Database, settings: Settings, card_name: str) -> None:
    """Run what can be claimed, until nothing can."""
    feed = Feed(lambda: EchoEngine(4, 0))
    feed.start()
    engine = feed.wait_ready()
    assert engine is not None
    with database.write() as tx:
        transitions.register_worker(tx, "w", card_name, "echo", "host", 1)
    runner = Runner(database, settings, card_name, "w", feed, engine)
    try:
        runner.work()
    finally:
        runner.close()
        feed.stop()
