"""A machine with an NVMe controller, and what tests do with it."""

from iommu_emu import Machine
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.devices import Nvme
from iommu_emu.devices.nvme.driver import NvmeDriver
from iommu_emu.devices.nvme.specification import AdminOpcode, NvmOpcode
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BLOCK = 512
PAGE = 4096
CC, CSTS, AQA, ASQ, ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30
TABLES = range(1 << 20, 4 << 20)
MEMORY = range(4 << 20, 14 << 20)
IOVA = 0x40_0000_0000
UNMAPPED = 0x50_0000_0000


class Bed:
    """A machine with a controller at 00:03.0.

    `nvme` is the device, `driver` its software driver, `iommu` the unit's driver and `domain` what
    the controller is attached to: `MEMORY` at `IOVA`, and nothing else.
    """

    def __init__(self, vendor=None, nvme=None, **options):
        self.machine = Machine(16 << 20, **options)
        self.memory = self.machine.memory
        self.iommu = self.domain = None
        self.nvme = self.machine.attach(nvme or Nvme(), "00:03.0")
        if vendor == "vtd":
            unit = VtdUnit(self.machine, VtdConfig(base=0xFED9_0000))
            self.iommu = VtdDriver(self.machine, unit, TABLES)
        elif vendor == "amdvi":
            unit = AmdviUnit(self.machine, AmdviConfig(base=0xFEB8_0000))
            self.iommu = AmdviDriver(self.machine, unit, TABLES, buses=1)
        if self.iommu is not None:
            self.iommu.start()
            self.domain = self.iommu.create_domain()
            self.iommu.attach(self.domain, self.nvme.address)
            self.domain.map(IOVA, MEMORY.start, len(MEMORY), page_size=PAGE)
        self.driver = NvmeDriver(self.machine, self.nvme, MEMORY, None if vendor is None else IOVA)

    def ready(self, entries=32, *, msix=True):
        """Enable the controller with I/O queue pair 1 of `entries` entries."""
        if msix:
            self.driver.use_msix(4)
        self.driver.enable()
        self.driver.create_queues(1, entries, vector=int(msix))
        self.machine.interrupts.clear()
        return self

    @property
    def io(self):
        return self.driver.io[1]

    def admin(self, opcode, **fields):
        return self.driver.execute(opcode, **fields)

    def command(self, opcode, **fields):
        """Do one I/O command by queue pair 1, with namespace 1 unless told otherwise."""
        return self.driver.execute(opcode, self.io, **{"nsid": 1} | fields)

    def buffer(self, data):
        """Return a buffer that is filled with data."""
        buffer = self.driver.allocate(len(data))
        self.memory.write(buffer.physical, data)
        return buffer

    def content(self, buffer):
        return self.memory.read(buffer.physical, buffer.size)

    def write(self, first, data):
        buffer = self.buffer(data)
        return self.driver.transfer(NvmOpcode.WRITE, first, len(data) // BLOCK, buffer)

    def read(self, first, blocks):
        """Return blocks as the host reads them."""
        buffer = self.driver.allocate(blocks * BLOCK)
        reply = self.driver.transfer(NvmOpcode.READ, first, blocks, buffer)
        assert reply.ok, reply
        return self.content(buffer)

    def identify(self, cns, nsid=0):
        buffer = self.driver.allocate(PAGE)
        reply = self.admin(AdminOpcode.IDENTIFY, prp1=buffer.iova, nsid=nsid, cdw10=cns)
        assert reply.ok, reply
        return self.content(buffer)

    def log(self, page, length, *, nsid=0xFFFF_FFFF, offset=0, retain=False):
        buffer = self.driver.allocate(PAGE)
        reply = self.admin(
            AdminOpcode.GET_LOG_PAGE,
            nsid=nsid,
            prp1=buffer.iova,
            cdw10=page | retain << 15 | (length // 4 - 1) << 16,
            cdw12=offset,
        )
        assert reply.ok, reply
        return self.content(buffer)[:length]

    def set_feature(self, feature, value, **fields):
        return self.admin(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=value, **fields)

    def get_feature(self, feature, select=0, value=0):
        return self.admin(AdminOpcode.GET_FEATURES, cdw10=feature | select << 8, cdw11=value)

    @property
    def csts(self):
        return self.driver.read(CSTS)


def pattern(length, seed=0):
    """Return bytes in which no two blocks are alike."""
    words = (((seed << 20) + n).to_bytes(4, "little") for n in range(length // 4))
    return b"".join(words)
