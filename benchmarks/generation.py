"""A whole job on real vLLM (submit, claim, render, generate, write back) against `LLM.chat` with all prompts at once.

Both engines are loaded once, with the same settings, and idle while the other works; in every other pair ours goes
first. Output lengths are heavy-tailed, 8 to 160 tokens, as they are in life: that is what drains an engine fed chunk
after chunk. `max_tokens` tells them before, and the feed lets the longest go first where it sees a job's end; LLM.chat
takes its prompts as they stand in the file. That is the lead of a whole job, and what pays for the rest of it.

Beside it, to show why: the same through `LLM.chat` chunk after chunk, and `vllm run-batch` on the same file, as a user
has it: its engine in a process of its own (its default), started for this file. Its time is counted with the engine's
load, and without: from the line "Reading batch" of its log until its output is written.
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.row import Row
from benchmarks.sides import ENGINE_ARGS, Ours, RawLlm, raw_environment, raw_llm, weights, worker

_CHUNK_SIZE = 64
_UNIT = "completion tokens/s"


def measure(*, quick: bool) -> list[Row]:
    sizes, num_pairs = ([128], 1) if quick else ([256, 512], 3)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with raw_llm() as raw, worker(folder) as ours:
            for size in sizes:
                rows += _compare(folder, ours, raw, size, num_pairs, by_chunk=not quick)
        if not quick:
            try:
                rows += _run_batch(folder, sizes[0], rows[0])
            except RuntimeError as error:  # a peer's failure loses nothing of what was measured
                print(error, flush=True)
    return rows


def _compare(
    folder: Path, ours: Ours, raw: RawLlm, num_requests: int, num_pairs: int, *, by_chunk: bool
) -> list[Row]:
    values: list[float] = []
    raws: list[float] = []
    chunked: list[float] = []
    warm_up = write_requests(folder / "warm-up.jsonl", 16, seed=0)
    ours.tokens_per_s(warm_up)
    raw.tokens_per_s(warm_up)
    for number in range(num_pairs):
        path = write_requests(folder / f"{num_requests}-{number}.jsonl", num_requests, seed=number + 1)
        if number % 2:
            raws.append(raw.tokens_per_s(path))
        values.append(ours.tokens_per_s(path))
        if not number % 2:
            raws.append(raw.tokens_per_s(path))
        if by_chunk:
            chunked.append(raw.tokens_per_s(path, chunk_size=_CHUNK_SIZE))
    subject = f"generation, {num_requests} requests, vs"
    rows = [Row(f"{subject} LLM.chat", _UNIT, values, raws, reach=1.0)]
    if chunked:
        rows.append(Row(f"{subject} LLM.chat by chunks of {_CHUNK_SIZE}", _UNIT, values, chunked))
    return rows


def write_requests(path: Path, num_requests: int, seed: int) -> Path:
    chance = random.Random(seed)  # noqa: S311  no secret
    with path.open("w") as file:
        for number in range(num_requests):
            line = {
                "messages": [{"role": "user", "content": f"Tell me {seed} things about number {number}."}],
                "max_tokens": min(160, 8 + int(chance.expovariate(1 / 40))),
            }
            file.write(json.dumps(line) + "\n")
    return path


def _run_batch(folder: Path, num_requests: int, measured: Row) -> list[Row]:
    """`vllm run-batch` once on the last pair's file, beside what ours did with that."""
    source = folder / f"{num_requests}-{len(measured.values) - 1}.jsonl"
    batch, output = folder / "batch.jsonl", folder / "batch-out.jsonl"
    with source.open() as file, batch.open("w") as target:
        for number, line in enumerate(file):
            body = {**json.loads(line), "model": weights(), "temperature": 0}
            request = {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            target.write(json.dumps(request) + "\n")
    began_at = time.time()
    reading_at = _run_batch_command(batch, output)
    written_at = output.stat().st_mtime
    answers = [json.loads(line)["response"]["body"] for line in output.read_text().splitlines()]
    num_tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    subject = f"generation, {num_requests} requests, vs vllm run-batch"
    last = measured.values[-1:]
    return [
        Row(f"{subject}, loaded", _UNIT, last, [num_tokens / (written_at - reading_at)]),
        Row(f"{subject}, with its load", _UNIT, last, [num_tokens / (written_at - began_at)]),
    ]


def _run_batch_command(source: Path, target: Path) -> float:
    """When it began to read the batch."""
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in ENGINE_ARGS.items() if value is not True
    ]
    command = [
        sys.executable,
        "-m",
        "benchmarks.vllm_command",
        "run-batch",
        "-i",
        str(source),
        "-o",
        str(target),
    ]
    environment = {**raw_environment(is_in_process=False), "VLLM_LOGGING_LEVEL": "INFO"}
    process = subprocess.Popen(
        [*command, f"--model={weights()}", "--enforce-eager", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    reading_at = 0.0
    tail: list[str] = []
    watch = threading.Timer(600, process.kill)
    watch.start()
    for line in process.stdout or ():
        tail = [*tail[-20:], line]
        if "Reading batch" in line:
            reading_at = time.time()
    watch.cancel()
    if process.wait() != 0 or not reading_at:
        raise RuntimeError(f"vllm run-batch ended with {process.returncode}:\n{''.join(tail)}")
    return reading_at
