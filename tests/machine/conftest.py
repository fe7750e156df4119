from collections.abc import Callable

import pytest

from iommu_emu import Machine
from iommu_emu.unit import Unit
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BASE = 0xFED9_0000


@pytest.fixture
def machine() -> Machine:
    return Machine(1 << 20)


@pytest.fixture
def unit(machine: Machine) -> VtdUnit:
    return VtdUnit(machine, VtdConfig(base=BASE, geometry="tiny-2"))


def _block_everything(unit: Unit) -> None:
    unit.write("RTADDR", 0)
    unit.write("GCMD", unit.field_info("GCMD", "SRTP").mask)
    unit.write("GCMD", unit.field_info("GCMD", "TE").mask)


@pytest.fixture
def block_everything() -> Callable[[Unit], None]:
    """Switches translation on with a root table of zeros at 0: every request faults."""
    return _block_everything
