"""Base class of device models."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from iommu_emu.clock import Clock, Timer
from iommu_emu.pci.capabilities import PortType
from iommu_emu.pci.function import Bar, Function

__all__ = ["Bar", "Device"]


class Device(Function):
    """A device model: declare what it is, override what it does.

    A model declares its identity, BARs and interrupt vectors as class attributes, and overrides
    `bar_read`, `bar_write`, `on_attach`, `on_reset` and `on_removed` as it needs.
    In them it uses

    - `self.dma.read(address, length)`, `self.dma.write(address, data)`, `self.dma.atomic(...)`
      and `self.dma.transfer(...)`: each returns a `Completion` with `ok`, `status`, `data`,
      `fault` and `cause`. With latencies it is pending at first; `on_done` is called with it
      when it is there;
    - `self.interrupt(vector)`: MSI-X or MSI, as software has enabled it;
    - `self.call_later(delay, action)`: virtual time;
    - `self.machine`: everything else.

    Attributes:
        vendor_id: PCI vendor ID.
        device_id: PCI device ID.
        class_code: base class, subclass and programming interface, 24 bits.
        revision: 8 bits.
        subsystem: vendor and device ID of the subsystem.
        port_type: PCI Express type; None: conventional PCI.
        bar_layout: the memory BARs.
        msi_vectors: 0, or a power of two up to 32.
        msi_maskable: whether MSI has per-vector masks.
        msix_vectors: 0..2048.
        msix_bar: index of the BAR that holds the MSI-X table.
        msix_table: offset of the table in it.
        interrupt_pin: 0 none, 1..4 INTA..INTD.

    Args:
        name: for people; the class's name if it is None.
    """

    vendor_id: ClassVar[int] = 0x1234
    device_id: ClassVar[int] = 0x0001
    class_code: ClassVar[int] = 0xFF0000
    revision: ClassVar[int] = 0
    subsystem: ClassVar[tuple[int, int]] = (0, 0)
    port_type: ClassVar[PortType | None] = PortType.ENDPOINT
    bar_layout: ClassVar[tuple[Bar, ...]] = ()
    msi_vectors: ClassVar[int] = 0
    msi_maskable: ClassVar[bool] = True
    msix_vectors: ClassVar[int] = 0
    msix_bar: ClassVar[int | None] = None
    msix_table: ClassVar[int] = 0
    interrupt_pin: ClassVar[int] = 0

    def __init__(self, name: str | None = None) -> None:
        super().__init__(
            type(self).__name__ if name is None else name,
            vendor_id=self.vendor_id,
            device_id=self.device_id,
            class_code=self.class_code,
            revision=self.revision,
            subsystem=self.subsystem,
            kind=self.port_type,
            bars=self.bar_layout,
            msi_vectors=self.msi_vectors,
            msi_maskable=self.msi_maskable,
            msix_vectors=self.msix_vectors,
            msix_bar=self.msix_bar,
            msix_table=self.msix_table,
        )
        self.config.set(0x3D, 1, self.interrupt_pin)

    @property
    def clock(self) -> Clock:
        """The machine's clock."""
        return self.machine.clock

    def call_later(self, delay: int, action: Callable[[], None]) -> Timer:
        """Call `action` in `delay` ns of virtual time, unless the device is gone by then."""

        def act() -> None:
            if self.attached:
                action()

        return self.clock.call_later(delay, act)
