"""Which seed each request samples with, and the parameters that it ran with: both follow from the job and the index."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from db.errors import SettingsError
from jobs.generation import Generation, check_defaults, parse_generation
from jobs.schema import RequestSchema

# What torch's generator on the CPU takes in; the n-th completion of a request has its seed + n.
_NUM_SEEDS = 2**32
# vLLM's word for none
_NO_SEED = -1
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class JobSampling:
    """What holds for the requests of one job where they say nothing; `seed` is what theirs are derived from, and
    `is_seed_named` whether that was named, by the job or the card."""

    values: Mapping[str, Any]
    seed: int
    is_seed_named: bool = False

    @classmethod
    def of(cls, job_id: str, card_sampling: Mapping[str, Any], sampling: str | None) -> "JobSampling":
        """`sampling` is the job's own, as JSON text. A job without a seed has one derived from its id: handing in the
        same file twice gives two samples."""
        values = {**card_sampling, **(orjson.loads(sampling) if sampling else {})}
        seed = values.pop("seed", None)
        if seed is None or seed == _NO_SEED:
            return cls(values, _derive(job_id))
        return cls(values, seed, is_seed_named=True)

    def generation(self, schema: RequestSchema, body: Mapping[str, Any], index: int) -> Generation:
        """A checked body as it runs: with its seed, unless it is greedy and has no use for one."""
        generation = parse_generation(schema, body, self.values)
        sampling = generation.sampling
        if sampling.get("seed", _NO_SEED) != _NO_SEED or sampling.get("temperature") == 0:
            return replace(generation, is_repeatable=True)
        sampling = {**sampling, "seed": _derive(f"{self.seed}:{index}")}
        return replace(generation, sampling=sampling, is_repeatable=self.is_seed_named)


def _derive(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % _NUM_SEEDS


def params_of(generation: Generation) -> dict[str, Any]:
    """What `results --with-params` shows: what the request ran with. The rest is the model's own, or vLLM's."""
    return {"max_tokens": generation.max_tokens, **dict(sorted(generation.sampling.items()))}


def job_sampling_text(
    given: Mapping[str, Any], max_total_tokens: int, card_sampling: Mapping[str, Any] = _NOTHING
) -> str | None:
    """Sampling defaults from the command line as a job keeps them, None for none; SettingsError names what is wrong
    with them, also beside the card's."""
    values = {name: value for name, value in given.items() if value is not None}
    if not values:
        return None
    for problem in check_defaults(values):
        raise SettingsError(f"--{problem.path.replace('_', '-')}: {problem.message}")
    for problem in check_defaults({**card_sampling, **values}):
        raise SettingsError(f"--{problem.path}: {problem.message}. The card says one of them: give both here")
    if values.get("max_tokens", 1) >= max_total_tokens:
        limit = f"max_total_tokens ({max_total_tokens:,})"
        raise SettingsError(
            f"--max-tokens {values['max_tokens']:,} leaves no room for a prompt in {limit}; give fewer"
        )
    return json.dumps(values, sort_keys=True)
