"""Requests of two jobs side by side: matched by custom_id or by index, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from db import outcomes
from db.database import Database
from db.outcomes import Outcome

# B's outcomes are looked up in lists of so many custom ids.
_PAGE_IDS = 500


class By(StrEnum):
    CUSTOM_ID = "custom_id"
    INDEX = "index"


@dataclass(frozen=True)
class Pair:
    """The outcomes of what is one request in both jobs; None for a job that has no such outcome."""

    a: Outcome | None
    b: Outcome | None


def choose_by(database: Database, a_id: str, b_id: str) -> By:
    """By custom_id where every request of both jobs has one, else by index."""
    have_ids = all(outcomes.has_custom_ids(database, job_id) for job_id in (a_id, b_id))
    return By.CUSTOM_ID if have_ids else By.INDEX


def iterate_pairs(database: Database, a_id: str, b_id: str, by: By) -> Iterator[Pair]:
    """Each outcome of A once, in A's input order, with B's. By index also those that only B has; by custom_id these
    are not found, only counted by whoever subtracts."""
    if by is By.INDEX:
        return _by_index(database, a_id, b_id)
    return _by_custom_id(database, a_id, b_id)


def _by_index(database: Database, a_id: str, b_id: str) -> Iterator[Pair]:
    of_a = outcomes.iterate_outcomes(database, a_id, with_bodies=True)
    of_b = outcomes.iterate_outcomes(database, b_id, with_bodies=True)
    a, b = next(of_a, None), next(of_b, None)
    while a is not None or b is not None:
        # the one behind goes first, and both together where they are level
        takes_a = a is not None and (b is None or a.index <= b.index)
        takes_b = b is not None and (a is None or b.index <= a.index)
        yield Pair(a if takes_a else None, b if takes_b else None)
        if takes_a:
            a = next(of_a, None)
        if takes_b:
            b = next(of_b, None)


def _by_custom_id(database: Database, a_id: str, b_id: str) -> Iterator[Pair]:
    extent = outcomes.read_extent(database, b_id)
    of_a = outcomes.iterate_outcomes(database, a_id, with_bodies=True)
    while page := list(islice(of_a, _PAGE_IDS)):
        custom_ids = [one.custom_id for one in page if one.custom_id is not None]
        found = outcomes.find_outcomes(database, extent, custom_ids) if custom_ids else {}
        for a in page:
            yield Pair(a, None if a.custom_id is None else found.get(a.custom_id))
