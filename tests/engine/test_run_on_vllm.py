"""The main job on the real engine: the same answers as vLLM called directly, and a crash that repeats nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from samples import read_results
from servers import MakeCli, wait_until
from soundness import assert_job_is_sound
from sqlalchemy import func, select

from db.database import Database
from db.tables import results

_REPOSITORY = Path(__file__).parents[2]
_NUM_REQUESTS = 64

# Called directly, in a process of its own: the same model and settings, all at once, and once more in reverse
# order, which batches other requests together and so shows how far the engine repeats itself.
_DIRECT = """
import json, sys
from vllm import LLM, SamplingParams
model, source, target = sys.argv[1:]
requests = [json.loads(line) for line in open(source)]
llm = LLM(model, max_model_len=2048, max_num_batched_tokens=4096, max_num_seqs=64, enforce_eager=True)
def answers(requests):
    chats = [r for r in requests if not r.get("raw")]
    raws = [r for r in requests if r.get("raw")]
    def params(chosen):
        return [SamplingParams(temperature=0, max_tokens=r["max_tokens"]) for r in chosen]
    messages = [r.get("messages") or [{"role": "user", "content": r["prompt"]}] for r in chats]
    said = llm.chat(messages, params(chats), use_tqdm=False)
    said += llm.generate([r["prompt"] for r in raws], params(raws), use_tqdm=False)
    return {r["custom_id"]: output.outputs[0].text for r, output in zip(chats + raws, said)}
json.dump([answers(requests), answers(requests[::-1])], open(target, "w"))
"""


def _write_requests(path: Path, num_requests: int, max_tokens: int) -> Path:
    topics = ["rivers", "bread", "the moon", "chess", "bees", "Rome", "sleep", "tea"]
    with path.open("w") as file:
        for number in range(num_requests):
            text = f"Write {1 + number % 3} sentences about {topics[number % 8]} for reader {number}."
            line: dict[str, object] = {"custom_id": f"r{number}", "max_tokens": 8 + number * 7 % max_tokens}
            if number % 3 == 0:
                line["prompt"] = text
            elif number % 3 == 1:
                line["prompt"], line["raw"] = f"Notes: {text}\nAnswer:", True
            else:
                line["messages"] = [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": text},
                ]
            file.write(json.dumps({**line, "temperature": 0}) + "\n")
    return path


def test_greedy_answers_are_those_of_vllm_called_directly(
    make_cli: MakeCli, weights: Path, tmp_path: Path
) -> None:
    source = _write_requests(tmp_path / "in.jsonl", _NUM_REQUESTS, 40)
    cli = make_cli()
    done = cli.run("run", str(source), "-o", str(tmp_path / "out.jsonl"))
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(cli.run("list", "--json").stdout)
    (worker,) = json.loads(cli.run("manifest", job["id"]).stdout)["workers"]
    assert worker["engine"]["name"] == "vllm"
    assert worker["engine"]["arguments"]["max_model_len"] == 2048
    assert worker["engine"]["weights"]["fingerprint"].startswith("sha256:")
    ours = {line["custom_id"]: line["result"]["response"] for line in read_results(tmp_path / "out.jsonl")}
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run(
        [sys.executable, "-c", _DIRECT, str(weights), str(source), str(tmp_path / "direct.json")],
        env=environment,
        check=True,
        timeout=240,
    )
    direct, reversed_ = json.loads((tmp_path / "direct.json").read_text())
    own_share = sum(direct[key] == reversed_[key] for key in direct) / _NUM_REQUESTS
    share = max(sum(ours[key] == other[key] for key in ours) for other in (direct, reversed_)) / _NUM_REQUESTS
    print(
        f"agreement with LLM.chat/generate {share:.3f}, of LLM with itself in another order {own_share:.3f}"
    )
    assert ours.keys() == direct.keys()
    # In bfloat16 a batch of another make-up may round otherwise; more may not differ than by that.
    assert share >= own_share - 2 / _NUM_REQUESTS


def test_a_killed_run_goes_on_without_repeating(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    source = _write_requests(tmp_path / "in.jsonl", 200, 120)
    output = tmp_path / "out.jsonl"
    cli = make_cli(chunk_num_requests=16, lease_s=6, heartbeat_s=1, flush_s=0.5)
    killed = cli.start("run", str(source), "-o", str(output))
    path = home / "promptmill.db"
    wait_until(lambda: path.exists() and Database(f"sqlite:///{path}").revision(), "the database is there")
    database = Database(f"sqlite:///{path}")

    def num_results() -> int:
        with database.read() as tx:
            return tx.execute(select(func.count()).select_from(results)).scalar_one()

    wait_until(lambda: num_results() >= 20, "twenty results", 120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = num_results()
    assert before < 200
    again = cli.run("run", str(source), "-o", str(output), timeout_s=240)
    assert again.returncode == 0, again.stderr
    job_id = json.loads(cli.run("list", "--json").stdout)[0]["id"]
    assert_job_is_sound(database, job_id)
    assert len(read_results(output)) == 200
    with database.read() as tx:
        attempts = dict(
            tx.execute(select(results.c.attempt, func.count()).group_by(results.c.attempt)).tuples().all()
        )
    assert attempts[1] >= before, "what was written before the kill was not written again"
    database.close()
