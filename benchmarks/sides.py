"""What is compared: a worker of ours with jobs for it, and vLLM called directly with the same engine settings."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db import queries
from db.states import JobState, WorkerState
from db.upgrade import open_database
from jobs.cards import find_card
from jobs.progress import wait
from jobs.settings import Settings, load_settings
from jobs.submit import SubmitOptions, submit
from workers.tickets import announce

MODEL = "smollm2-135m-instruct"
_GIB = 1024**3
# As a worker sets them on a CPU for this model's card; the raw side has nobody who does.
ENGINE_ARGS: Mapping[str, Any] = {
    "max_model_len": 2048,
    "max_num_batched_tokens": 4096,
    "max_num_seqs": 64,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2 * _GIB,
}
_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
# as a worker has it on a CPU: on two cores half again as fast as an engine in its own process
_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass(frozen=True)
class Side:
    """What both sides load; `weights` is a folder, the small model's where there is none."""

    model: str = MODEL
    weights: str = ""
    engine_args: Mapping[str, Any] = field(default_factory=lambda: ENGINE_ARGS)
    is_gpu: bool = False


_SMALL = Side()


def weights() -> str:
    """The small model's folder."""
    home = load_settings().home
    return find_card(home, MODEL).weights(home)


def raw_environment(*, is_in_process: bool) -> dict[str, str]:
    return {**os.environ, **_ENVIRONMENT, **(_IN_PROCESS if is_in_process else {})}


class RawLlm:
    """A process of `benchmarks.raw_llm`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        _, is_caching, self.num_blocks = self._answer("ready").split()
        self.is_caching_prefixes = is_caching == "True"

    def tokens_per_s(self, path: Path, *, chunk_size: int | None = None, is_rendered: bool = False) -> float:
        if self._process.stdin is None:
            raise RuntimeError("the raw engine has no input")
        order = {"path": str(path), "chunk_size": chunk_size, "is_rendered": is_rendered}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        took_s, num_tokens = self._answer("").split()
        return int(num_tokens) / float(took_s)

    def _answer(self, first_word: str) -> str:
        """The next line that is an answer: vLLM prints lines of its own."""
        if self._process.stdout is None:
            raise RuntimeError("the raw engine has no output")
        for line in self._process.stdout:
            if line.startswith(first_word) if first_word else line[:1].isdigit():
                return line
        raise RuntimeError("the raw engine ended")


@contextmanager
def raw_llm(side: Side = _SMALL) -> Iterator[RawLlm]:
    """An `LLM`, loaded."""
    arguments = {"model": side.weights or weights(), **side.engine_args}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.raw_llm", json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=raw_environment(is_in_process=not side.is_gpu),
    )
    try:
        yield RawLlm(process)
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Ours:
    """An installation with a worker on it."""

    settings: Settings
    log_path: Path
    started_at: float

    def tokens_per_s(self, path: Path) -> float:
        """A whole job: completion tokens a second from before its submit to its finish."""
        started_at = time.time()
        database = open_database(self.settings.resolved_database_url)
        card = find_card(self.settings.home, self.settings.model)
        job = submit(database, self.settings, card, str(path), SubmitOptions()).job
        announce(self.settings, card.name, job.counts.total)
        # seldom: on two cores a busy poll would take its time from the engine
        job = wait(database, job.id, poll_s=1.0)
        database.close()
        # SQLite's clock is this machine's
        if job.state is not JobState.COMPLETED or job.finished_at is None or job.counts.failed:
            raise RuntimeError(f"the job is {job.state}, {job.counts.failed} requests failed")
        return job.completion_tokens / (job.finished_at - started_at)

    @property
    def ready_at(self) -> float:
        """When the worker said so."""
        date, clock = self.log("promptmill: ready:")[0].split()[:2]
        seconds, _, thousandths = clock.partition(",")
        return time.mktime(time.strptime(f"{date} {seconds}", "%Y-%m-%d %H:%M:%S")) + int(thousandths) / 1000

    def log(self, *words: str) -> list[str]:
        """The worker's lines that hold all these words."""
        return [
            line for line in self.log_path.read_text().splitlines() if all(word in line for word in words)
        ]


def submit_one(settings: Settings) -> str:
    """A job of one request and one token; its id."""
    path = settings.home / "one.jsonl"
    path.write_text('{"prompt": "Say hello.", "max_tokens": 1}\n')
    database = open_database(settings.resolved_database_url)
    job = submit(database, settings, find_card(settings.home, MODEL), str(path), SubmitOptions()).job
    database.close()
    return job.id


@contextmanager
def worker(folder: Path, side: Side = _SMALL, *, has_waiting_job: bool = False) -> Iterator[Ours]:
    """A worker on a home folder of its own, loaded; with `has_waiting_job` a job of one token waits for it. At its
    end it prints what it says of its feed."""
    home = folder / "home"
    (home / "weights").mkdir(parents=True)
    (home / "weights" / side.model).symlink_to(side.weights or weights())
    settings = load_settings(home=home, model=side.model)
    if has_waiting_job:
        submit_one(settings)
    environment = {
        **os.environ,
        "PROMPTMILL_HOME": str(home),
        "PROMPTMILL_MODEL": side.model,
        "PROMPTMILL_ENGINE_ARGS": json.dumps(dict(side.engine_args)),
    }
    ours = Ours(settings, folder / "worker.log", time.time())
    with ours.log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "worker"], env=environment, stdout=log, stderr=log
        )
    database = open_database(ours.settings.resolved_database_url)
    try:
        while not any(one.state is WorkerState.READY for one in queries.list_workers(database)):
            if process.poll() is not None:
                raise RuntimeError(f"the worker did not start:\n{ours.log_path.read_text()}")
            time.sleep(0.2)
        yield ours
    finally:
        process.terminate()
        process.wait()
        database.close()
        for line in ours.log("the engine:"):
            print(f"  {line.partition('promptmill: ')[2]}", flush=True)
