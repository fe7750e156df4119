"""Handle on a machine's journal, and its replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iommu_emu._core import ffi, lib
from iommu_emu.core.enums import JournalEnd, ReplayOutcome, Vendor
from iommu_emu.core.errors import U64, StateError, check, require_range
from iommu_emu.core.machine import CoreMachine
from iommu_emu.core.tables import RECORD_DTYPE
from iommu_emu.core.unit import CoreUnit

_WAITING = 1 << 22  # records that may wait to be taken: 192 MiB, used as they come


class Journal:
    """What happens to a machine from now on, as records.

    Args:
        machine: a machine that has not been used: units as after their creation, nothing in
            flight, no message waiting.
        limit: records in all, from 1 on; None: any number.
        until: virtual time in ns at which it ends; None: never.
        capacity: records that may wait to be taken, 1024..2**24.

    Raises:
        StateError: if the machine has been used, or has a journal.
        ValueError: if a number is outside its range.
    """

    def __init__(
        self,
        machine: CoreMachine,
        limit: int | None = None,
        until: int | None = None,
        capacity: int = _WAITING,
    ) -> None:
        require_range("capacity", capacity, 1 << 24, 1024)
        for name, value in (("limit", limit), ("until", until)):
            if value is not None:
                require_range(name, value, U64, 1)
        config = ffi.new("struct iemu_journal_config *")
        config.capacity, config.limit, config.until = capacity, limit or 0, until or 0
        code = lib.iemu_journal_start(machine.handle, config)
        if code == lib.IEMU_E_STATE:
            raise StateError(
                "a journal must begin before the machine is used (a register written, a request "
                "translated, a message waiting), and there can be only one"
            )
        check(code, "journal")
        self.machine = machine
        self.end = JournalEnd.OPEN

    def __len__(self) -> int:
        """Return the number of records that wait to be taken."""
        size: int = lib.iemu_journal_size(self.machine.handle)
        return size

    def take(self) -> NDArray[Any]:
        """Take every record there is, shape (n,), of `RECORD_DTYPE`; `end` follows."""
        records = np.empty(len(self), dtype=RECORD_DTYPE)
        target = ffi.from_buffer("struct iemu_record[]", records, require_writable=True)
        end = ffi.new("uint32_t *")
        count = lib.iemu_journal_take(self.machine.handle, target, len(records), end)
        self.end = JournalEnd(end[0])
        return records[:count]

    def stop(self) -> None:
        """End it; what was not taken is lost."""
        lib.iemu_journal_stop(self.machine.handle)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a replay.

    Attributes:
        outcome: whether every record came out again.
        position: records that did.
        got: what came instead of the record at `position`, shape (1,) of `RECORD_DTYPE`; of
            kind 0 if the call ended without it.
    """

    outcome: ReplayOutcome
    position: int
    got: NDArray[Any]


def play(machine: CoreMachine, records: NDArray[Any]) -> Played:
    """Play a journal on a machine, and compare what happens.

    Args:
        machine: just created, with the transactions and messages that the first record tells;
            its units are there afterwards.
        records: shape (n,), of `RECORD_DTYPE`, contiguous.
    """
    if records.dtype != RECORD_DTYPE or records.ndim != 1:
        raise ValueError(f"records must be a one-dimensional array of {RECORD_DTYPE}")
    records = np.ascontiguousarray(records)
    result = ffi.new("struct iemu_replay *")
    source = ffi.from_buffer("struct iemu_record[]", records)
    lib.iemu_replay(machine.handle, source, len(records), result)
    got = np.frombuffer(bytes(ffi.buffer(ffi.addressof(result, "got"))), dtype=RECORD_DTYPE)
    while handle := lib.iemu_machine_unit(machine.handle, len(machine.units)):
        machine.units.append(CoreUnit(machine, handle, Vendor(lib.iemu_unit_vendor(handle))))
    return Played(ReplayOutcome(result.outcome), result.position, got)
