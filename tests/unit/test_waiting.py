"""The order in which requests go in: by priority, kin after kin, else as they came; and none waits for ever."""

import random
from collections.abc import Sequence

import pytest

from jobs.rendering import Rendered
from workers.engine import EngineRequest
from workers.waiting import Entry, Waiting


def entry(key: int, token_ids: Sequence[int] = (), *, max_tokens: int = 5, priority: int = 0) -> Entry:
    prompt = Rendered("", list(token_ids) or [key])
    return Entry.of(EngineRequest(key, prompt, max_tokens, False, {}), lambda _: None, priority)


def kin(key: int, family: int, own: int | None = None, size: int = 128, *, max_tokens: int = 5) -> Entry:
    """One of a family whose prompts begin with the same 128 tokens."""
    return entry(key, [family] * size + [key if own is None else own], max_tokens=max_tokens)


def waiting(*entries: Entry) -> Waiting:
    made = Waiting()
    made.add(entries)
    return made


def keys(entries: Sequence[Entry]) -> list[int]:
    return [one.request.key for one in entries]


def take_all(line: Waiting) -> list[int]:
    return keys(line.take(len(line)))


def test_without_kin_they_go_as_they_came() -> None:
    numbers = list(range(200))
    random.Random(1).shuffle(numbers)  # noqa: S311  no secret
    assert take_all(waiting(*map(entry, numbers))) == numbers


def test_kin_go_one_after_the_other_and_families_as_they_came() -> None:
    line = waiting(kin(0, 9), kin(1, 3), kin(2, 9), kin(3, 5), kin(4, 3), kin(5, 9))
    assert take_all(line) == [0, 2, 5, 1, 4, 3]


