"""What a shell completes: job ids, card names and states, each with a few words. Never an error, never a long wait."""

import threading
from collections.abc import Callable
from contextlib import suppress

from db.glance import glance_at_jobs
from db.states import JobState
from jobs.settings import load_settings

_MAX_WAIT_S = 0.8
_NUM_JOBS = 50
_LAST_JOB = "last"

# what is completed to, and what it is
Completion = tuple[str, str]


def complete_job(beginning: str) -> list[Completion]:
    """The newest jobs that are meant by this beginning of an id; and `last`."""

    def find() -> list[Completion]:
        jobs = glance_at_jobs(load_settings().resolved_database_url, beginning, _NUM_JOBS)
        found = [(job_id, _words(state, name)) for job_id, state, name in jobs]
        if _LAST_JOB.startswith(beginning) and (found or beginning):
            found.insert(0, (_LAST_JOB, "the newest job"))
        return found

    return _soon(find)


def _words(state: str, name: str | None) -> str:
    # in one line, and nothing that a terminal would take for a command
    return "".join(char for char in " ".join(f"{state} {name or ''}".split()) if char.isprintable())


def complete_card(beginning: str) -> list[Completion]:
    def find() -> list[Completion]:
        from jobs.cards import list_cards

        cards = list_cards(load_settings().home)
        return [(card.name, card.full_name) for card in cards if card.name.startswith(beginning)]

    return _soon(find)


def complete_state(beginning: str) -> list[Completion]:
    return [(state.value, "") for state in JobState if state.is_visible and state.startswith(beginning)]


def _soon(find: Callable[[], list[Completion]]) -> list[Completion]:
    """What `find` finds within a moment; nothing after it, or when it fails: somebody is typing."""
    found: list[Completion] = []

    def run() -> None:
        with suppress(Exception):  # whatever is wrong, the command itself says so
            found.extend(find())

    # a thread, since a name server or a folder of another machine may take its time, and cannot be interrupted
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_MAX_WAIT_S)
    return list(found)
