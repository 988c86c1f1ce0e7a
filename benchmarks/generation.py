"""A whole job on real vLLM (submit, claim, render, generate, write back) against `LLM.chat` with all prompts at once.

Both engines are loaded once, with the same settings, and idle while the other works. Output lengths are
heavy-tailed, 8 to 160 tokens, as they are in life: that is what drains an engine fed chunk after chunk.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.row import Row
from db import queries
from db.states import WorkerState
from db.upgrade import open_database
from jobs.cards import find_card
from jobs.progress import wait
from jobs.settings import Settings, load_settings
from jobs.submit import SubmitOptions, submit
from workers.tickets import announce

_MODEL = "smollm2-135m-instruct"
_NUM_SEQS = 64

# The raw side: reads a file's name, generates, prints seconds and completion tokens.
_RAW = """
import json, sys, time
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], max_model_len=2048, max_num_batched_tokens=4096, max_num_seqs=int(sys.argv[2]),
          enforce_eager=True)
print("ready", flush=True)
for name in sys.stdin:
    requests = [json.loads(line) for line in open(name.strip())]
    started = time.perf_counter()
    outputs = llm.chat([r["messages"] for r in requests],
                       [SamplingParams(temperature=0, max_tokens=r["max_tokens"]) for r in requests], use_tqdm=False)
    took = time.perf_counter() - started
    print(took, sum(len(o.outputs[0].token_ids) for o in outputs), flush=True)
"""


def measure(*, quick: bool) -> list[Row]:
    num_requests, num_pairs = (128, 1) if quick else (256, 3)
    values: list[float] = []
    raws: list[float] = []
    settings = load_settings()
    with (
        tempfile.TemporaryDirectory() as folder,
        _raw_engine(settings) as raw,
        _worker(folder, settings) as ours,
    ):
        for number in range(num_pairs + 1):
            path = _write_requests(Path(folder) / f"{number}.jsonl", num_requests, seed=number)
            value, raw_value = _run_job(ours, path), _run_raw(raw, path)
            if number:  # the first pair warms both up
                values.append(value)
                raws.append(raw_value)
    return [Row(f"generation, {num_requests} requests, vs LLM.chat", "completion tokens/s", values, raws)]


def _write_requests(path: Path, num_requests: int, seed: int) -> Path:
    chance = random.Random(seed)  # noqa: S311  no secret
    with path.open("w") as file:
        for number in range(num_requests):
            line = {
                "messages": [{"role": "user", "content": f"Tell me {seed} things about number {number}."}],
                "max_tokens": min(160, 8 + int(chance.expovariate(1 / 40))),
            }
            file.write(json.dumps(line) + "\n")
    return path


@contextmanager
def _raw_engine(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gib),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    weights = find_card(settings.home, _MODEL).weights(settings.home)
    process = subprocess.Popen(
        [sys.executable, "-c", _RAW, weights, str(_NUM_SEQS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        _answer(process, "ready")
        yield process
    finally:
        process.terminate()
        process.wait()


def _answer(process: "subprocess.Popen[str]", wanted: str | None = None) -> str:
    """The next line the raw engine prints that is an answer: vLLM prints lines of its own."""
    if process.stdout is None:
        raise RuntimeError("the raw engine has no output")
    for line in process.stdout:
        if line.strip() == wanted or (wanted is None and line[:1].isdigit()):
            return line
    raise RuntimeError("the raw engine ended")


def _run_raw(process: "subprocess.Popen[str]", path: Path) -> float:
    if process.stdin is None:
        raise RuntimeError("the raw engine has no input")
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    took_s, num_tokens = _answer(process).split()
    return int(num_tokens) / float(took_s)


@contextmanager
def _worker(folder: str, settings: Settings) -> Iterator[Settings]:
    """A worker on a home folder of its own, that borrows the weights."""
    home = Path(folder) / "home"
    (home / "weights").mkdir(parents=True)
    (home / "weights" / _MODEL).symlink_to(find_card(settings.home, _MODEL).weights(settings.home))
    ours = load_settings(home=home, model=_MODEL, engine_num_seqs=_NUM_SEQS)
    environment = {
        **os.environ,
        "PROMPTMILL_HOME": str(home),
        "PROMPTMILL_ENGINE_NUM_SEQS": str(_NUM_SEQS),
        "PROMPTMILL_CPU_KV_CACHE_GIB": str(settings.cpu_kv_cache_gib),
    }
    process = subprocess.Popen([sys.executable, "-m", "cli", "worker", "--model", _MODEL], env=environment)
    database = open_database(ours.resolved_database_url)
    try:
        while not any(worker.state is WorkerState.READY for worker in queries.list_workers(database)):
            if process.poll() is not None:
                raise RuntimeError("the worker did not start")
            time.sleep(0.2)
        yield ours
    finally:
        process.terminate()
        process.wait()
        database.close()


def _run_job(settings: Settings, path: Path) -> float:
    """Completion tokens a second from before the submit to the finish. SQLite's clock is this machine's."""
    database = open_database(settings.resolved_database_url)
    card = find_card(settings.home, _MODEL)
    started_at = time.time()
    job = submit(database, settings, card, str(path), SubmitOptions()).job
    announce(settings, card.name, job.counts.total)
    # seldom: on two cores a busy poll would take its time from the engine
    job = wait(database, job.id, poll_s=1.0)
    database.close()
    if job.finished_at is None:
        raise RuntimeError("the job is not over")
    return job.completion_tokens / (job.finished_at - started_at)
