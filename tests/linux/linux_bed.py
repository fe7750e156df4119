"""What the tests of the kernel and its DMA API share: a machine, a kernel, a hostile device."""

from iommu_emu import Bridge, Machine
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.devices import MaliciousDevice
from iommu_emu.direction import Direction
from iommu_emu.linux.kernel import Linux
from iommu_emu.pci.capabilities import Acs
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL
PAGE = 4096
FRAMES = range(0x10_0000, 0x50_0000)
RAM = range(0x50_0000, 0x100_0000)
TOP = 0xFFFF_F000  # the first IOVA that a domain hands out
ACS = (
    Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
)


def new_machine(iommu, **config):
    machine = Machine(16 << 20)
    if iommu == "vtd":
        VtdUnit(machine, VtdConfig(base=0xFED9_0000, **config))
    else:
        AmdviUnit(machine, AmdviConfig(base=0xFED8_0000, window=1 << 14, **config))
    return machine


def new_port(machine, *, external=False, acs=ACS):
    return machine.attach(Bridge("port", acs=acs, external_facing=external))


def boot(machine, parameters="", **options):
    arguments = {"ram": RAM, "frames": FRAMES, "pool_size": 1 << 20, "cpus": 2, **options}
    return Linux(machine, parameters=parameters, **arguments)


class Bed:
    """A kernel and one device below a port of its own.

    Args:
        iommu: "vtd" or "amdvi".
        parameters: command line.
        external: whether the port is external-facing.
        config: of the unit.
        options: further arguments of `Linux`.
    """

    def __init__(self, iommu, parameters="", *, external=False, config=None, **options):
        self.machine = new_machine(iommu, **(config or {}))
        port = new_port(self.machine, external=external)
        self.evil = self.machine.attach(MaliciousDevice("evil"), under=port)
        self.linux = boot(self.machine, parameters, **options)
        self.dma = self.linux.dma
        self.device = self.linux.device(self.evil)

    def plug(self, function, *, external=False):
        """Plug a function into a new port; return what the kernel makes of it."""
        port = new_port(self.machine, external=external)
        self.linux.add(port)
        self.machine.attach(function, under=port)
        return self.linux.add(function)

    def buffer(self, data=b"", size=PAGE, owner="kernel"):
        """Return the address of memory with some data in it."""
        physical = self.linux.memory.kmalloc(size, owner)
        self.machine.memory.write(physical, data)
        return physical

    def memory(self, address, size):
        return self.machine.memory.read(address, size)

    def log(self):
        return [line.text for line in self.linux.log]
