"""Base class of device models."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from iommu_emu.clock import Clock, Timer
from iommu_emu.geometry import CacheGeometry
from iommu_emu.pci.ats import DEVICE_TLB
from iommu_emu.pci.capabilities import Acs, PortType
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
    - `self.dma.translation_request(address)`, if it has a device-TLB (`ats`): a translation to
      keep for itself. While software has ATS switched on, the transfers above go through the
      device-TLB by themselves; `self.ats_capability.answering` says how it answers when it is to
      invalidate: `AT_ONCE`, `late(ns)`, `NEVER`, `WRONGLY`, or `IN_PYTHON`, by `on_invalidate`
      (all in `iommu_emu.pci.ats`);
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
        ats: whether it has a device-TLB, which software may switch on.
        ats_queue_depth: device-TLB invalidations that it takes at once, 1..32.
        device_tlb: shape of its device-TLB.
        acs_services: access control services towards other functions of its device (pci 4).
        flr: whether software can reset the function alone (Function Level Reset).
        phantom_bits: high bits of the function number, 0..3, in which its phantom functions
            differ from it; see `phantoms`.

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
    ats: ClassVar[bool] = False
    ats_queue_depth: ClassVar[int] = 32
    device_tlb: ClassVar[CacheGeometry] = DEVICE_TLB
    acs_services: ClassVar[Acs] = Acs.NONE
    flr: ClassVar[bool] = False
    phantom_bits: ClassVar[int] = 0

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
            ats_queue_depth=self.ats_queue_depth if self.ats else 0,
            device_tlb=self.device_tlb,
            acs=self.acs_services,
            flr=self.flr,
            phantom_bits=self.phantom_bits,
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
