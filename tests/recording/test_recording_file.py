"""The file: cut off, damaged, hostile; each is refused with the place."""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iommu_emu.core import RECORD_DTYPE, RecordKind
from iommu_emu.recording import RecordingError, read, replay
from iommu_emu.recording.format import MAGIC, Writer

DATA = Path(__file__).with_name("data")
EXAMPLE = DATA / "qtest-edu.iemu"


def block(tag: bytes, payload: bytes) -> bytes:
    return struct.pack("<4sII", tag, len(payload), zlib.crc32(payload)) + payload


def head(value: Any = None) -> bytes:
    return block(b"HEAD", json.dumps(value or {"iommu_emu": "0", "notes": {}}).encode())


def tail(records: int, end: str = "closed") -> bytes:
    return block(b"TAIL", json.dumps({"records": records, "end": end}).encode())


def chunk(data: bytes, count: int) -> bytes:
    return block(b"RECS", struct.pack("<I", count) + lzma.compress(data))


ONE = bytes([RecordKind.MACHINE]) + bytes(7) + struct.pack("<5Q", 16, 64, 0, 0, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.iemu"


def refused(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=message):
        read(path)


def test_file_of_one_record(path: Path) -> None:
    path.write_bytes(MAGIC + head() + chunk(ONE, 1) + tail(1))
    recording = read(path)
    assert recording.records.tobytes() == ONE
    assert (recording.version, recording.end) == ("0", "closed")


def test_file_round_trip_of_every_bit(path: Path) -> None:
    random = np.random.default_rng(1)
    raw = random.integers(0, 256, size=48 * 70_000, dtype=np.uint8)
    records = raw.view(RECORD_DTYPE)
    with path.open("wb") as file:
        writer = Writer(file, "1.2", {"a": 1})
        writer.write(records[:10])
        writer.write(records[10:])
        writer.finish("full")
    recording = read(path)
    assert np.array_equal(recording.records.view(np.uint8), raw)
    assert (recording.version, recording.notes, recording.end) == ("1.2", {"a": 1}, "full")


def test_file_that_is_missing(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(path)


def test_file_cut_off_anywhere_is_told(path: Path) -> None:
    whole = EXAMPLE.read_bytes()
    for size in range(len(whole)):
        refused(path, whole[:size], "cut off|no recording")


def test_file_with_any_bit_flipped_is_told(path: Path) -> None:
    whole = EXAMPLE.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        refused(path, bytes(damaged), "offset 0x|format")


BAD: list[tuple[str, bytes, str]] = [
    ("empty", b"", "no recording .* at offset 0x0"),
    ("text", b"#!/bin/sh\n" * 9, "no recording"),
    ("version", MAGIC[:-1] + b"\x02" + head(), "format 2, and this iommu-emu reads format 1"),
    ("no head", MAGIC + tail(0), "TAIL before HEAD at offset 0x8"),
    ("tag", MAGIC + block(b"JUNK", b""), "unknown block b'JUNK' at offset 0x8"),
    ("two heads", MAGIC + head() + head() + tail(0), "second HEAD"),
    ("no JSON", MAGIC + block(b"HEAD", b"{"), "no JSON"),
    ("deep JSON", MAGIC + block(b"HEAD", b"[" * 100_000), "no JSON"),
    ("no object", MAGIC + block(b"HEAD", b"[]"), "no JSON object"),
    ("no notes", MAGIC + block(b"HEAD", b'{"iommu_emu": "1"}'), "no version and notes"),
    ("notes", MAGIC + head({"iommu_emu": "1", "notes": {"a": []}}), "notes must be text"),
    ("large head", MAGIC + struct.pack("<4sII", b"HEAD", 1 << 31, 0), "2147483648 bytes"),
    ("large chunk", MAGIC + head() + struct.pack("<4sII", b"RECS", 1 << 31, 0), "at most"),
    ("no count", MAGIC + head() + block(b"RECS", b""), "without its count"),
    ("count 0", MAGIC + head() + chunk(b"", 0), "block of 0 records"),
    ("count", MAGIC + head() + chunk(ONE, 65537), "block of 65537 records"),
    ("too few", MAGIC + head() + chunk(ONE, 2) + tail(2), "2 records are 96 bytes, not 48"),
    ("too many", MAGIC + head() + chunk(2 * ONE, 1) + tail(1), "1 records are 48 bytes"),
    ("bomb", MAGIC + head() + chunk(bytes(50 << 20), 1) + tail(1), "1 records are 48 bytes"),
    ("no xz", MAGIC + head() + block(b"RECS", bytes(100)) + tail(1), "block of 0 records"),
    ("bad xz", MAGIC + head() + block(b"RECS", b"\1\0\0\0junk" * 9), "cannot be unpacked"),
    ("tail", MAGIC + head() + chunk(ONE, 1) + tail(2), "1 records came before a TAIL"),
    ("end", MAGIC + head() + chunk(ONE, 1) + tail(1, "tired"), "TAIL that says otherwise"),
    ("more", MAGIC + head() + chunk(ONE, 1) + tail(1) + b"x", "something follows the end"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_file_that_is_wrong_is_told(path: Path, data: bytes, message: str) -> None:
    refused(path, data, message)


def test_file_with_more_records_than_the_reader_wants() -> None:
    with pytest.raises(RecordingError, match="more than 50 records"):
        read(EXAMPLE, max_records=50)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (bytes(48), "begins with a record of its machine"),
        (ONE[:8] + struct.pack("<5Q", 0, 64, 0, 0, 0), "transactions must be"),
        (ONE[:8] + struct.pack("<5Q", 16, 1 << 40, 0, 0, 0), "messages must be"),
    ],
    ids=["kind", "transactions", "messages"],
)
def test_file_whose_machine_cannot_be_made(path: Path, record: bytes, message: str) -> None:
    path.write_bytes(MAGIC + head() + chunk(record, 1) + tail(1))
    with pytest.raises(RecordingError, match=message):
        replay(read(path))


def test_file_without_records(path: Path) -> None:
    path.write_bytes(MAGIC + head() + tail(0))
    recording = read(path)
    assert (len(recording), recording.duration, recording.counts()) == (0, 0, {})
    with pytest.raises(RecordingError, match="begins with"):
        replay(recording)
