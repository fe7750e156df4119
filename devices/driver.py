"""What small software drivers share: buffers, registers in BAR 0, and switching MSI-X on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from iommu_emu.devices.base import Device
from iommu_emu.pci.msi import MSIX_ENABLE

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

_ENTRY = 16  # bytes of an MSI-X table entry

__all__ = ["Buffer", "DeviceDriver"]

D = TypeVar("D", bound=Device)


class Buffer(NamedTuple):
    """Memory that a device reaches.

    Attributes:
        physical: where the CPU sees it.
        iova: where the device sees it.
        size: bytes.
    """

    physical: int
    iova: int
    size: int


class DeviceDriver(Generic[D]):
    """Programs one device, as an operating system does: by registers and memory alone.

    Args:
        machine: the machine.
        device: the device.
    """

    def __init__(self, machine: Machine, device: D) -> None:
        self.machine = machine
        self.device = device

    def read(self, register: int, size: int = 4) -> int:
        """Read a register of BAR 0."""
        return self.machine.mmio_read(self.device.bar_address(0) + register, size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        """Write a register of BAR 0."""
        self.machine.mmio_write(self.device.bar_address(0) + register, size, value)

    def use_msix(
        self, vectors: int | None = None, address: int = 0xFEE0_0000, data: int = 0x40
    ) -> None:
        """Switch MSI-X on; vector n is sent as `data` + n.

        Args:
            vectors: how many of the table's entries are filled in and unmasked; None: all.
            address: message address, 64 bits.
            data: of vector 0, 32 bits.

        Raises:
            RuntimeError: if the device has no MSI-X.
            ValueError: if the table has not that many entries, or an address or data does not fit.
        """
        msix = self.device.msix
        if msix is None:
            raise RuntimeError(f"{self.device.name} has no MSI-X")
        if vectors is None:
            vectors = msix.vectors
        if not 0 <= vectors <= msix.vectors:
            raise ValueError(f"vectors must be in 0..{msix.vectors}, not {vectors}")
        table = self.device.bar_address(msix.bar) + msix.table
        for vector in range(vectors):
            entry = table + _ENTRY * vector
            self.machine.mmio_write(entry, 8, address)
            self.machine.mmio_write(entry + 8, 4, data + vector)
            self.machine.mmio_write(entry + 12, 4, 0)
        self.device.config.write(msix.control, 2, MSIX_ENABLE)
