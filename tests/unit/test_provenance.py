"""What a worker tells of itself."""

import json
import stat
from pathlib import Path

import pytest

from jobs.redaction import show_arguments
from workers import provenance
from workers.provenance import describe_machine, describe_packages, identify_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "more").mkdir()
    return folder


def _fingerprint(folder: Path) -> str:
    return str(identify_weights(str(folder), None)["fingerprint"])


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 101),
        lambda folder: (folder / "model.safetensors").rename(folder / "other.safetensors"),
        lambda folder: (folder / "new.json").write_text(""),
    ],
    ids=["content", "size", "name", "new file"],
)
def test_other_weights_have_another_fingerprint(weights: Path, change: object) -> None:
    before = _fingerprint(weights)
    assert _fingerprint(weights) == before
    change(weights)  # type: ignore[operator]
    assert _fingerprint(weights) != before


def test_of_big_files_samples_count(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another training of the same model has files of the same sizes."""
    for name, value in (("_MAX_HASHED_BYTES", 50), ("_NUM_SAMPLES", 4), ("_SAMPLE_BYTES", 5)):
        monkeypatch.setattr(provenance, name, value)
    before = _fingerprint(weights)
    changed = {}
    for position in (0, 4, 31, 35, 63, 67, 95, 99, 5, 30, 94):
        (weights / "model.safetensors").write_bytes(b"x" * position + b"y" + b"x" * (99 - position))
        changed[position] = _fingerprint(weights) != before
    assert changed == {position: position not in (5, 30, 94) for position in changed}


def test_weights_on_the_hub_are_told_by_their_revision() -> None:
    assert identify_weights("Some/Model", "abc123") == {"source": "Some/Model", "revision": "abc123"}


def test_secrets_are_hidden_and_other_tokens_are_not() -> None:
    shown = show_arguments(
        {
            "hf_token": "hf_secret",
            "max_num_batched_tokens": 4096,
            "speculative_config": {"api_key": "secret", "method": "ngram", "list": [1, (2,)]},
            "odd": {1, 2}.__class__,
        }
    )
    assert "secret" not in json.dumps(shown)
    assert shown["max_num_batched_tokens"] == 4096
    assert shown["speculative_config"] == {"api_key": "***", "method": "ngram", "list": [1, [2]]}


def test_gpus_are_those_that_the_driver_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 550.54'\necho 'Odd, [N/A], 1'\necho broken\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert describe_machine()["gpus"] == [
        {"name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559, "driver": "550.54"},
        {"name": "Odd", "memory_mib": None, "driver": "1"},
    ]


@pytest.mark.parametrize("script", [None, "exit 9"])
def test_without_a_driver_there_are_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_machine()
    assert found["gpus"] == []
    assert found["num_cores"] >= 1
    assert found["memory_gib"] > 0
    assert found["processor"]


def test_packages_that_are_not_installed_are_left_out() -> None:
    found = describe_packages()
    assert {"python", "promptmill"} <= found.keys()
    assert all(found.values())