def test_within_a_family_those_that_have_more_in_common_are_neighbours() -> None:
    line = waiting(*(kin(key, family=1, own=key % 3) for key in range(9)))
    order = [key % 3 for key in take_all(line)]
    assert order == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_no_more_go_in_than_are_to_be_computed() -> None:
    """Of a family the first has all of its prompt computed, the others what they do not share."""
    entries = [kin(key, family=key // 3, size=300) for key in range(9)]
    line = waiting(*entries)
    assert keys(line.take(9, num_new_tokens=301)) == [0]
    inside = entries[:1]
    assert keys(line.take(9, inside, num_new_tokens=90)) == [1, 2], (
        "two blocks of three are shared: 45 are new"
    )
    assert keys(line.take(9, inside, num_new_tokens=302)) == [3, 4]
    assert keys(line.take(9)) == [5, 6, 7, 8]
    alone = waiting(entry(0, range(400)))
    assert keys(alone.take(9, num_new_tokens=1)) == [0], "one always goes"


def test_a_short_common_beginning_makes_no_kin() -> None:
    """A chat template's own is in every prompt, and is always in the cache."""
    line = waiting(*(kin(key, family=key % 2, size=100) for key in range(6)))
    assert not line.is_kindred
    assert take_all(line) == list(range(6))


def test_kin_that_come_later_join_their_family() -> None:
    line = waiting(kin(0, 1), kin(1, 2), kin(2, 1))
    assert keys(line.take(1)) == [0]
    line.add([kin(3, 2), kin(4, 1)])
    assert take_all(line) == [2, 4, 1, 3]


def test_the_family_that_went_last_is_remembered_between_two_refills() -> None:
    line = waiting(*(kin(key, family=key % 2) for key in range(10)))
    order = [key for _ in range(5) for key in keys(line.take(2))]
    assert order == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]


def test_the_turn_of_a_family_ends_with_its_last_wherever_it_began() -> None:
    line = waiting(kin(0, 1, own=50), kin(1, 2), *(kin(key, 1, own=key) for key in range(40, 60)))
    order = take_all(line)
    assert order[-1] == 1
    assert sorted(order[:-1]) == [0, *range(40, 60)]


def test_a_family_of_which_some_are_inside_goes_before_one_that_has_to_be_computed() -> None:
    entries = [kin(0, 1), kin(1, 2), kin(2, 3), entry(3), kin(4, 2), kin(5, 1), kin(6, 3)]
    line = waiting(*entries[:3])
    assert keys(line.take(2)) == [0, 1]
    line.add(entries[3:])
    assert keys(line.take(2, entries[:2])) == [4, 5]
    assert take_all(line) == [2, 6, 3]


def test_a_long_one_does_not_leave_a_cached_beginning_unused() -> None:
    entries = [kin(key, family=key % 2) for key in range(6)]
    line = waiting(*entries)
    assert keys(line.take(1)) == [0]
    line.add([kin(10, family=7, max_tokens=90), kin(11, family=0, max_tokens=80), entry(12, max_tokens=70)])
    assert keys(line.take(9, entries[:1], last_steps=50.0)) == [2, 4, 11, 10, 12, 1, 3, 5]


def test_a_higher_priority_goes_before_kin_and_age() -> None:
    line = waiting(kin(0, 1), entry(1), kin(2, 1))
    assert keys(line.take(1)) == [0]
    line.add([entry(10, priority=3), entry(11, priority=-1), entry(12, priority=3)])
    assert take_all(line) == [10, 12, 2, 1, 11]


def test_none_is_passed_over_more_often_than_patience_allows() -> None:
    """A family that never ends would keep everybody else out."""
    line = Waiting()
    line.patience = 20
    line.add([kin(0, 1), entry(1), kin(2, 1)])
    taken = []
    for number in range(100):
        line.add([kin(10 + number, family=1)])
        taken += keys(line.take(1))
    assert taken.index(1) == 22


@pytest.mark.parametrize("seed", range(20))
def test_each_is_taken_once_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  no secret
    line = Waiting()
    line.patience = 50
    added, gone = set(), []
    for key in range(500):
        line.add(
            [kin(key, chance.randrange(4), chance.randrange(9)) if key % 3 else entry(key, priority=key % 2)]
        )
        added.add(key)
        if chance.random() < 0.1:
            dropped = chance.randrange(key + 1)
            if dropped not in gone:
                line.discard(dropped)
                gone.append(dropped)
        if chance.random() < 0.3:
            gone += keys(line.take(chance.randrange(6), last_steps=chance.choice([None, 5.0])))
        assert len(line) == len(added) - len(gone)
    gone += take_all(line)
    assert sorted(gone) == sorted(added)
    assert line.num_tokens == 0
    assert not line.is_kindred


def test_what_would_run_on_alone_goes_first_at_the_end() -> None:
    line = waiting(
        entry(0),
        entry(1, max_tokens=50),
        entry(2, max_tokens=9),
        entry(3, max_tokens=70),
        entry(4, max_tokens=7),
    )
    assert line.num_tokens == 141
    assert keys(line.take(3, last_steps=10.0)) == [3, 1, 0]
    assert take_all(line) == [2, 4]


def test_of_equally_long_ones_the_order_decides() -> None:
    line = waiting(*(kin(key, family=key % 2) for key in range(6)))
    assert keys(line.take(6, last_steps=0.0)) == [0, 2, 4, 1, 3, 5]


def test_it_is_kindred_when_most_have_kin_that_waits() -> None:
    line = waiting(kin(0, 1), kin(1, 2), entry(2))
    assert not line.is_kindred
    line.add([kin(3, 1)])
    assert not line.is_kindred, "two of four"
    line.add([kin(4, 1)])
    assert line.is_kindred
    line.discard(0)
    assert not line.is_kindred


def test_twins_are_told_apart() -> None:
    twins = [entry(key, [7, 7]) for key in range(4)]
    line = waiting(*twins)
    line.discard(2)
    line.discard(2)
    assert take_all(line) == [0, 1, 3]
