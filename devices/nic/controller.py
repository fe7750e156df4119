"""The network controller: registers, interrupts, the wire, resets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from iommu_emu.devices.base import Bar, Device
from iommu_emu.devices.nic.receive import ReceiveRing
from iommu_emu.devices.nic.registers import ALL_CAUSES, MSIX_TABLE, VECTORS, Control, Register
from iommu_emu.devices.nic.ring import State
from iommu_emu.devices.nic.statistics import Statistics
from iommu_emu.devices.nic.transmit import TransmitRing

MAX_FRAME = 9216  # bytes, unless told otherwise
SENT = 1024  # frames that are kept if nobody takes them

__all__ = ["MAX_FRAME", "SENT", "Nic"]


class Nic(Device):
    """A network controller; `registers` and `descriptors` say how it is programmed.

    Each ring does one DMA at a time. Nothing is checked of frames but their length.

    Args:
        name: for people.
        max_frame: bytes of the longest frame, 64..65535.

    Attributes:
        max_frame: as given.
        statistics: what happened so far.
        sent: the last 1024 frames sent, if nobody takes them.
        wire: takes the frames sent; None: they are kept in `sent`.

    Raises:
        ValueError: if `max_frame` is outside its range.
    """

    device_id = 0x4E43
    class_code = 0x020000
    revision = 1
    subsystem = (0x1234, 0x4E43)
    bar_layout = (Bar(0, 1 << 13, wide=True),)
    msix_vectors = len(VECTORS)
    msix_bar = 0
    msix_table = MSIX_TABLE
    interrupt_pin = 1

    def __init__(self, name: str = "nic", *, max_frame: int = MAX_FRAME) -> None:
        if not 64 <= max_frame <= 0xFFFF:
            raise ValueError(f"max_frame must be in 64..65535, not {max_frame}")
        super().__init__(name)
        self.max_frame = max_frame
        self.statistics = Statistics()
        self.sent: deque[bytes] = deque(maxlen=SENT)
        self.wire: Callable[[bytes], object] | None = None
        self._begin()

    # The wire.

    def connect(self, other: Nic) -> None:
        """Put a cable between two controllers; each receives what the other one sends."""
        self.wire, other.wire = other.receive, self.receive

    def receive(self, frame: bytes) -> None:
        """Take a frame from the network; `statistics` says if it was dropped.

        Raises:
            ValueError: if the frame is empty.
        """
        if not frame:
            raise ValueError("frame must have at least 1 byte")
        if len(frame) > self.max_frame:
            self.statistics.rx_oversize += 1
        else:
            self._rx.receive(frame)

    def transmit(self, frame: bytes) -> None:
        """Put a frame on the wire; the transmit ring calls it."""
        if self.wire is None:
            self.sent.append(frame)
        else:
            self.wire(frame)

    # Life.

    def _begin(self) -> None:
        """Be as after power-on."""
        self._control = self._cause = self._enabled = 0
        self._resetting = False
        self._rx = ReceiveRing(self)
        self._tx = TransmitRing(self)

    def _abandon(self) -> None:
        for ring in (self._rx, self._tx):
            ring.abandon()
            ring.begin()
        self._begin()

    def on_reset(self) -> None:
        """Reset the function; what is in flight is not waited for."""
        self._abandon()

    def on_removed(self) -> None:
        """Lose power."""
        self._abandon()

    def apply_bus_master(self, upstream: bool) -> None:
        """Follow the bus-master bit; what was held back meanwhile is sent."""
        super().apply_bus_master(upstream)
        if self.dma.blocked is None:
            for ring in (self._rx, self._tx):
                ring.unblocked()

    # Registers.

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read registers; 0 for less than a DWORD."""
        if size == 8:
            return self.bar_read(bar, offset, 4) | self.bar_read(bar, offset + 4, 4) << 32
        if size != 4:
            return 0
        if Register.RECEIVE <= offset < Register.TRANSMIT:
            return self._rx.read(offset - Register.RECEIVE)
        if offset >= Register.TRANSMIT:
            return self._tx.read(offset - Register.TRANSMIT)
        registers: dict[int, int] = {
            Register.CONTROL: self._control,
            Register.STATUS: self._status,
            Register.CAUSE: self._cause,
            Register.ENABLE: self._enabled,
            Register.LIMIT: self.max_frame,
        }
        return registers.get(offset, 0)

    @property
    def _status(self) -> int:
        status = 0
        for number, ring in enumerate((self._rx, self._tx)):
            at_work = ring.state in (State.RUNNING, State.STOPPING)
            status |= (at_work | (ring.state is State.FAILED) << 2) << number
        return status

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register or ring a doorbell: whole DWORDs, others are dropped."""
        if size == 8:
            self.bar_write(bar, offset, 4, value & 0xFFFF_FFFF)
            self.bar_write(bar, offset + 4, 4, value >> 32)
        elif size != 4 or self._resetting:
            return
        elif Register.RECEIVE <= offset < Register.TRANSMIT:
            self._rx.write(offset - Register.RECEIVE, value)
        elif offset >= Register.TRANSMIT:
            self._tx.write(offset - Register.TRANSMIT, value)
        elif offset == Register.CONTROL:
            self._write_control(value)
        elif offset == Register.CAUSE:
            self._cause &= ~value
            self._signal(self._cause & self._enabled)
        elif offset == Register.ENABLE:
            self._enabled = value & ALL_CAUSES
            self._signal(self._cause & self._enabled)

    def _write_control(self, value: int) -> None:
        if value & Control.RESET:
            self._resetting = True
            self._control = int(Control.RESET)
            self._enabled = 0
            self._signal(0)
        else:
            self._control = value & int(Control.RECEIVE | Control.TRANSMIT)
        self._rx.switch(bool(self._control & Control.RECEIVE))
        self._tx.switch(bool(self._control & Control.TRANSMIT))
        self.ring_stopped()

    def ring_stopped(self) -> None:
        """End a reset once both rings have stopped; the rings call it."""
        stopped = self._rx.state is self._tx.state is State.STOPPED
        if self._resetting and stopped:
            self._begin()

    # Interrupts.

    def happened(self, cause: int) -> None:
        """Take a cause from a ring, and interrupt if it is enabled and was not up."""
        new = cause & ~self._cause & self._enabled
        self._cause |= cause
        if new:
            self._signal(new)

    def _signal(self, causes: int) -> None:
        """Send the vectors of enabled causes, and let INTx follow."""
        level = False
        for vector, served in enumerate(VECTORS):
            if causes & served and not self.interrupt(vector):
                level = True
        if level != self.interrupt_status:
            self.set_intx(level)
