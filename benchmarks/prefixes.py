"""Requests over a few long system prompts, shuffled in the file, against the same file sorted, through `LLM.chat`.

The KV cache holds little more than the prompts that run at once: 128 blocks, and the 32 system prompts alone are as
many. So order decides how often each is computed: the shuffled file through `LLM.chat`, measured once, shows what it
is worth. Prefix caching is on in both engines, or this fails. Every pair has other prompts, so that no cache is warm.
Answers are 8 to 64 tokens long, most of them short.
"""

import json
import random
import tempfile
from pathlib import Path

from benchmarks.row import Row
from benchmarks.sides import ENGINE_ARGS, Side, raw_llm, worker

_NUM_PROMPTS = 32
# entries of a system prompt: 550 tokens, four blocks of the cache and a little
_NUM_ENTRIES = 66
_NUM_BLOCKS = 128
# 30 layers, 3 heads for keys and for values, of 64 numbers of 2 bytes each; 128 tokens
_BLOCK_BYTES = 30 * 2 * 3 * 64 * 2 * 128
_SIDE = Side(engine_args={**ENGINE_ARGS, "kv_cache_memory_bytes": _NUM_BLOCKS * _BLOCK_BYTES})
_UNIT = "completion tokens/s"


def measure(*, quick: bool) -> list[Row]:
    num_requests, num_pairs = (128, 1) if quick else (512, 5)
    values: list[float] = []
    raws: list[float] = []
    shuffled: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with raw_llm(_SIDE) as raw, worker(folder, _SIDE) as ours:
            if not raw.is_caching_prefixes or not ours.log("KV cache", "prefix caching on"):
                raise RuntimeError("prefix caching is off")
            warm_up, _ = write_requests(folder / "warm-up.jsonl", 16, seed=0)
            ours.tokens_per_s(warm_up)
            raw.tokens_per_s(warm_up)
            for number in range(num_pairs):
                path, in_order = write_requests(folder / f"{number}.jsonl", num_requests, seed=number + 1)
                if number % 2:
                    raws.append(raw.tokens_per_s(in_order))
                values.append(ours.tokens_per_s(path))
                if not number % 2:
                    raws.append(raw.tokens_per_s(in_order))
                if not shuffled:
                    shuffled.append(raw.tokens_per_s(path))
    subject = f"{num_requests} requests over {_NUM_PROMPTS} prompts, vs"
    return [
        Row(f"{subject} sorted LLM.chat", _UNIT, values, raws, reach=1.0),
        Row(f"{subject} shuffled LLM.chat", _UNIT, values[:1], shuffled),
    ]


def write_requests(path: Path, num_requests: int, seed: int) -> tuple[Path, Path]:
    """The file, and the same sorted by its system prompts."""
    chance = random.Random(seed)  # noqa: S311  no secret
    words = ["river", "stone", "bread", "window", "garden", "letter", "music", "winter", "forest"]
    prompts = [
        f"You know catalogue {seed}-{prompt}. "
        + " ".join(f"{chance.randrange(1000, 9999)} is {chance.choice(words)}." for _ in range(_NUM_ENTRIES))
        for prompt in range(_NUM_PROMPTS)
    ]
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "system", "content": prompts[number % _NUM_PROMPTS]},
                    {"role": "user", "content": f"What is entry {chance.randrange(1000, 9999)}?"},
                ],
                "max_tokens": min(64, 8 + int(chance.expovariate(1 / 12))),
            }
        )
        for number in range(num_requests)
    ]
    in_order = path.with_suffix(".sorted")
    in_order.write_text("\n".join(sorted(lines)) + "\n")
    chance.shuffle(lines)
    path.write_text("\n".join(lines) + "\n")
    return path, in_order
