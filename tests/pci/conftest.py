import pytest
from pci_bed import Bed, Registers, Target

from iommu_emu import Machine
from iommu_emu.pci.capabilities import PortType
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


@pytest.fixture
def machine() -> Machine:
    return Machine(1 << 20)


@pytest.fixture
def unit(machine: Machine) -> VtdUnit:
    unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000, geometry="tiny-2"))
    unit.write("RTADDR", 0)
    unit.write("GCMD", unit.field_info("GCMD", "SRTP").mask)
    unit.write("GCMD", unit.field_info("GCMD", "TE").mask)
    return unit


@pytest.fixture
def bed(machine: Machine, unit: VtdUnit) -> Bed:
    root = machine.attach(Registers("root port", PortType.ROOT_PORT))
    upstream = machine.attach(Registers("upstream port", PortType.UPSTREAM), under=root)
    ports = [
        machine.attach(Registers(f"port {n}", PortType.DOWNSTREAM), n << 3, under=upstream)
        for n in range(2)
    ]
    devices = [machine.attach(Target(f"device {n}"), under=port) for n, port in enumerate(ports)]
    return Bed(machine, unit, root, upstream, ports, devices)
