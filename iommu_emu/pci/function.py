"""A PCI function: configuration space, BARs, interrupts, and the port its requests leave by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from iommu_emu.clock import MICROSECOND, Timer
from iommu_emu.core import Port, StateError, Status
from iommu_emu.geometry import CacheGeometry
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.ats import DEVICE_TLB, Ats
from iommu_emu.pci.capabilities import (
    DEVICE_CAPABILITIES,
    DEVICE_CONTROL,
    FLR_CAPABLE,
    INITIATE_FLR,
    PHANTOM_ENABLE,
    PHANTOM_SHIFT,
    Acs,
    PortType,
    acs_control,
    add_acs,
    add_pcie,
    reset_acs,
)
from iommu_emu.pci.config_space import ConfigSpace
from iommu_emu.pci.msi import Msi, Msix

if TYPE_CHECKING:
    from iommu_emu.machine import Machine
    from iommu_emu.pci.topology import Bus

COMMAND = 0x04
STATUS = 0x06
HEADER_TYPE = 0x0E
MULTIFUNCTION = 0x80
MEMORY_ENABLE = 1 << 1
BUS_MASTER = 1 << 2
INTX_DISABLE = 1 << 10
_COMMAND_WRITABLE = 0x0507  # without parity error response: no model checks parity
_STATUS_CLEARABLE = 0xF900
_INTERRUPT_STATUS = 1 << 3
_MIN_BAR = 4096
_MOST_MESSAGES = 2048  # waiting at once: as many as MSI-X has vectors
_RETRY = MICROSECOND  # after backpressure

__all__ = ["Bar", "Function", "InterruptSink"]


class InterruptSink(Protocol):
    """Who takes a function's interrupts when its MSI-X table and pin are somebody else's.

    A server puts one in `Function.interrupt_sink` where the client keeps the guest's view.
    """

    def message(self, vector: int) -> bool:
        """Take an MSI-X or MSI vector; False if software has enabled neither."""

    def set_intx(self, level: bool) -> None:
        """Take the level of the INTx pin."""


@dataclass(frozen=True)
class Bar:
    """A memory BAR.

    Attributes:
        index: 0..5; a 64-bit one takes the next index as well.
        size: bytes, a power of two from 4096 on.
        wide: whether the address has 64 bits.
        prefetchable: whether reads have no side effects.

    Raises:
        ValueError: if index or size is outside its range.
    """

    index: int
    size: int
    wide: bool = False
    prefetchable: bool = False

    def __post_init__(self) -> None:
        last = 4 if self.wide else 5
        if not 0 <= self.index <= last:
            raise ValueError(f"BAR index must be in 0..{last}, not {self.index}")
        limit = 1 << (63 if self.wide else 31)
        if not _MIN_BAR <= self.size <= limit or self.size & (self.size - 1):
            raise ValueError(
                f"BAR size must be a power of two in {_MIN_BAR:#x}..{limit:#x}, not {self.size:#x}"
            )


class Function:
    """One PCI function. Device models derive from `devices.Device`, which adds the comfort.

    Attributes:
        name: for people.
        config: configuration space.
        kind: PCI Express type; None: conventional PCI.
        bars: the memory BARs by index.
        dma: where its requests enter the fabric, once attached.
        machine: the machine, once attached.
        msi: MSI, if it has it.
        msix: MSI-X, if it has it.
        ats_capability: address translation services, if it has them.
        obeys_bus_master: whether clearing the bus-master bit keeps it from sending.
        interrupt_sink: who takes its interrupts instead of the fabric; None: nobody.
    """

    dma: Port
    machine: Machine
    obeys_bus_master = True
    interrupt_sink: InterruptSink | None = None

    def __init__(
        self,
        name: str,
        *,
        vendor_id: int,
        device_id: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        kind: PortType | None = PortType.ENDPOINT,
        bars: Sequence[Bar] = (),
        msi_vectors: int = 0,
        msi_maskable: bool = True,
        msix_vectors: int = 0,
        msix_bar: int | None = None,
        msix_table: int = 0,
        ats_queue_depth: int = 0,
        device_tlb: CacheGeometry = DEVICE_TLB,
        acs: Acs = Acs.NONE,
        flr: bool = False,
        phantom_bits: int = 0,
        slot: int | None = None,
        header_type: int = 0,
    ) -> None:
        self.name = name
        self.config = config = ConfigSpace()
        self.kind = kind
        self.bus: Bus | None = None
        self.devfn = 0
        self.msi: Msi | None = None
        self.msix: Msix | None = None
        self.ats_capability: Ats | None = None
        self._messages: dict[tuple[int, int], None] = {}  # interrupts that wait for room
        self._retry = Timer(0, lambda: None)
        self._retry.cancel()
        config.set(0x00, 4, device_id << 16 | vendor_id)
        config.set(0x08, 4, class_code << 8 | revision)
        config.set(HEADER_TYPE, 1, header_type)
        config.allow(COMMAND, 2, _COMMAND_WRITABLE)
        config.allow(STATUS, 2, 0, clearable=_STATUS_CLEARABLE)
        config.allow(0x0C, 1, 0xFF)
        config.allow(0x3C, 1, 0xFF)
        if not header_type:
            config.set(0x2C, 4, subsystem[1] << 16 | subsystem[0])
        self.bars: dict[int, Bar] = {}
        for bar in bars:
            self._add_bar(bar)
        config.observe(COMMAND, 2, self.apply_config)
        config.observe(0x10, 24, self._map_bars)
        self.pcie = None if kind is None else add_pcie(config, kind, slot)
        if flr or phantom_bits:
            self._add_device_capabilities(flr, phantom_bits)
        if acs:
            config.observe(add_acs(config, acs) + 6, 6, self._follow_acs)
        if msi_vectors:
            self.msi = Msi(config, msi_vectors, self.send_message, maskable=msi_maskable)
        if msix_vectors:
            self._add_msix(msix_vectors, msix_bar, msix_table)
        if ats_queue_depth:
            self.ats_capability = Ats(config, queue_depth=ats_queue_depth, shape=device_tlb)
        for messages in (self.msi, self.msix):
            if messages is not None:
                config.observe(messages.control, 2, self._follow_messages)

    if not TYPE_CHECKING:  # type checkers must go on finding misspelt attributes

        def __getattr__(self, name: str) -> object:
            if name in ("dma", "machine"):
                raise StateError(f"{self.name} has no {name} yet: attach it to a machine first")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        where = format_requester(self.address, self.segment) if self.attached else "not attached"
        return f"<{type(self).__name__} {self.name!r} {where}>"

    # Where it is.

    @property
    def attached(self) -> bool:
        """Whether it is on a bus."""
        return self.bus is not None

    @property
    def segment(self) -> int:
        """PCI segment; 0 if it is not attached."""
        return 0 if self.bus is None else self.bus.segment

    @property
    def address(self) -> int:
        """Bus, device and function as a requester ID; bridges above may alias it (pci 5)."""
        return self.devfn if self.bus is None else self.bus.number << 8 | self.devfn

    @property
    def acs(self) -> Acs:
        """Access control services that are switched on."""
        return Acs.NONE if self.kind is None else acs_control(self.config)

    def _follow_acs(self) -> None:
        if self.attached:
            self.machine.follow_access_control()

    def _add_device_capabilities(self, flr: bool, phantom_bits: int) -> None:
        if self.pcie is None:
            raise ValueError(f"{self.name}: flr and phantom_bits need PCI Express")
        if not 0 <= phantom_bits <= 3:
            raise ValueError(f"phantom_bits must be in 0..3, not {phantom_bits}")
        capabilities = phantom_bits << PHANTOM_SHIFT | (FLR_CAPABLE if flr else 0)
        self.config.set(self.pcie + DEVICE_CAPABILITIES, 4, capabilities)
        if flr:
            self.config.observe(self.pcie + DEVICE_CONTROL, 2, self._follow_device_control)

    def _follow_device_control(self) -> None:
        assert self.pcie is not None
        control = self.config.get(self.pcie + DEVICE_CONTROL, 2)
        if control & INITIATE_FLR:
            self.config.set(self.pcie + DEVICE_CONTROL, 2, control & ~INITIATE_FLR)  # reads 0
            self.function_level_reset()

    def function_level_reset(self) -> None:
        """Reset the function because software asks this function alone for it."""
        self.reset()

    @property
    def phantoms(self) -> list[int]:
        """Requester IDs that it may send with beside its own, while software allows them.

        Those of functions of the same device that are not there (pci 5).
        """
        if self.pcie is None:
            return []
        bits = self.config.get(self.pcie + DEVICE_CAPABILITIES, 4) >> PHANTOM_SHIFT & 3
        if not bits or not self.config.get(self.pcie + DEVICE_CONTROL, 2) & PHANTOM_ENABLE:
            return []
        step = 8 >> bits
        return [self.address + number for number in range(step, 8 - (self.devfn & 7), step)]

    # BARs.

    def _add_bar(self, bar: Bar) -> None:
        taken = {index for b in self.bars.values() for index in (b.index, b.index + b.wide)}
        if taken & {bar.index, bar.index + bar.wide}:
            raise ValueError(f"BAR {bar.index} of {self.name} overlaps another BAR")
        self.bars[bar.index] = bar
        at = 0x10 + 4 * bar.index
        self.config.set(at, 4, bar.wide << 2 | bar.prefetchable << 3)
        mask = ~(bar.size - 1) & ((1 << (64 if bar.wide else 32)) - 1)
        # The low bits are read-only 0: writing all ones and reading back tells the size.
        self.config.allow(at, 8 if bar.wide else 4, mask & ~0xF)

    def bar_address(self, index: int) -> int:
        """Return where software has put a BAR, whether or not it is decoded."""
        return self.config.get(0x10 + 4 * index, 8 if self.bars[index].wide else 4) & ~0xF

    def place_bar(self, index: int, address: int) -> None:
        """Put a BAR at a physical address, as firmware does.

        Raises:
            ValueError: if the address is no multiple of the BAR's size, or too large for it.
        """
        bar = self.bars[index]
        limit = (1 << (64 if bar.wide else 32)) - bar.size
        if address % bar.size or not 0 <= address <= limit:
            raise ValueError(
                f"address of BAR {index} must be a multiple of {bar.size:#x} in 0..{limit:#x}, "
                f"not {address:#x}"
            )
        self.config.write(0x10 + 4 * index, 4, address & 0xFFFFFFFF)
        if bar.wide:
            self.config.write(0x14 + 4 * index, 4, address >> 32)

    def decoded_bars(self) -> dict[int, int]:
        """Return the address of every BAR that is decoded, by index."""
        if not self.attached or not self.config.get(COMMAND, 2) & MEMORY_ENABLE:
            return {}
        return {index: address for index in self.bars if (address := self.bar_address(index))}

    def _map_bars(self) -> None:
        if self.attached and self.machine.windows.follow(self):
            self.machine.follow_access_control()

    def access_read(self, bar: int, offset: int, size: int) -> int:
        """Read a BAR: the MSI-X table is answered here, the rest by the model."""
        if self.msix is not None and self.msix.covers(bar, offset):
            return self.msix.read(offset, size)
        return self.bar_read(bar, offset, size) & ((1 << 8 * size) - 1)

    def access_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a BAR: the MSI-X table is kept here, the rest goes to the model."""
        if self.msix is not None and self.msix.covers(bar, offset):
            self.msix.write(offset, size, value)
        else:
            self.bar_write(bar, offset, size, value)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Return `size` bytes (1, 2, 4 or 8) of a BAR, little endian; models override it."""
        return (1 << 8 * size) - 1

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Take `size` bytes (1, 2, 4 or 8) written to a BAR; models override it."""

    # Interrupts.

    def _add_msix(self, vectors: int, bar: int | None, table: int) -> None:
        if bar not in self.bars:
            raise ValueError(f"msix_bar must be one of the BARs {sorted(self.bars)}, not {bar}")
        self.msix = Msix(self.config, vectors, self.send_message, bar, table)
        if self.msix.end > self.bars[bar].size:
            raise ValueError(
                f"MSI-X of {vectors} vectors ends at {self.msix.end:#x}, "
                f"BAR {bar} has {self.bars[bar].size:#x} bytes"
            )

    def send_message(self, address: int, data: int) -> None:
        """Write a message interrupt: one DWORD, untranslated, without PASID (pci 7).

        While the fabric has no room for it, it waits; the same message waits once. While the
        function must not send, it is lost.
        """
        message = (address, data)
        if message not in self._messages and len(self._messages) < _MOST_MESSAGES:
            self._messages[message] = None
            self._send_messages()

    def _send_messages(self) -> None:
        while self._messages and self.attached:
            address, data = message = next(iter(self._messages))
            sent = self.dma.write(address, data.to_bytes(4, "little"))
            if sent.status is Status.BUSY and self.dma.blocked is None:
                if not self._retry.pending:
                    self._retry = self.machine.clock.call_later(_RETRY, self._send_messages)
                return
            self._messages.pop(message, None)

    def interrupt(self, vector: int = 0) -> bool:
        """Send a vector by MSI-X or MSI, whichever software enabled; False if neither."""
        if self.interrupt_sink is not None:
            return self.interrupt_sink.message(vector)
        if self.msix is not None and self.msix.enabled:
            return self.msix.notify(vector)
        if self.msi is not None:
            return self.msi.notify(vector)
        return False

    @property
    def messages_enabled(self) -> bool:
        """Whether software has enabled MSI or MSI-X."""
        return any(found is not None and found.enabled for found in (self.msi, self.msix))

    def _follow_messages(self) -> None:
        """Take INTx down when messages are enabled; the model says when it is up again."""
        if self.messages_enabled:
            self.set_intx(False)

    @property
    def interrupt_status(self) -> bool:
        """Whether an interrupt is there, as the status register says."""
        return bool(self.config.get(STATUS, 2) & _INTERRUPT_STATUS)

    @property
    def intx(self) -> bool:
        """Level of its INTx pin: an interrupt is there, and software uses and allows INTx."""
        disabled = self.config.get(COMMAND, 2) & INTX_DISABLE
        return self.interrupt_status and not disabled and not self.messages_enabled

    def set_intx(self, level: bool) -> None:
        """Say whether an interrupt is there; software sees it in the status register."""
        status = self.config.get(STATUS, 2) & ~_INTERRUPT_STATUS
        self.config.set(STATUS, 2, status | (_INTERRUPT_STATUS if level else 0))
        if self.interrupt_sink is not None:
            self.interrupt_sink.set_intx(self.intx)

    # Being switched on and off.

    def apply_config(self) -> None:
        """Follow the command register: BAR decoding, bus mastering, the INTx pin."""
        if self.interrupt_sink is not None:
            self.interrupt_sink.set_intx(self.intx)
        if not self.attached:
            return
        self._map_bars()
        self.machine.fabric.apply_bus_master(self)

    def apply_bus_master(self, upstream: bool) -> None:
        """Block or unblock the port; `upstream`: whether the bridges above forward requests.

        A function that must not send sends nothing; a bridge that must not forward answers
        with an Unsupported Request.
        """
        if self.dma.blocked is Status.REMOVED:
            return
        if self.obeys_bus_master and not self.config.get(COMMAND, 2) & BUS_MASTER:
            self.dma.blocked = Status.BUSY
        else:
            self.dma.blocked = None if upstream else Status.UNSUPPORTED_REQUEST

    def reset(self) -> None:
        """Reset the function: command, BARs, interrupts, then the model's `on_reset`."""
        self.config.set(COMMAND, 2, 0)
        for bar in self.bars.values():
            at = 0x10 + 4 * bar.index
            self.config.set(at, 4, self.config.get(at, 4) & 0xF)
            if bar.wide:
                self.config.set(at + 4, 4, 0)
        for messages in (self.msi, self.msix):
            if messages is not None:
                messages.reset()
        reset_acs(self.config)
        if self.ats_capability is not None:
            self.ats_capability.reset()
        self._messages.clear()
        self.set_intx(False)
        self.apply_config()
        self.on_reset()

    def on_invalidate(self, first: int, last: int, tag: int) -> None:
        """Called when the device-TLB is to be invalidated, if `answering` is `IN_PYTHON`.

        Models override it, to drop something else, or to answer later, twice, or otherwise.

        Args:
            first: first input address.
            last: last input address.
            tag: ITag, 0..31, which the answer has to bear.
        """
        if self.dma.device_tlb is not None:
            self.dma.device_tlb.drop(first, last)
        self.dma.complete_invalidation(1 << tag)

    def on_attach(self) -> None:
        """Called when the function has been attached; models override it."""

    def on_reset(self) -> None:
        """Called when the function is reset; models override it."""

    def on_removed(self) -> None:
        """Called when the function has been removed by surprise; models override it."""
