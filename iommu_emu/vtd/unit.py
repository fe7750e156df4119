"""A VT-d remapping unit: its configuration, and the handle on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommu_emu import core
from iommu_emu.core import U64, Vendor, require_range
from iommu_emu.unit import Unit, UnitConfig
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.faults import FaultRecord

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["VtdConfig", "VtdUnit"]


@dataclass(frozen=True, kw_only=True)
class VtdConfig(UnitConfig):
    """Configuration of a VT-d unit.

    Attributes:
        capabilities: what CAP and ECAP report; behaviour follows from it.
        major: major version, 1..15 (VT-d 2.3).
        minor: minor version, 0..15.
        compress_faults: a fault of a requester that already has a record is dropped
            (VT-d 8.1 step 3, optional for hardware).
        protected_shift: log2 of the granularity of protected memory, 12..32 (N + 1 in VT-d 2.11).
        invalidation_timeout: ns until a device-TLB invalidation that was not answered is an error
            (ITE); 0: never. PCIe lets functions take a minute (VT-d 7.6).

    Raises:
        ValueError: if a value is outside its range, registers overlap, or the version does not
            allow the capabilities.
    """

    capabilities: Capabilities = field(default_factory=Capabilities)
    major: int = 1
    minor: int = 0
    compress_faults: bool = False
    protected_shift: int = 21
    invalidation_timeout: int = 60_000_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("major", self.major, 15, 1)
        require_range("minor", self.minor, 15)
        require_range("protected_shift", self.protected_shift, 32, 12)
        require_range("invalidation_timeout", self.invalidation_timeout, U64)
        self._check_version()
        self._check_registers()

    def _check_version(self) -> None:
        capabilities = self.capabilities
        if self.major >= 2 and not (capabilities.drain_reads and capabilities.drain_writes):
            raise ValueError("major from 2 on needs drain_reads and drain_writes (VT-d 3.1)")
        empty = self.major >= 6 and not capabilities.second_stage
        if empty and capabilities.levels:
            raise ValueError("major from 6 on needs second_stage, or no levels (VT-d 3.1)")
        if not empty and not capabilities.levels:
            raise ValueError("levels must not be empty")
        if capabilities.guest_address_width < self.host_address_width:
            raise ValueError(
                f"guest_address_width must be at least host_address_width"
                f" ({self.host_address_width}), not {capabilities.guest_address_width}"
            )

    def _check_registers(self) -> None:
        """Refuse register blocks that leave the window or overlap (VT-d 2.2)."""
        taken = {
            row.name: (row.offset, row.width // 8 * row.count)
            for row in core.registers(Vendor.VTD)
            if row.base == 0
        }
        for name, (offset, size) in self.capabilities.ranges().items():
            if offset + size > self.window:
                raise ValueError(
                    f"{name}: registers at {offset:#x}..{offset + size - 1:#x} do not fit"
                    f" the window of {self.window:#x} bytes"
                )
            for other, (start, length) in taken.items():
                if offset < start + length and start < offset + size:
                    raise ValueError(f"{name}: registers at {offset:#x} overlap {other}")
            taken[name] = (offset, size)

    def parameters(self) -> dict[str, Any]:
        """Return the values of `struct iemu_vtd_config`."""
        return {
            "unit": self.unit_parameters(),
            "cap": self.capabilities.cap,
            "ecap": self.capabilities.ecap,
            "major": self.major,
            "minor": self.minor,
            "compress_faults": self.compress_faults,
            "protected_shift": self.protected_shift,
            "invalidation_timeout": (
                self.invalidation_timeout if self.capabilities.device_tlbs else 0
            ),
        }


class VtdUnit(Unit):
    """One VT-d unit of a machine.

    Args:
        machine: the machine that it belongs to.
        config: capabilities, register window, caches.
        segment: PCI segment that it serves.

    Raises:
        OverlapError: if something else is at the register window.
    """

    config: VtdConfig

    def __init__(self, machine: Machine, config: VtdConfig, segment: int = 0) -> None:
        super().__init__(machine, machine.core.create_vtd(config.parameters()), config, segment)

    @property
    def capabilities(self) -> Capabilities:
        """What CAP and ECAP report."""
        return self.config.capabilities

    def fault_records(self) -> list[FaultRecord]:
        """Return the pending fault records, oldest first, without clearing them."""
        if not self.field("FSTS", "PPF"):
            return []
        count = self.capabilities.fault_records
        start = self.field("FSTS", "FRI")
        found = []
        for index in ((start + n) % count for n in range(count)):
            record = FaultRecord.decode(self.read("FRCD", index), index)
            if record is not None:
                found.append(record)
        return found
