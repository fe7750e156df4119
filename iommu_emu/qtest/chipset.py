"""The functions of QEMU's q35 that software expects on bus 0: host bridge and 00:1f.

IDs and reset values are those that QEMU 11.1 shows. Of the registers there are the ones that
decide something here: where configuration space is memory-mapped, and how INTx lines are routed.
SATA and SMBus controllers are there to be found: their BARs can be placed, with nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping

from iommu_emu.pci.config_space import STATUS_CAPABILITIES
from iommu_emu.pci.function import HEADER_TYPE, MULTIFUNCTION, STATUS, Function

QEMU_SUBSYSTEM = (0x1AF4, 0x1100)
PCIEXBAR = 0x60
PCIEXBAR_RESET = 0xB000_0000
_PCIEXBAR_WRITABLE = 0xF_FC00_0007
_PCIEXBAR_LENGTHS = (256 << 20, 128 << 20, 64 << 20)
PIRQ_ROUTES = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)
_PIRQ_RESET = 0x80  # not routed to the 8259s

_IO_BAR = 1

__all__ = ["QEMU_SUBSYSTEM", "Header", "HostBridge", "LpcBridge", "gsi", "sata", "smbus"]


class HostBridge(Function):
    """The 82Q35 memory controller hub, 00:00.0."""

    def __init__(self) -> None:
        super().__init__(
            "mch",
            vendor_id=0x8086,
            device_id=0x29C0,
            class_code=0x060000,
            subsystem=QEMU_SUBSYSTEM,
            kind=None,
        )
        self.config.set(0x50, 4, 0x40)
        self.config.set(0x9C, 4, 0x0038_0200)  # system management memory
        self.config.allow(PCIEXBAR, 8, _PCIEXBAR_WRITABLE)
        self.on_reset()

    def on_reset(self) -> None:
        """Switch memory-mapped configuration space off."""
        self.config.set(PCIEXBAR, 8, PCIEXBAR_RESET)

    @property
    def ecam(self) -> range:
        """Where configuration space is memory-mapped; empty while it is not."""
        value = self.config.get(PCIEXBAR, 8)
        length = value >> 1 & 3
        if not value & 1 or length >= len(_PCIEXBAR_LENGTHS):
            return range(0)
        size = _PCIEXBAR_LENGTHS[length]
        base = value & 0xF_FFFF_FFFF & ~(size - 1)
        return range(base, base + size)


class LpcBridge(Function):
    """The ICH9 LPC bridge, 00:1f.0."""

    def __init__(self) -> None:
        super().__init__(
            "lpc",
            vendor_id=0x8086,
            device_id=0x2918,
            class_code=0x060100,
            revision=2,
            subsystem=QEMU_SUBSYSTEM,
            kind=None,
        )
        self.config.set(HEADER_TYPE, 1, MULTIFUNCTION)
        self.config.set(0x40, 4, 1)  # ACPI's I/O ports
        for offset in PIRQ_ROUTES:
            self.config.allow(offset, 1, 0x8F)
        self.on_reset()

    def on_reset(self) -> None:
        """Route no PIRQ to the 8259s."""
        for offset in PIRQ_ROUTES:
            self.config.set(offset, 1, _PIRQ_RESET)


class Header(Function):
    """A function that shows itself, and does nothing.

    Args:
        name: for people.
        device_id: PCI device ID; the vendor is Intel.
        class_code: 24 bits.
        bars: value and writable bits of BARs by index.
        rest: what capabilities and other registers read, by offset.
    """

    def __init__(
        self,
        name: str,
        device_id: int,
        class_code: int,
        bars: Mapping[int, tuple[int, int]],
        rest: Mapping[int, int],
    ) -> None:
        super().__init__(
            name,
            vendor_id=0x8086,
            device_id=device_id,
            class_code=class_code,
            revision=2,
            subsystem=QEMU_SUBSYSTEM,
            kind=None,
        )
        self._bars = bars
        self.config.set(HEADER_TYPE, 1, MULTIFUNCTION)
        self.config.set(0x3D, 1, 1)
        for index, (_, writable) in bars.items():
            self.config.allow(0x10 + 4 * index, 4, writable)
        for offset, value in rest.items():
            self.config.set(offset, 4, value)
        self.on_reset()

    def on_reset(self) -> None:
        """Place the BARs nowhere."""
        for index, (value, _) in self._bars.items():
            self.config.set(0x10 + 4 * index, 4, value)


def sata() -> Function:
    """Return the SATA controller, 00:1f.2, with its MSI and SATA capabilities."""
    capabilities = {0x34: 0x80, 0x80: 0x0080_A805, 0x90: 0x40, 0xA8: 0x0010_0012, 0xAC: 0x48}
    bars = {4: (_IO_BAR, 0xFFFF_FFE0), 5: (0, 0xFFFF_F000)}
    function = Header("ich9-ahci", 0x2922, 0x010601, bars, capabilities)
    function.config.set(STATUS, 2, STATUS_CAPABILITIES)
    return function


def smbus() -> Function:
    """Return the SMBus controller, 00:1f.3."""
    return Header("ICH9-SMB", 0x2930, 0x0C0500, {4: (_IO_BAR, 0xFFFF_FFC0)}, {})


def gsi(device: int, pin: int) -> int:
    """Return the I/O APIC input of a function's INTx with the routing after reset.

    PIRQA..PIRQH are inputs 16..23. Devices 0..24 rotate over PIRQE..PIRQH, device 30 starts at
    PIRQE, and the chipset's own devices 25..29 and 31 use PIRQA until software routes them.

    Args:
        device: device number on bus 0.
        pin: 1..4 for INTA..INTD.
    """
    if device < 25:
        return 20 + (device + pin - 1) % 4
    return 20 + pin - 1 if device == 30 else 16
