"""The file of a recording.

    magic    8 bytes, the last one the format's version
    blocks   tag (4 bytes), length and CRC-32 of the payload (32 bits each, little endian), payload
      HEAD   JSON: who recorded, and notes; once, first
      RECS   number of records (32 bits), then the records (`struct iemu_record`), xz
      TAIL   JSON: how many records there are and why the recording ended; once, last

The kinds of records are those of csrc/iommu_emu.h, little endian. A file without TAIL was cut off.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iommu_emu.core import RECORD_DTYPE, CacheId, ConfigValue, RecordKind, Vendor

__all__ = ["MAX_RECORDS", "Note", "Recording", "RecordingError", "Writer", "check_notes", "read"]

MAGIC = b"iemurec\x01"
BLOCK = struct.Struct("<4sII")
COUNT = struct.Struct("<I")
CHUNK = 1 << 16  # records of a block
MAX_RECORDS = 1 << 24  # that `read` takes: 768 MiB
_OF_A_CACHE = (ConfigValue.SETS, ConfigValue.WAYS, ConfigValue.REPLACEMENT, ConfigValue.SEED)
_MAX_JSON = 1 << 20
_MAX_BLOCK = CHUNK * RECORD_DTYPE.itemsize + (1 << 20)
# Of what was tried on a guest's recording: 1.1 bytes a record, ten times as fast as preset 6 (1.0)
# and 2.6 times as small as zlib. Its dictionary is as large as a chunk.
_PRESET = 3
_DECODER_MEMORY = 64 << 20
ENDS = ("closed", "limit", "time", "full")  # by the caller, and enum iemu_journal_end


Note: TypeAlias = "str | int | float"


class RecordingError(ValueError):
    """A recording that cannot be read, written or replayed."""


@dataclass(frozen=True)
class Recording:
    """What a file holds.

    Attributes:
        version: of the iommu-emu that recorded.
        notes: what its user noted: versions of kernel and QEMU, for example.
        records: shape (n,), of `core.RECORD_DTYPE`.
        end: why it ended: "closed" by its user, "limit" of records, "time", or "full": nobody
            took records for too long.
    """

    version: str
    notes: Mapping[str, Note]
    records: NDArray[Any]
    end: str

    def __len__(self) -> int:
        return len(self.records)

    @property
    def duration(self) -> int:
        """Virtual time in ns from the first to the last record that tells the time."""
        tells = np.isin(self.records["kind"], (RecordKind.ADVANCE, RecordKind.TIME))
        times = self.records["value"][tells, 0]
        return int(times[-1] - times[0]) if len(times) else 0

    def units(self) -> list[dict[str, int | str]]:
        """Return each unit's configuration: "vendor", and what is not 0 by the core's names."""
        found: list[dict[str, int | str]] = []
        values: dict[str, int | str] = {}
        chosen = np.isin(self.records["kind"], (RecordKind.CONFIG, RecordKind.UNIT))
        for record in self.records[chosen]:
            if record["kind"] == RecordKind.CONFIG:
                name = config_name(int(record["id"]), int(record["number"]))
                values[name] = int(record["value"][0])
            else:
                found.append({"vendor": _name(Vendor, int(record["size"])), **values})
                values = {}
        return found

    def counts(self) -> dict[str, int]:
        """Return the number of records of each kind, by name."""
        kinds, counts = np.unique(self.records["kind"], return_counts=True)
        return {kind_name(kind): int(count) for kind, count in zip(kinds, counts, strict=True)}


def check_notes(notes: Mapping[str, object]) -> None:
    """Raise a ValueError unless notes are plain: text or numbers by name, a megabyte at most."""
    for name, value in notes.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)):
            raise ValueError(f"notes must be text or numbers by name, not {name!r}: {value!r}")
    if len(json.dumps(dict(notes))) > _MAX_JSON // 2:
        raise ValueError(f"notes must be at most {_MAX_JSON // 2} bytes of JSON")


def kind_name(kind: int) -> str:
    """Return the name of a kind of record, in lower case; its number if there is none."""
    return _name(RecordKind, kind)


def _name(names: type[IntEnum], number: int) -> str:
    try:
        return names(number).name.lower()
    except ValueError:
        return f"{names.__name__} {number}"


def config_name(value: int, index: int) -> str:
    """Return the name of a configuration value: "cap", or "iotlb.ways" of a cache's geometry."""
    name = _name(ConfigValue, value)
    return f"{_name(CacheId, index)}.{name}" if value in _OF_A_CACHE else name


