"""Seeds and parameters follow from the job and the index, and from nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from db.errors import SettingsError
from jobs.cards import find_card
from jobs.schema import RequestSchema
from jobs.seeds import JobSampling, job_sampling_text, params_of

SCHEMA = RequestSchema(find_card(Path("no-home"), "hermes-2-pro-mistral-7b").input_schema)


def params(body: dict[str, Any], index: int = 0, job_id: str = "job_a", **given: Any) -> dict[str, Any]:
    sampling = JobSampling.of(job_id, given.pop("card", {}), json.dumps(given) if given else None)
    return params_of(sampling.generation(SCHEMA, {"prompt": "x", **body}, index))


def test_the_request_goes_before_the_job_and_that_before_the_card() -> None:
    card = {"temperature": 0.1, "top_p": 0.2, "top_k": 3}
    found = params({"temperature": 0.9, "seed": 1}, temperature=0.5, top_p=0.6, max_tokens=7, card=card)
    assert found == {"max_tokens": 7, "seed": 1, "temperature": 0.9, "top_k": 3, "top_p": 0.6}
    assert params({"max_tokens": 5, "seed": 1}, max_tokens=7)["max_tokens"] == 5
    assert params({"seed": 1})["max_tokens"] == 256


def test_each_request_that_samples_has_a_seed_of_its_own() -> None:
    seeds = [params({}, index)["seed"] for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert seeds == [params({}, index)["seed"] for index in range(1000)]
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_another_job_has_other_seeds_unless_both_are_given_the_same() -> None:
    assert params({}, job_id="job_b") != params({})
    assert params({}, job_id="job_b", seed=7) == params({}, seed=7)
    assert params({}, seed=8) != params({}, seed=7)
    assert params({}, job_id="job_b", card={"seed": 7}) == params({}, seed=7)


def test_the_seed_that_a_job_shows_repeats_it() -> None:
    shown = JobSampling.of("job_a", {}, None).seed
    assert params({}, 5, job_id="job_b", seed=shown) == params({}, 5)


@pytest.mark.parametrize("seed", [0, 7, -5, 2**63 - 1])
def test_a_request_s_own_seed_stays(seed: int) -> None:
    assert params({"seed": seed}, seed=3)["seed"] == seed


def test_greedy_requests_have_none_and_vllm_s_word_for_none_is_none() -> None:
    assert "seed" not in params({"temperature": 0})
    assert "seed" not in params({}, temperature=0)
    assert "seed" in params({"temperature": 0.5}, temperature=0)
    assert params({"seed": -1}) == params({})
    assert params({}, seed=-1) == params({})


@pytest.mark.parametrize(
    ("body", "given", "expected"),
    [
        ({}, {}, False),
        ({"temperature": 0.7}, {}, False),
        ({"seed": -1}, {}, False),
        ({}, {"seed": -1}, False),
        ({"temperature": 0}, {}, True),
        ({}, {"temperature": 0}, True),
        ({"temperature": 0.7}, {"temperature": 0}, False),
        ({"seed": 7}, {}, True),
        ({"seed": 0}, {}, True),
        ({}, {"seed": 7}, True),
        ({}, {"card": {"seed": 7}}, True),
    ],
)
def test_what_is_greedy_or_has_a_seed_that_somebody_named_can_be_asked_again(
    body: dict[str, Any], given: dict[str, Any], *, expected: bool
) -> None:
    given = dict(given)
    sampling = JobSampling.of("job_a", given.pop("card", {}), json.dumps(given) if given else None)
    assert sampling.generation(SCHEMA, {"prompt": "x", **body}, 0).is_repeatable is expected


def test_what_is_asked_of_the_output_is_shown_as_numbers() -> None:
    found = params({"seed": 1, "n": 3, "logprobs": True, "top_logprobs": 2})
    assert found == {"max_tokens": 256, "logprobs": 2, "n": 3, "seed": 1}


def test_the_job_s_n_holds_for_requests_without_their_own() -> None:
    assert params({"seed": 1}, n=3)["n"] == 3
    assert params({"n": 1, "temperature": 0}, n=3) == {"max_tokens": 256, "n": 1, "temperature": 0}
    assert params({"seed": 1, "n": None}, card={"n": 2})["n"] == 2


def test_a_schema_s_own_defaults_are_the_last() -> None:
    properties = {"prompt": {"type": "string"}, "temperature": {"type": "number", "default": 0.6}}
    schema = RequestSchema({"properties": properties, "required": ["prompt"]})
    sampling = JobSampling.of("job_a", {}, None)
    assert sampling.generation(schema, {"prompt": "x"}, 0).sampling["temperature"] == 0.6
    assert (
        JobSampling({"temperature": 0.2}, 0).generation(schema, {"prompt": "x"}, 0).sampling["temperature"]
        == 0.2
    )


# what the command line gives


def test_nothing_given_is_nothing_kept_and_the_order_does_not_count() -> None:
    assert job_sampling_text({}, 100) is None
    assert job_sampling_text({"temperature": None}, 100) is None
    assert job_sampling_text({"top_p": 0.5, "seed": 1}, 100) == job_sampling_text(
        {"seed": 1, "top_p": 0.5}, 100
    )


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"top_p": 7.0}, "--top-p"),
        ({"max_tokens": 100}, "--max-tokens 100"),
        ({"max_tokens": 0}, "--max-tokens"),
        ({"n": 0}, "--n"),
        ({"n": 129}, "--n"),
        ({"n": 2, "temperature": 0}, "--n: with temperature 0"),
        ({"logprobs": 2}, "--logprobs"),
    ],
)
def test_what_is_out_of_range_is_named_by_its_option(given: dict[str, Any], option: str) -> None:
    with pytest.raises(SettingsError, match=option):
        job_sampling_text(given, 100)


def test_what_the_card_makes_impossible_is_named_too() -> None:
    assert job_sampling_text({"n": 2}, 100, {"temperature": 0.1}) == '{"n": 2}'
    for given, card in (({"n": 2}, {"temperature": 0}), ({"temperature": 0}, {"n": 2})):
        with pytest.raises(
            SettingsError, match=r"--n: with temperature 0 .* The card says one of them: give both"
        ):
            job_sampling_text(given, 100, card)
    both = {"n": 2, "temperature": 0.5}
    assert job_sampling_text(both, 100, {"temperature": 0}) == '{"n": 2, "temperature": 0.5}'
