"""What a custom_id may be, and whether it stood in an earlier line."""

import sqlite3
from collections.abc import Iterable

# A custom_id is indexed, and an index entry of Postgres holds at most 2,704 bytes.
MAX_CUSTOM_ID_CHARS = 512
# Eight bits each: of ten million ids one in thirty finds the bit of another set.
_LAST_PLACE = 16 * 1024 * 1024 - 1
# Custom ids in memory: what each takes beside its characters, and all of them.
_BYTES_PER_ID = 160
_MAX_LATEST_BYTES = 16 * 1024 * 1024
_IDS_A_STATEMENT = 500


class CustomIds:
    """Which custom_id stood in which line, in bounded memory however many there are.

    The latest are in a dict, all others in a temporary SQLite file. In front of both stands a table of bits: an id
    whose bit is not set is new for sure, so that hardly any look-up is for nothing.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_LAST_PLACE + 1)
        self._latest: dict[str, int] = {}
        self._free_bytes = _MAX_LATEST_BYTES
        self._file: sqlite3.Connection | None = None

    def find_duplicates(self, lines: Iterable[tuple[str | None, int]]) -> dict[int, int]:
        """For each line that has the custom_id of an earlier one: the line where it stood first."""
        duplicates = {}
        bits, latest = self._bits, self._latest
        for custom_id, number in lines:
            if custom_id is None:
                continue
            hashed = hash(custom_id)
            place, bit = hashed >> 3 & _LAST_PLACE, 1 << (hashed & 7)
            if not bits[place] & bit:
                bits[place] |= bit
            elif first := self._find(custom_id):
                duplicates[number] = first
                continue
            latest[custom_id] = number
            self._free_bytes -= len(custom_id) + _BYTES_PER_ID
            if self._free_bytes < 0:
                self._put_away()
        return duplicates

    def _find(self, custom_id: str) -> int | None:
        first = self._latest.get(custom_id)
        if first is None and self._file is not None:
            row = self._file.execute("SELECT line FROM seen WHERE custom_id = ?", (custom_id,)).fetchone()
            first = row and row[0]
        return first

    def _put_away(self) -> None:
        if self._file is None:
            self._file = sqlite3.connect("")
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute("PRAGMA cache_size = -16384")
            self._file.execute("CREATE TABLE seen (custom_id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
            self._file.execute("BEGIN")
        # sorted, so that ids without any order come to each page once and not again and again; and many in one
        # statement, which takes a third of the time
        ids = sorted(self._latest)
        for first in range(0, len(ids), _IDS_A_STATEMENT):
            part = ids[first : first + _IDS_A_STATEMENT]
            places = ", ".join(["(?, ?)"] * len(part))
            values = [value for custom_id in part for value in (custom_id, self._latest[custom_id])]
            self._file.execute(f"INSERT INTO seen VALUES {places}", values)  # noqa: S608  places only
        self._latest.clear()
        self._free_bytes = _MAX_LATEST_BYTES

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def custom_id_problem(custom_id: object) -> str | None:
    """Why it can be none."""
    if custom_id is None:
        return None
    if not isinstance(custom_id, str):
        return "custom_id must be a string"
    if len(custom_id) > MAX_CUSTOM_ID_CHARS:
        return f"custom_id is longer than {MAX_CUSTOM_ID_CHARS} characters"
    if "\0" in custom_id:
        return "custom_id holds a NUL character, which no database stores"
    return None
