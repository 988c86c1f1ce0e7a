"""Which requests a selection takes: what it says and no more, the same each time, whatever blocks they come in."""

import itertools
import json
import random
import tracemalloc
from statistics import fmean

import pytest

from db.errors import SettingsError
from jobs.selection import Counter, Picker, Selection, describe_selection, selection_of


def taken(selection: Selection, num_requests: int, block_sizes: list[int] | None = None) -> list[int]:
    """Places from 0, of requests that come in blocks of these sizes in turn."""
    picker = Picker(selection, num_requests)
    found: list[int] = []
    first = 0
    for size in itertools.cycle(block_sizes or [num_requests]):
        block = range(first, min(first + size, num_requests))
        found += picker.take(block)
        first += len(block)
        if first == num_requests:
            break
    assert (picker.num_seen, picker.num_taken) == (num_requests, len(found))
    return found


def test_nothing_said_takes_everything() -> None:
    assert selection_of().text is None
    assert taken(selection_of(), 5) == [0, 1, 2, 3, 4]


def test_a_shard_is_every_nth_request() -> None:
    assert taken(selection_of(shard="1/3"), 8) == [0, 3, 6]
    assert taken(selection_of(shard="3/3"), 8) == [2, 5]
    assert taken(selection_of(shard="1/1"), 3) == [0, 1, 2]
    assert taken(selection_of(shard="5/9"), 4) == []


def test_shards_are_without_overlap_and_leave_nothing_out() -> None:
    shards = [taken(selection_of(shard=f"{number}/7"), 100) for number in range(1, 8)]
    assert sorted(place for shard in shards for place in shard) == list(range(100))


def test_a_limit_takes_the_first_ones() -> None:
    assert taken(selection_of(limit=3), 8) == [0, 1, 2]
    assert taken(selection_of(limit=9), 3) == [0, 1, 2]


def test_a_number_is_exact_in_order_and_the_same_each_time() -> None:
    for num_requests in (1, 10, 11, 500):
        for num_sampled in (1, 9, 10, 11):
            selection = selection_of(sample=str(num_sampled))
            found = taken(selection, num_requests)
            assert len(found) == min(num_sampled, num_requests)
            assert found == sorted(set(found)) == taken(selection, num_requests)


def test_a_share_is_about_so_many() -> None:
    num_taken = [len(taken(selection_of(sample="5%", seed=seed), 10_000)) for seed in range(20)]
    assert 480 < fmean(num_taken) < 520
    assert min(num_taken) > 400
    assert max(num_taken) < 600
    assert taken(selection_of(sample="100%"), 50) == list(range(50))


def test_each_request_is_as_likely_to_be_taken() -> None:
    """By place: of 2,000 samples of 5 in 20 each place is in about 500, with a deviation of 19."""
    hits = [0] * 20
    for seed in range(2_000):
        for place in taken(selection_of(sample="5", seed=seed), 20):
            hits[place] += 1
    assert min(hits) > 400
    assert max(hits) < 600


def test_another_seed_draws_another_sample_and_none_is_0() -> None:
    samples = {seed: taken(selection_of(sample="10", seed=seed), 1_000) for seed in (0, 1, -1, 2)}
    assert len({tuple(sample) for sample in samples.values()}) == 4
    assert taken(selection_of(sample="10"), 1_000) == samples[0]


def test_a_sample_is_the_same_in_every_release() -> None:
    """What is documented: a job from last year is resumed, and drawn again, by the same command."""
    assert taken(selection_of(sample="5"), 100) == [0, 5, 12, 52, 55]
    assert taken(selection_of(sample="4%", seed=7), 100) == [26, 28, 29, 58, 62, 71]


def test_a_larger_sample_holds_the_smaller_one() -> None:
    small, large = (set(taken(selection_of(sample=text), 1_000)) for text in ("50", "200"))
    assert small < large
    assert set(taken(selection_of(sample="2%"), 1_000)) < set(taken(selection_of(sample="20%"), 1_000))


def test_the_shards_shares_are_together_the_inputs() -> None:
    whole = taken(selection_of(sample="30%"), 100)
    parts = [taken(selection_of(shard=f"{number}/3", sample="30%"), 100) for number in (1, 2, 3)]
    assert sorted(place for part in parts for place in part) == whole


def test_first_the_shard_then_the_sample_then_the_limit() -> None:
    shard = taken(selection_of(shard="2/3"), 300)
    sample = taken(selection_of(shard="2/3", sample="20"), 300)
    assert len(sample) == 20
    assert set(sample) < set(shard)
    assert taken(selection_of(shard="2/3", sample="20", limit=5), 300) == sample[:5]
    assert taken(selection_of(shard="2/3", limit=5), 300) == shard[:5]


@pytest.mark.parametrize("seed", range(20))
def test_blocks_make_no_difference(seed: int) -> None:
    numbers = random.Random(seed)  # noqa: S311  no secret
    selection = selection_of(
        numbers.choice([None, "2/5", "3/4"]),
        numbers.choice([None, "17", "40%"]),
        numbers.choice([None, 9]),
        seed,
    )
    sizes = [numbers.choice([0, 1, 2, 3, 50]) for _ in range(6)] + [1]
    assert taken(selection, 200, sizes) == taken(selection, 200)


def test_it_is_known_when_the_rest_need_not_be_read() -> None:
    picker = Picker(selection_of(limit=2))
    assert [picker.is_done, picker.take([1]), picker.is_done, picker.take([2, 3]), picker.is_done] == [
        *(False, [1]),
        *(False, [2]),
        True,
    ]
    assert not Picker(selection_of(shard="1/2")).is_done


def test_a_sample_of_a_million_needs_no_memory_for_the_million() -> None:
    tracemalloc.start()
    picker = Picker(selection_of(sample="1000"), 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
    assert not picker.is_done


def test_a_counter_takes_nothing() -> None:
    counter = Counter()
    assert counter.take("abc") == counter.take([]) == counter.take(range(4)) == []
    assert counter.num_seen == 7


# how it is said and kept


def test_what_is_kept_says_all_that_counts() -> None:
    selection = selection_of("1/2", "2.50%", 7, 3)
    assert selection.text == '{"shard": "1/2", "sample": "2.5%", "seed": 3, "limit": 7}'
    assert describe_selection(selection.text) == "shard 1/2, sample 2.5%, seed 3, limit 7"
    assert json.loads(selection_of(sample="10").text or "") == {"sample": 10, "seed": 0}
    assert selection_of(limit=7, seed=3).text == '{"limit": 7}', "without a sample no seed counts"


def test_different_shares_are_kept_apart() -> None:
    texts = {
        selection_of(sample=text).text for text in ("33.333333%", "33.333334%", "0.000001%", "100%", "100")
    }
    assert len(texts) == 5


@pytest.mark.parametrize(
    "shard", ["", "0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2", " 1/2", "1/2\n", "²/3"]
)
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(SettingsError, match=r"(?s)--shard .*: give i/n, like 1/4 for the first of four"):
        selection_of(shard=shard)


@pytest.mark.parametrize(
    "sample", ["", "0", "-1", "1.5", "0%", "0.0%", "101%", "100.1%", "5 %", "%", "nan%", "1e3", "٣"]
)
def test_a_sample_that_is_none_is_refused(sample: str) -> None:
    with pytest.raises(SettingsError, match=r"--sample .*: give a number of requests, like 500, or a share"):
        selection_of(sample=sample)
