"""The tutorials on the real engine, with the small model."""

import os
from pathlib import Path

import pytest
from page_shell import checkout, environment_of, run_page
from pages import steps

_DOCS = Path(__file__).parents[2] / "docs"


# an engine is loaded up to three times, which takes minutes where others compute too
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("use", ["datasets", "evaluations", "shell"])
def test_every_command_of_the_tutorial_does_what_the_page_says(
    use: str, weights: Path, tmp_path: Path
) -> None:
    folder = checkout(tmp_path, weights.parent)
    environment = environment_of(folder, os.environ, cpu_kv_cache_gib=1)
    page = steps((_DOCS / f"tutorial-{use}.md").read_text("utf-8"))
    faults = [outcome.fault for outcome in run_page(page, folder, environment, timeout_s=600)]
    assert not [fault for fault in faults if fault], "\n\n".join(fault for fault in faults if fault)
