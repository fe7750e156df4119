"""A network controller with one receive and one transmit ring: an honest, simple workload.

Registers in BAR 0, DWORDs (a QWORD is two of them); what is not listed reads 0:

    000  CONTROL  bit 0 receive, bit 1 transmit, bit 31 reset: 1 until nothing is in flight
    004  STATUS   bits 1:0 ring at work or something of it in flight, bits 3:2 ring failed
    008  CAUSE    write 1 to clear; see `Cause`
    00C  ENABLE   the causes that interrupt; the others are masked
    010  LIMIT    bytes of the longest frame
    100  receive ring, 200 transmit ring:
         +0 BASE (64 bits, a multiple of 16)  +8 SIZE (descriptors, 2..4096)
         +C HEAD (the controller's next one)  +10 TAIL (doorbell: software's next one)

Base and size can be written while the ring is stopped; switching it on starts it at head 0. The
MSI-X table is at 1000h: vector 0 for receiving, vector 1 for transmitting.

A descriptor has 16 bytes; `DESCRIPTOR` and `WRITE_BACK` are its definition:

    0  address of the buffer, 64 bits        8  length of the buffer, or of what it holds, 16 bits
    A  flags, bit 0: last of the frame       C  status, see `DescriptorStatus`         E  0

The controller owns the descriptors from head up to, but not including, tail. When it is done with
one, it writes its second half back, in one piece, and moves the head.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag, auto
from functools import partial

from iommu_emu.clock import MICROSECOND, Timer
from iommu_emu.core import Completion, Status
from iommu_emu.devices.base import Bar, Device

MAX_FRAME = 9216  # bytes, unless told otherwise
MIN_ENTRIES, MAX_ENTRIES = 2, 4096
BATCH = 16  # descriptors fetched at a time
FIFO = 64  # frames that wait for the receive ring
SENT = 1024  # frames that are kept if nobody takes them
BUDGET = 256  # DMAs that one doorbell, frame or completion may start at once; then the clock does
PAUSE = MICROSECOND  # until then, and after backpressure
PAGE = 4096  # the fabric splits a DMA at its multiples
LONGEST = 1 << 16  # DMAs are cut at multiples of this
_ADDRESSES = 1 << 64
_MSIX_TABLE = 0x1000

DESCRIPTOR = struct.Struct("<QHHHxx")  # address, length, flags, status
WRITE_BACK = struct.Struct("<HHHxx")  # its second half
END_OF_FRAME = 1

__all__ = [
    "BATCH",
    "BUDGET",
    "DESCRIPTOR",
    "END_OF_FRAME",
    "FIFO",
    "MAX_ENTRIES",
    "MAX_FRAME",
    "MIN_ENTRIES",
    "SENT",
    "WRITE_BACK",
    "Cause",
    "Control",
    "DescriptorStatus",
    "Nic",
    "NicStatus",
    "Register",
    "Statistics",
]


class Register(IntEnum):
    """Offsets in BAR 0; those from BASE_LOW on are relative to RECEIVE or TRANSMIT."""

    CONTROL = 0x000
    STATUS = 0x004
    CAUSE = 0x008
    ENABLE = 0x00C
    LIMIT = 0x010
    RECEIVE = 0x100
    TRANSMIT = 0x200
    BASE_LOW = 0x00
    BASE_HIGH = 0x04
    SIZE = 0x08
    HEAD = 0x0C
    TAIL = 0x10


class Control(IntFlag):
    """Bits of CONTROL."""

    RECEIVE = 1 << 0
    TRANSMIT = 1 << 1
    RESET = 1 << 31


class NicStatus(IntFlag):
    """Bits of STATUS."""

    RECEIVE = 1 << 0
    TRANSMIT = 1 << 1
    RECEIVE_FAILED = 1 << 2
    TRANSMIT_FAILED = 1 << 3


class Cause(IntFlag):
    """What interrupts: bits of CAUSE and ENABLE.

    A vector is sent when one of its enabled causes comes up, and again when a write to CAUSE or
    ENABLE leaves one up; INTx is up while any is.

    A ring fails if it is switched on with a base or size that it cannot have, or if a descriptor
    cannot be fetched or written back. It goes on when it is switched off and on.
    """

    RECEIVED = 1 << 0
    TRANSMITTED = 1 << 1
    NO_DESCRIPTOR = 1 << 2
    RECEIVE_FAILED = 1 << 3
    TRANSMIT_FAILED = 1 << 4


class DescriptorStatus(IntFlag):
    """Status that the controller writes back.

    Of a frame that is not sent, the descriptor that spoilt it and all that follow have the reason.
    """

    DONE = 1 << 0
    FAULT = 1 << 1  # a buffer could not be read or written; what a receive buffer holds is void
    LENGTH = 1 << 2  # the frame to send is empty, or longer than LIMIT


# Plain integers where every frame passes: operators of flags are slow.
_DONE, _FAULT, _LENGTH = (int(status) for status in DescriptorStatus)
_RECEIVED, _TRANSMITTED, _NO_DESCRIPTOR, _RX_FAILED, _TX_FAILED = (int(cause) for cause in Cause)
_VECTORS = (_RECEIVED | _NO_DESCRIPTOR | _RX_FAILED, _TRANSMITTED | _TX_FAILED)
_ALL_CAUSES = _VECTORS[0] | _VECTORS[1]


@dataclass
class Statistics:
    """What happened since the controller was made.

    Attributes:
        rx_frames: received without error.
        rx_bytes: in them.
        rx_no_descriptor: frames dropped since software had given no descriptor.
        rx_missed: frames dropped since the ring was off, or too many waited for it.
        rx_oversize: frames dropped since they were longer than the limit.
        rx_faults: frames dropped since a buffer could not be written.
        tx_frames: sent.
        tx_bytes: in them.
        tx_faults: frames not sent since a buffer could not be read.
        tx_length: frames not sent since they were empty or longer than the limit.
        ring_failures: times that a ring stopped by itself.
        doorbell_errors: doorbell writes that were ignored.
    """

    rx_frames: int = 0
    rx_bytes: int = 0
    rx_no_descriptor: int = 0
    rx_missed: int = 0
    rx_oversize: int = 0
    rx_faults: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    tx_faults: int = 0
    tx_length: int = 0
    ring_failures: int = 0
    doorbell_errors: int = 0


class _DmaChannel:
    """Sends one DMA after the other: what came of one decides about the next.

    One that finds no room in the fabric is sent again from the clock. `read` and `write` only
    say what is to be sent; `run` sends it, and calls what was told to come then from its loop, so
    that a chain of DMAs that pass at once does not nest.

    Args:
        device: whose port and clock it uses.
        proceed: called when there is nothing to send; it may ask for something.
    """

    def __init__(self, device: Device, proceed: Callable[[], None]) -> None:
        self.closed = False
        self.in_flight = False
        self._device = device
        self._port = device.dma
        # No DMA may have more parts than the fabric has transactions: it would wait for ever.
        few = device.machine.core.transactions * PAGE < LONGEST
        self._block = PAGE if few else LONGEST
        self._proceed = proceed
        self._then: Callable[[bytes | None], None] | None = None
        self._address = self._length = self._size = 0
        self._data: bytes | None = None
        self._parts: list[bytes] = []
        self._arrived: Completion | None = None
        self._running = False
        self._timer: Timer | None = None
        self._held = False
        self._idle: Callable[[], None] | None = None

    def read(self, address: int, length: int, then: Callable[[bytes | None], None]) -> None:
        """Read memory next; `then` gets what was read, or None if that failed."""
        self._address, self._length, self._data, self._then = address, length, None, then

    def write(self, address: int, data: bytes, then: Callable[[bytes | None], None]) -> None:
        """Write memory next; `then` gets b"", or None if that failed."""
        self._address, self._length, self._data, self._then = address, len(data), data, then

    def run(self) -> None:
        """Go on until there is nothing to do, or something to wait for."""
        if self._running or self.in_flight or self._timer is not None or self._held:
            return
        self._running = True
        try:
            for _ in range(BUDGET):
                if self.closed or not self._step():
                    return
            self._continue_later()
        finally:
            self._running = False

    def _step(self) -> bool:
        """Send one DMA, or take the one that arrived; False if there is none to go on with."""
        done, self._arrived = self._arrived, None
        if done is None:
            if self._then is None:
                self._proceed()
                if self._then is None:
                    return False
            address, length = self._address, self._length
            if address + length > _ADDRESSES:
                self._finish(None)
                return True
            self._size = size = min(length, self._block - address % self._block)
            if self._data is None:
                done = self._port.read(address, size, self._landed)
            else:
                data = self._data if size == length else self._data[:size]
                done = self._port.write(address, data, self._landed)
        details = done.details
        if details is None or details.status is Status.DONE:
            self._passed(done.data, self._size)
        elif details.status is Status.PENDING:
            self.in_flight = True
            return False
        elif details.status is Status.BUSY:
            if self._data is not None and details.done:
                self._passed(b"", details.done)
            self._continue_later()
            return False
        else:
            self._finish(None)
        return True

    def _passed(self, data: bytes, size: int) -> None:
        """Take a part that is complete."""
        if size == self._length:
            self._finish(b"".join((*self._parts, data)) if self._parts else data)
            return
        self._address += size
        self._length -= size
        if self._data is None:
            self._parts.append(data)
        else:
            self._data = self._data[size:]

    def _finish(self, result: bytes | None) -> None:
        then, self._then = self._then, None
        if self._parts:
            self._parts = []
        assert then is not None
        then(result)

    def _landed(self, done: Completion) -> None:
        """Go on: a DMA is complete that was in flight. Called too early if it passed at once."""
        if not self.in_flight:
            return
        self.in_flight = False
        if not self.closed:
            self._arrived = done
            self.run()
        elif self._idle is not None:
            self._idle()

    def _continue_later(self) -> None:
        # While the function must not send, time helps nothing: `unblocked` goes on.
        if self._port.blocked is Status.BUSY:
            self._held = True
        else:
            self._timer = self._device.call_later(PAUSE, self._continue)

    def _continue(self) -> None:
        self._timer = None
        self.run()

    def unblocked(self) -> None:
        """Send what was held back while the function must not send."""
        self._held = False
        self.run()

    def close(self, idle: Callable[[], None] | None = None) -> None:
        """Send nothing more; `idle` is called when what is in flight has landed, if anything is."""
        self.closed = True
        self._idle = idle
        self._then = self._arrived = None
        if self._timer is not None:
            self._timer.cancel()


class _State(Enum):
    STOPPED = auto()
    RUNNING = auto()
    STOPPING = auto()  # until nothing is in flight
    FAILED = auto()


class _Ring(ABC):
    """A ring of descriptors: fetches them, and writes them back."""

    def __init__(self, nic: Nic, failure: int) -> None:
        self.nic = nic
        self.failure = failure
        self.base = self.size = self.head = self.tail = 0
        self.state = _State.STOPPED
        self.channel: _DmaChannel | None = None
        self._wanted = False
        self._fetched: deque[tuple[int, int, int, int]] = deque()  # from the head on

    # Registers.

    def read(self, offset: int) -> int:
        registers: dict[int, int] = {
            Register.BASE_LOW: self.base & 0xFFFF_FFFF,
            Register.BASE_HIGH: self.base >> 32,
            Register.SIZE: self.size,
            Register.HEAD: self.head,
            Register.TAIL: self.tail,
        }
        return registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if offset == Register.TAIL:
            self._ring_doorbell(value)
        elif self.state is not _State.STOPPED:
            return
        elif offset == Register.BASE_LOW:
            self.base = self.base & ~0xFFFF_FFFF | value & ~(DESCRIPTOR.size - 1)
        elif offset == Register.BASE_HIGH:
            self.base = self.base & 0xFFFF_FFFF | value << 32
        elif offset == Register.SIZE:
            self.size = value

    def _ring_doorbell(self, tail: int) -> None:
        """Take a new tail, unless it is outside the ring or takes descriptors back."""
        if self.channel is None or self.state is not _State.RUNNING or tail >= self.size:
            self.nic.statistics.doorbell_errors += 1
            return
        used = (self.tail - self.head) % self.size
        if used + (tail - self.tail) % self.size >= self.size:
            self.nic.statistics.doorbell_errors += 1
            return
        self.tail = tail
        self.channel.run()

    # Starting and stopping.

    def switch(self, on: bool) -> None:
        """Start the ring, or stop it; if it is stopping yet, start it when it has."""
        self._wanted = on
        if on and self.state is _State.STOPPED:
            self._start()
        elif not on and self.state in (_State.RUNNING, _State.FAILED):
            self._stop()

    def _start(self) -> None:
        self.head = self.tail = 0
        self.begin()
        last = self.base + DESCRIPTOR.size * self.size
        if not MIN_ENTRIES <= self.size <= MAX_ENTRIES or last > _ADDRESSES:
            self.fail()
            return
        self.state = _State.RUNNING
        self.channel = _DmaChannel(self.nic, self.proceed)

    def _stop(self) -> None:
        self.state = _State.STOPPING
        if self.channel is not None:
            self.channel.close(self._stopped)
        if self.channel is None or not self.channel.in_flight:
            self._stopped()

    def _stopped(self) -> None:
        self.state = _State.STOPPED
        self.begin()
        self.nic.ring_stopped()
        if self._wanted:
            self._start()

    def abandon(self) -> None:
        """Send nothing more, and forget what is in flight."""
        if self.channel is not None:
            self.channel.close()

    def fail(self) -> None:
        """Stop by itself, and tell software."""
        self.abandon()
        self.state = _State.FAILED
        self.begin()
        self.nic.statistics.ring_failures += 1
        self.nic.happened(self.failure)

    def begin(self) -> None:
        """Forget what was under way."""
        self._fetched.clear()

    # Work.

    @abstractmethod
    def proceed(self) -> None:
        """Ask the channel for the next DMA, if there is something to do."""

    @abstractmethod
    def finished(self, flags: int, status: int) -> None:
        """Called when a descriptor has been written back, and the head is past it."""

    def fetch(self) -> bool:
        """See to it that the next descriptor is there; False if software has given none."""
        if self._fetched:
            return True
        end = self.tail if self.tail >= self.head else self.size
        count = min(BATCH, end - self.head)
        if count:
            at = self.base + DESCRIPTOR.size * self.head
            self._channel.read(at, DESCRIPTOR.size * count, self._fetch_done)
        return bool(count)

    def _fetch_done(self, data: bytes | None) -> None:
        if data is None:
            self.fail()
        else:
            self._fetched.extend(DESCRIPTOR.iter_unpack(data))

    def write_back(self, length: int, flags: int, status: int) -> None:
        """Write the next descriptor back; it is over then."""
        at = self.base + DESCRIPTOR.size * self.head + DESCRIPTOR.size - WRITE_BACK.size
        data = WRITE_BACK.pack(length, flags, status)
        self._channel.write(at, data, partial(self._write_back_done, flags, status))

    def _write_back_done(self, flags: int, status: int, data: bytes | None) -> None:
        if data is None:
            self.fail()
            return
        self._fetched.popleft()
        self.head = (self.head + 1) % self.size
        self.finished(flags, status)

    @property
    def _channel(self) -> _DmaChannel:
        assert self.channel is not None
        return self.channel


class _ReceiveRing(_Ring):
    """Puts frames into buffers.

    A frame that finds no descriptor is dropped; one of which a part is in memory already waits for
    more of them.
    """

    def __init__(self, nic: Nic) -> None:
        self._frames: deque[bytes] = deque()
        self._offset = self._length = 0  # in the first frame, and of the part under way
        super().__init__(nic, _RX_FAILED)

    def begin(self) -> None:
        super().begin()
        self.nic.statistics.rx_missed += len(self._frames)
        self._frames.clear()
        self._offset = 0

    def receive(self, frame: bytes) -> None:
        if self.channel is None or self.state is not _State.RUNNING or len(self._frames) >= FIFO:
            self.nic.statistics.rx_missed += 1
            return
        self._frames.append(frame)
        self.channel.run()

    def proceed(self) -> None:
        while self._frames:
            if self._fetched:
                self._store()
                return
            if self.fetch() or self._offset:
                return
            self._frames.popleft()
            self.nic.statistics.rx_no_descriptor += 1
            self.nic.happened(_NO_DESCRIPTOR)

    def _store(self) -> None:
        address, length, _, _ = self._fetched[0]
        data = self._frames[0][self._offset : self._offset + length]
        self._length = len(data)
        if data:
            self._channel.write(address, data, self._stored)
        else:
            self._stored(b"")

    def _stored(self, data: bytes | None) -> None:
        if data is None:
            self.write_back(0, END_OF_FRAME, _DONE | _FAULT)
            return
        self._offset += self._length
        last = END_OF_FRAME if self._offset == len(self._frames[0]) else 0
        self.write_back(self._length, last, _DONE)

    def finished(self, flags: int, status: int) -> None:
        if not flags & END_OF_FRAME:
            return
        frame, self._offset = self._frames.popleft(), 0
        statistics = self.nic.statistics
        if status & _FAULT:
            statistics.rx_faults += 1
        else:
            statistics.rx_frames += 1
            statistics.rx_bytes += len(frame)
        self.nic.happened(_RECEIVED)


class _TransmitRing(_Ring):
    """Gathers frames from buffers."""

    def __init__(self, nic: Nic) -> None:
        self._parts: list[bytes] = []
        self._gathered = 0
        self._error = 0  # what spoilt the frame
        super().__init__(nic, _TX_FAILED)

    def begin(self) -> None:
        super().begin()
        self._begin_frame()

    def _begin_frame(self) -> None:
        self._parts = []
        self._gathered = self._error = 0

    def proceed(self) -> None:
        if not self._fetched:
            self.fetch()
            return
        address, length, flags, _ = self._fetched[0]
        if self._gathered + length > self.nic.max_frame:
            self._error |= _LENGTH
        if length and not self._error:
            self._channel.read(address, length, self._gather)
            return
        if flags & END_OF_FRAME and not self._gathered and not self._error:
            self._error = _LENGTH
        self._close()

    def _gather(self, data: bytes | None) -> None:
        if data is None:
            self._error |= _FAULT
        else:
            self._parts.append(data)
            self._gathered += len(data)
        self._close()

    def _close(self) -> None:
        if self._error:
            self._parts.clear()
        _, length, flags, _ = self._fetched[0]
        self.write_back(length, flags, _DONE | self._error)

    def finished(self, flags: int, status: int) -> None:
        if not flags & END_OF_FRAME:
            return
        statistics = self.nic.statistics
        frame = b"".join(self._parts)
        self._begin_frame()
        if status & _FAULT:
            statistics.tx_faults += 1
        elif status & _LENGTH:
            statistics.tx_length += 1
        else:
            statistics.tx_frames += 1
            statistics.tx_bytes += len(frame)
        self.nic.happened(_TRANSMITTED)
        if frame:
            self.nic.transmit(frame)


class Nic(Device):
    """A network controller; the registers and descriptors are those of the module.

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
    msix_vectors = len(_VECTORS)
    msix_bar = 0
    msix_table = _MSIX_TABLE
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
        self._rx = _ReceiveRing(self)
        self._tx = _TransmitRing(self)

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
                if ring.channel is not None:
                    ring.channel.unblocked()

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
            at_work = ring.state in (_State.RUNNING, _State.STOPPING)
            status |= (at_work | (ring.state is _State.FAILED) << 2) << number
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
            self._enabled = value & _ALL_CAUSES
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
        stopped = self._rx.state is self._tx.state is _State.STOPPED
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
        for vector, served in enumerate(_VECTORS):
            if causes & served and not self.interrupt(vector):
                level = True
        if level != self.interrupt_status:
            self.set_intx(level)
