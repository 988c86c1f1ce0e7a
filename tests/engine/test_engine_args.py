"""--engine-arg reaches vLLM, past our own choices; what vLLM does not take is refused before anything is loaded."""

from pathlib import Path

import pytest
from samples import read_results
from servers import MakeCli


def test_an_engine_argument_has_the_last_word(make_cli: MakeCli, tmp_path: Path) -> None:
    """The context is too short for one of two requests, and only vLLM itself knows: its card allows more."""
    source = tmp_path / "in.jsonl"
    source.write_text(
        f'{{"prompt": "Say hello.", "max_tokens": 4}}\n{{"prompt": "{"word " * 100}", "max_tokens": 4}}\n'
    )
    output = tmp_path / "out.jsonl"
    cli = make_cli(engine_args='{"max_model_len": 512, "enable_prefix_caching": false}')
    done = cli.run("run", str(source), "-o", str(output), "--engine-arg", "max_model_len=64")
    assert done.returncode == 0, done.stderr
    short, long = read_results(output)
    assert short["status"] == "succeeded"
    assert long["error"]["code"] == "engine_error"
    assert "64" in long["error"]["message"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("max_num_seq=8", "the engine has no argument max_num_seq; did you mean max_num_seqs?"),
        ("max_num_seqs=many", "engine argument max_num_seqs must be a whole number or null"),
        ("gpu_memory_utilization=5", "vLLM refuses its engine arguments: gpu_memory_utilization"),
    ],
)
def test_what_vllm_does_not_take_is_refused_at_once(make_cli: MakeCli, argument: str, words: str) -> None:
    done = make_cli().run("worker", "--restart-engine", "--engine-arg", argument)
    assert done.returncode == 2
    assert words in done.stderr
    assert "starting another" not in done.stderr


def test_run_says_what_was_refused(make_cli: MakeCli, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "Say hello."}\n')
    done = make_cli().run("run", str(source), "--engine-arg", "dtype=float8")
    assert done.returncode == 2
    assert 'engine argument dtype must be "auto" or' in done.stderr
