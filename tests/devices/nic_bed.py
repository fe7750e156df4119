"""A machine with a ring NIC, and what tests do with it."""

from iommu_emu import Machine, Status
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Completion, CompletionDetails
from iommu_emu.devices.nic import Control, Nic, NicDriver, NicStatus, Register
from iommu_emu.devices.nic.controller import MAX_FRAME
from iommu_emu.devices.nic.descriptors import DESCRIPTOR
from iommu_emu.direction import Direction
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

PAGE = 4096
TABLES = range(1 << 20, 4 << 20)
MEMORY = range(4 << 20, 8 << 20)
RAW = 12 << 20  # RAM that no driver uses
UNMAPPED = 0x50_0000_0000
FABRIC, TO_MEMORY = 100, 50
ADDRESS = "00:04.0"
RX, TX = Register.RECEIVE, Register.TRANSMIT
BOTH = Control.RECEIVE | Control.TRANSMIT
RUNNING = NicStatus.RECEIVE | NicStatus.TRANSMIT
PERMISSIONS = {
    Direction.TO_DEVICE: "r",
    Direction.FROM_DEVICE: "w",
    Direction.BIDIRECTIONAL: "rw",
}


class PageMapper:
    """Maps the pages that a buffer touches, at addresses that are never used again.

    `left` is how many calls of `map` succeed.
    """

    def __init__(self, domain):
        self.domain = domain
        self.next = 0x40_0000_0000
        self.live = {}
        self.left = float("inf")

    def map(self, physical, size, direction):
        if not self.left:
            raise MemoryError("no IOVA left")
        self.left -= 1
        offset = physical % PAGE
        pages = -(-(offset + size) // PAGE) * PAGE
        iova, self.next = self.next + offset, self.next + pages + PAGE
        self.domain.map(
            iova - offset, physical - offset, pages, PERMISSIONS[direction], page_size=PAGE
        )
        self.live[iova] = (size, direction, pages)
        return iova

    def unmap(self, iova, size, direction):
        mapped_size, mapped_direction, pages = self.live.pop(iova)
        assert (size, direction) == (mapped_size, mapped_direction)
        self.domain.unmap(iova - iova % PAGE, pages)


class Bed:
    """A machine with a NIC at 00:04.0, behind an IOMMU of `vendor` if that is given."""

    def __init__(self, vendor=None, *, max_frame=MAX_FRAME, driver=None, **options):
        self.machine = Machine(16 << 20, **options)
        self.memory = self.machine.memory
        self.nic = self.machine.attach(Nic(max_frame=max_frame), ADDRESS)
        self.iommu = self.domain = self.mapper = None
        if vendor is not None:
            if vendor == "vtd":
                unit = VtdUnit(self.machine, VtdConfig(base=0xFED9_0000))
                self.iommu = VtdDriver(self.machine, unit, TABLES)
            else:
                unit = AmdviUnit(self.machine, AmdviConfig(base=0xFEB8_0000))
                self.iommu = AmdviDriver(self.machine, unit, TABLES, buses=1)
            self.iommu.start()
            self.domain = self.iommu.create_domain()
            self.iommu.attach(self.domain, self.nic.address)
            self.mapper = PageMapper(self.domain)
        self.driver = NicDriver(
            self.machine, self.nic, MEMORY, self.mapper, **{"entries": 16} | (driver or {})
        )

    def ready(self):
        self.driver.use_msix()
        self.driver.start()
        self.machine.interrupts.clear()
        return self

    @property
    def status(self):
        return self.driver.read(Register.STATUS)

    @property
    def causes(self):
        return self.driver.read(Register.CAUSE)

    @property
    def vectors(self):
        """Vectors that came from the device, not from the IOMMU."""
        sent = self.machine.interrupts
        return [interrupt.vector for interrupt in sent if interrupt.source == "device"]

    # Rings by hand, as a driver of another mind has them.

    def ring(self, register, size=8, base=RAW):
        """Tell the controller of a ring at an IOVA."""
        self.driver.write(register + Register.BASE_LOW, base & 0xFFFF_FFFF)
        self.driver.write(register + Register.BASE_HIGH, base >> 32)
        self.driver.write(register + Register.SIZE, size)

    def describe(self, index, address, length, flags=0):
        """Write a descriptor of the ring whose physical address is RAW."""
        self.memory.write(RAW + 16 * index, DESCRIPTOR.pack(address, length, flags, 0))

    def written_back(self, index):
        """Length, flags and status of a descriptor."""
        return DESCRIPTOR.unpack(self.memory.read(RAW + 16 * index, 16))[1:]

    def enable(self, control=BOTH):
        self.driver.write(Register.CONTROL, int(control))

    def tail(self, register, value):
        self.driver.write(register + Register.TAIL, value)

    def head(self, register):
        return self.driver.read(register + Register.HEAD)

    def raw(self, register, *descriptors, size=8, base=RAW):
        """Start a ring with descriptors of (address, length, flags)."""
        self.ring(register, size, base)
        for index, descriptor in enumerate(descriptors):
            self.describe(index, *descriptor)
        self.enable(Control.RECEIVE if register == RX else Control.TRANSMIT)
        self.tail(register, len(descriptors))


def frame(length, seed=0):
    """Return bytes in which no two places look alike."""
    return b"".join((seed << 20 | n).to_bytes(4, "little") for n in range(-(-length // 4)))[:length]


def only_fault(bed):
    (fault,) = bed.iommu.faults()
    return fault.requester, fault.address & ~0xFFF, fault.access


class FullFabric:
    """Lets a port's first request to `address` through up to its first `done` bytes."""

    def __init__(self, port, address, done=0):
        self.ways = {"read": port.read, "write": port.write}
        self.address, self.done = address, done
        self.later: list[int] = []  # the addresses of what was sent then
        port.read, port.write = self.read, self.write

    def read(self, address, length, on_done=None):
        return self.send("read", address, length, on_done)

    def write(self, address, data, on_done=None):
        if address == self.address and self.done:
            self.ways["write"](address, data[: self.done])
        return self.send("write", address, data, on_done)

    def send(self, way, address, what, on_done):
        if address != self.address:
            self.later.append(address)
            return self.ways[way](address, what, on_done)
        self.address = None
        return Completion(b"", CompletionDetails(Status.BUSY, address, self.done, 0))


def start_both(bed):
    """Start a frame each way; their buffers are being moved afterwards."""
    bed.driver.send(b"out")
    bed.nic.receive(b"in")
    bed.machine.advance(FABRIC + TO_MEMORY + 10)
    assert bed.nic.dma.in_flight == (2, 0)
