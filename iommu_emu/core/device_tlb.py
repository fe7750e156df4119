"""Handle on a port's device-TLB, and the translations that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommu_emu._core import ffi, lib
from iommu_emu.core.enums import Answer
from iommu_emu.core.errors import U32, U64, check, require_range
from iommu_emu.core.records import CacheEntry, make_cache_entry
from iommu_emu.core.tables import text

if TYPE_CHECKING:
    from iommu_emu.core.port import Port

_UNTRANSLATED_ONLY, _NON_SNOOPED, _LARGE = 1 << 2, 1 << 10, 1 << 11


class DeviceTlb:
    """The device-TLB of a port's function; made by `Port.add_device_tlb`.

    Attributes:
        enabled: whether ATS is switched on.
        answer: what the function does when it is asked to invalidate.
        delay: ns from the request to its answer.
    """

    def __init__(
        self, port: Port, geometry: Mapping[str, int], answer: Answer, delay: int, owner: int
    ) -> None:
        require_range("delay", delay, U64)
        require_range("owner", owner, U32)
        config = ffi.new("struct iemu_ats_config *")
        config.geometry = dict(geometry)
        config.answer, config.delay, config.owner = answer, delay, owner
        check(lib.iemu_ats_create(port.handle, config), f"device-TLB of {port!r}")
        self._port = port
        self.enabled = False
        self.answer = answer
        self.delay = delay

    def __repr__(self) -> str:
        return f"<DeviceTlb of {self._port!r}: {'on' if self.enabled else 'off'}>"

    def enable(self, on: bool = True) -> None:
        """Switch ATS, as software does with the enable bit; off empties the device-TLB."""
        check(lib.iemu_ats_enable(self._port.handle, on), "ATS")
        self.enabled = on

    def set_answer(self, answer: Answer, delay: int = 0) -> None:
        """Choose how requests to invalidate that come from now on are answered.

        Args:
            answer: what the function does.
            delay: ns from the request to that.
        """
        require_range("delay", delay, U64)
        check(lib.iemu_ats_set_answer(self._port.handle, answer, delay), f"answer {answer!r}")
        self.answer, self.delay = answer, delay

    def drop(self, first: int = 0, last: int = U64) -> None:
        """Drop the entries that cover any byte of `first`..`last`."""
        require_range("first", first, U64)
        require_range("last", last, U64, first)
        check(lib.iemu_ats_drop(self._port.handle, first, last), f"{first:#x}..{last:#x}")

    def entries(self) -> list[CacheEntry]:
        """Return the live entries."""
        rows = ffi.new("struct iemu_cache_entry[]", 1)
        count = lib.iemu_ats_entries(self._port.handle, rows, 0)
        rows = ffi.new("struct iemu_cache_entry[]", max(count, 1))
        count = min(count, lib.iemu_ats_entries(self._port.handle, rows, count))
        return [make_cache_entry(rows[i]) for i in range(count)]

    def counters(self) -> dict[str, int]:
        """Return every counter by name."""
        rows = ffi.new("struct iemu_counter[]", 1)
        count = lib.iemu_ats_counters(self._port.handle, rows, 0)
        rows = ffi.new("struct iemu_counter[]", max(count, 1))
        count = min(count, lib.iemu_ats_counters(self._port.handle, rows, count))
        return {text(rows[i].name): rows[i].value for i in range(count)}


@dataclass(frozen=True, slots=True)
class Translation:
    """One entry of a translation completion (VT-d 6.2, pci 6).

    Attributes:
        address: physical address where the translated range begins; 0 where nothing is granted.
        size: bytes of the range, 4096 or more.
        read: R.
        write: W.
        untranslated_only: U; the range is to be used by untranslated requests.
        non_snooped: N.
    """

    address: int
    size: int
    read: bool
    write: bool
    untranslated_only: bool
    non_snooped: bool

    @classmethod
    def decode(cls, data: bytes) -> Translation:
        """Decode the 8 bytes that a translation request is answered with.

        Raises:
            ValueError: if `data` has another length.
        """
        if len(data) != 8:
            raise ValueError(f"data must be 8 bytes, not {len(data)}")
        entry = int.from_bytes(data, "little")
        page = entry & ~0xFFF
        size = 4096
        if entry & _LARGE:  # the lowest 0 bit from bit 12 on is half the size
            rest = ~(entry | 0xFFF)
            size = 2 * (rest & -rest)
        return cls(
            address=page & ~(size - 1),
            size=size,
            read=bool(entry & lib.IEMU_READ),
            write=bool(entry & lib.IEMU_WRITE),
            untranslated_only=bool(entry & _UNTRANSLATED_ONLY),
            non_snooped=bool(entry & _NON_SNOOPED),
        )
