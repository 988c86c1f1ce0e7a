"""Reading lines: plain or compressed, from a file or stdin, in bounded memory, and damage named by file and line."""

import gzip
import hashlib
import io
import os
import sys
import threading
import tracemalloc
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from db.errors import InputError
from jobs.reader import InputFile, hash_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT = 1_000
TEXT = b'{"a":1}\n{"b":2}\n{"c":3}\n'
LINES = [(1, b'{"a":1}'), (2, b'{"b":2}'), (3, b'{"c":3}')]
MANY = b"".join(b'{"number":%d}\n' % number for number in range(20_000))
# a frame without data, as pzstd puts one before the others
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


def read(path: str | Path, limit: int = LIMIT) -> list[tuple[int, bytes | None]]:
    with InputFile(str(path)) as source:
        return list(chain.from_iterable(source.blocks(limit)))


def put(folder: Path, content: bytes, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


class Stdin:
    """Stands in for `sys.stdin`, of which only the bytes are read."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


# where the lines come from


ENCODED = {
    "plain": TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip in members": gzip.compress(TEXT[:8]) + gzip.compress(TEXT[8:12]) + gzip.compress(TEXT[12:]),
    "gzip padded with zeros": gzip.compress(TEXT) + b"\0" * 512,
    "zstd": zstd.compress(TEXT),
    "zstd in frames": zstd.compress(TEXT[:8]) + zstd.compress(TEXT[8:12]) + zstd.compress(TEXT[12:]),
    "zstd with a frame to skip first": SKIPPABLE + zstd.compress(TEXT),
    "zstd with a frame to skip last": zstd.compress(TEXT) + SKIPPABLE,
}


@pytest.mark.parametrize("how", ENCODED)
@pytest.mark.parametrize("name", ["in.jsonl", "in.gz", "in.zst", "in"])
def test_a_file_is_read_by_its_first_bytes_whatever_its_name(tmp_path: Path, how: str, name: str) -> None:
    assert read(put(tmp_path, ENCODED[how], name)) == LINES


@pytest.mark.parametrize("how", ENCODED)
def test_stdin_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(ENCODED[how]))
    assert read("-") == LINES


def test_stdin_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = Stdin(TEXT)
    monkeypatch.setattr(sys, "stdin", stdin)
    with InputFile("-") as source:
        assert source.name == "stdin"
        list(source.blocks(LIMIT))
    assert not stdin.buffer.closed


def test_a_process_without_stdin_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="there is no stdin"):
        InputFile("-")


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(gzip.compress(TEXT)), daemon=True)
    writer.start()
    assert read(pipe) == LINES
    writer.join(30)


@pytest.mark.parametrize("how", ENCODED)
def test_the_sha256_is_that_of_the_file_s_own_bytes(tmp_path: Path, how: str) -> None:
    path = put(tmp_path, ENCODED[how])
    with InputFile(str(path)) as source:
        list(source.blocks(LIMIT))
        assert source.sha256 == hashlib.sha256(ENCODED[how]).hexdigest() == hash_file(str(path))


def test_only_a_file_can_be_hashed_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", str(tmp_path), str(tmp_path / "none"), str(tmp_path / "pipe")):
        assert hash_file(path) is None


# lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", []),
        (b" \t\r\n\n", []),
        (b"a", [(1, b"a")]),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a"), (2, b"b")]),
        (b"\n\na\n\n\nb\n\n", [(3, b"a"), (6, b"b")]),
        (b"  a \t\n", [(1, b"a")]),
        (b"\xef\xbb\xbfa\nb\n", [(1, b"a"), (2, b"b")]),
        (b"\xef\xbb\xbf\na\n", [(2, b"a")]),
        (b"\xef\xbb\xbf", []),
        (b"a\n\xef\xbb\xbfb\n", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),
        (b"a\rb\n", [(1, b"a\rb")]),
        (b"a\x0b\x0c\x00b\n", [(1, b"a\x0b\x0c\x00b")]),
        (b"\xe2\x80\xa8a\n", [(1, b"\xe2\x80\xa8a")]),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
def test_lines_end_at_a_newline_and_keep_their_numbers(
    tmp_path: Path, compress: Any, content: bytes, lines: list[tuple[int, bytes]]
) -> None:
    assert read(put(tmp_path, compress(content))) == lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"x" * 1_000 + b"\nb", [(1, b"x" * 1_000), (2, b"b")]),
        (b"x" * 1_000, [(1, b"x" * 1_000)]),
        (b"x" * 1_001 + b"\nb", [(1, None), (2, b"b")]),
        (b"x" * 1_001, [(1, None)]),
        (b"a\n" + b"x" * 50_000 + b"\nb\n", [(1, b"a"), (2, None), (3, b"b")]),
        (b"x" * 5_000 + b"\n" + b"y" * 5_000 + b"\n", [(1, None), (2, None)]),
        (b"\xef\xbb\xbf" + b"x" * 1_000 + b"\nb", [(1, b"x" * 1_000), (2, b"b")]),
        (b"\xef\xbb\xbf" + b"x" * 1_001 + b"\nb", [(1, None), (2, b"b")]),
        (b"\xef\xbb\xbf" + b"x" * 5_000 + b"\nb", [(1, None), (2, b"b")]),
        (b"\xef\xbb\xbf" + b"x" * 5_000, [(1, None)]),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
def test_a_line_too_long_is_skipped_and_keeps_its_number(
    tmp_path: Path, compress: Any, content: bytes, lines: list[tuple[int, bytes | None]]
) -> None:
    assert read(put(tmp_path, compress(content))) == lines


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, compress: Any) -> None:
    path = put(tmp_path, compress(b"x" * 64 * 1024 * 1024 + b"\n" + TEXT))
    tracemalloc.start()
    try:
        with InputFile(str(path)) as source:
            lines = [data is None for block in source.blocks(1024 * 1024) for _, data in block]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == [True, False, False, False]
    assert peak < 16 * 1024 * 1024


# what cannot be read


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (gzip.compress(TEXT)[:-3], 3),
        (gzip.compress(TEXT) + b"garbage", 3),
        (gzip.compress(TEXT)[:-8] + b"\0\0\0\0" + gzip.compress(TEXT)[-4:], 3),
        (b"\x1f\x8b", 0),
        (b"\x1f\x8bgarbage and more of it", 0),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00garbage and more of it", 0),
        (zstd.compress(TEXT)[:-1], 2),
        (zstd.compress(TEXT) + b"garbage", 3),
        (zstd.compress(TEXT) + zstd.compress(TEXT)[:-1], 5),
        (b"\x28\xb5\x2f\xfd", 0),
        (b"\x28\xb5\x2f\xfdgarbage and more of it", 0),
    ],
    ids=range(11),
)
def test_damaged_data_is_an_error_that_names_file_and_line(tmp_path: Path, content: bytes, line: int) -> None:
    path = put(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert f"damaged or cut off after line {line};" in str(caught.value)


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_the_lines_before_the_damage_are_read(tmp_path: Path, compress: Any) -> None:
    compressed = compress(MANY)
    path = put(tmp_path, compressed[: len(compressed) * 3 // 4])
    numbers: list[int] = []
    with pytest.raises(InputError) as caught, InputFile(str(path)) as source:
        numbers.extend(number for block in source.blocks(LIMIT) for number, _ in block)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 1_000
    assert f"after line {len(numbers)};" in str(caught.value)


def test_a_file_that_fails_in_the_middle_is_an_error_that_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(size)

    path = put(tmp_path, TEXT)
    monkeypatch.setattr(Path, "open", lambda *_: Failing(TEXT))
    with pytest.raises(InputError, match=r"in\.jsonl: cannot read on after line 3: Input/output error"):
        read(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.jsonl", "cannot read .*: No such file"), ("x" * 300, "File name too long"), (".", "is a folder")],
)
def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        InputFile(str(tmp_path / name))


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"cannot read .*: Too many levels of symbolic links"):
        InputFile(str(tmp_path / "loop"))


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, TEXT)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        InputFile(str(path))