class Writer:
    """Writes one file; `finish` makes it whole.

    Args:
        file: open for writing, at its start.
        version: of the iommu-emu that records.
        notes: checked by `check_notes`.
    """

    def __init__(self, file: BinaryIO, version: str, notes: Mapping[str, Note]) -> None:
        self._file = file
        self.records = 0
        header = {"iommu_emu": version, "notes": dict(notes)}
        file.write(MAGIC)
        self._block(b"HEAD", json.dumps(header, sort_keys=True).encode())

    def _block(self, tag: bytes, payload: bytes) -> None:
        self._file.write(BLOCK.pack(tag, len(payload), zlib.crc32(payload)) + payload)

    def write(self, records: NDArray[Any]) -> None:
        """Append records."""
        for first in range(0, len(records), CHUNK):
            chunk = records[first : first + CHUNK]
            packed = lzma.compress(chunk.tobytes(), check=lzma.CHECK_NONE, preset=_PRESET)
            self._block(b"RECS", COUNT.pack(len(chunk)) + packed)
        self.records += len(records)

    def finish(self, end: str) -> None:
        """Write the end of the file."""
        tail = {"end": end, "records": self.records}
        self._block(b"TAIL", json.dumps(tail, sort_keys=True).encode())


class _Reader:
    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.offset = 0

    def error(self, what: str) -> RecordingError:
        return RecordingError(f"{self._name}: {what} at offset {self.offset:#x}")

    def take(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise self.error(f"the file is cut off in {what}, which begins")
        return data

    def more(self) -> bool:
        return bool(self._file.read(1))

    def block(self) -> tuple[bytes, bytes]:
        tag, size, crc = BLOCK.unpack(self.take(BLOCK.size, "a block's head"))
        if tag not in (b"HEAD", b"RECS", b"TAIL"):
            raise self.error(f"unknown block {tag!r}")
        limit = _MAX_BLOCK if tag == b"RECS" else _MAX_JSON
        if size > limit:
            raise self.error(f"block {tag.decode()} of {size} bytes (at most {limit})")
        payload = self.take(size, f"block {tag.decode()}")
        if zlib.crc32(payload) != crc:
            raise self.error(f"checksum of block {tag.decode()} does not match")
        return tag, payload

    def json(self, payload: bytes) -> dict[str, Any]:
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise self.error(f"no JSON ({error}) in the block") from None
        if not isinstance(value, dict):
            raise self.error("no JSON object in the block")
        return value

    def chunk(self, payload: bytes) -> NDArray[Any]:
        if len(payload) < COUNT.size:
            raise self.error("block RECS without its count")
        (count,) = COUNT.unpack_from(payload)
        if not 1 <= count <= CHUNK:
            raise self.error(f"block of {count} records (1..{CHUNK})")
        size = count * RECORD_DTYPE.itemsize
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY)
        try:
            data = decoder.decompress(payload[COUNT.size :], max_length=size + 1)
        except lzma.LZMAError as error:
            raise self.error(f"records cannot be unpacked ({error}) in the block") from None
        if len(data) != size or not decoder.eof or decoder.unused_data:
            raise self.error(f"{count} records are {size} bytes, not {len(data)}, in the block")
        return np.frombuffer(data, dtype=RECORD_DTYPE)


def read(path: str | Path, max_records: int = MAX_RECORDS) -> Recording:
    """Read a recording.

    Args:
        path: the file.
        max_records: more are refused; each takes 48 bytes of memory.

    Raises:
        OSError: if the file cannot be read.
        RecordingError: if it is no recording, of another version, cut off or damaged; the message
            says where.
    """
    with open(path, "rb") as file:
        reader = _Reader(file, str(path))
        magic = file.read(len(MAGIC))
        if magic[:-1] != MAGIC[:-1]:
            raise reader.error("no recording (its first bytes are others)")
        if magic != MAGIC:
            raise RecordingError(
                f"{path}: format {magic[-1]}, and this iommu-emu reads format {MAGIC[-1]}: "
                "record it again, or use the iommu-emu that recorded it"
            )
        return _read_blocks(reader, max_records)


def _read_blocks(reader: _Reader, max_records: int) -> Recording:
    reader.offset = len(MAGIC)
    tag, payload = reader.block()
    if tag != b"HEAD":
        raise reader.error(f"block {tag.decode()} before HEAD")
    header = reader.json(payload)
    version, notes = header.get("iommu_emu"), header.get("notes")
    if not isinstance(version, str) or not isinstance(notes, dict):
        raise reader.error("no version and notes in the block")
    try:
        check_notes(notes)
    except ValueError as error:
        raise reader.error(f"{error}, in the block") from None
    chunks = [np.empty(0, dtype=RECORD_DTYPE)]
    count = 0
    while True:
        reader.offset += BLOCK.size + len(payload)
        tag, payload = reader.block()
        if tag == b"TAIL":
            break
        if tag == b"HEAD":
            raise reader.error("a second HEAD")
        chunks.append(reader.chunk(payload))
        count += len(chunks[-1])
        if count > max_records:
            raise reader.error(f"more than {max_records} records; the limit was passed")
    tail = reader.json(payload)
    if tail.get("end") not in ENDS or tail.get("records") != count:
        raise reader.error(f"{count} records came before a TAIL that says otherwise,")
    reader.offset += BLOCK.size + len(payload)
    if reader.more():
        raise reader.error("something follows the end of the recording")
    return Recording(version, notes, np.concatenate(chunks), tail["end"])
