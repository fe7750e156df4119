"""Source validation, translation blocking and egress control of ports (pci 4)."""

import pytest
from pci_bed import Bed, Registers, Target, switch_on

from iommu_emu import Status
from iommu_emu.core import Access, AddressType
from iommu_emu.pci.capabilities import Acs, PortType
from iommu_emu.pci.topology import FirmwareAlias

REFUSED = Status.UNSUPPORTED_REQUEST
BLOCKED = [at for at in AddressType if at is not AddressType.UNTRANSLATED]


# Translation blocking.


@pytest.mark.parametrize("at", BLOCKED)
@pytest.mark.parametrize("where", ["root port", "port 0"])
def test_acs_translation_blocking_drops_without_a_fault(bed: Bed, where: str, at: AddressType):
    switch_on(bed.root if where == "root port" else bed.ports[0], Acs.TRANSLATION_BLOCKING)
    completion = bed.devices[0].read(0x1000, 8, at=at)
    assert (completion.status, completion.fault) == (REFUSED, 0)
    assert bed.unit.read("FSTS") == 0


def test_acs_translation_blocking_lets_untranslated_requests_pass(bed: Bed):
    switch_on(bed.root, Acs.TRANSLATION_BLOCKING)
    assert bed.devices[0].read(0x1000, 8).fault


def test_acs_translation_blocking_is_no_matter_of_other_ports(bed: Bed):
    switch_on(bed.ports[1], Acs.TRANSLATION_BLOCKING)
    assert bed.devices[0].read(0x1000, 8, at=AddressType.TRANSLATED).fault


# Source validation.


def spoofed(bed: Bed, requester: int) -> tuple[Status, bool]:
    completion = bed.devices[0].read(0x1000, 8, requester=requester)
    return completion.status, completion.fault != 0


def test_acs_source_validation_drops_what_is_from_another_bus(bed: Bed):
    switch_on(bed.root, Acs.SOURCE_VALIDATION)
    assert spoofed(bed, 0x0010) == (REFUSED, False)
    assert spoofed(bed, bed.root.subordinate_number + 1 << 8) == (REFUSED, False)


def test_acs_source_validation_takes_any_bus_below(bed: Bed):
    switch_on(bed.root, Acs.SOURCE_VALIDATION)
    assert spoofed(bed, bed.devices[1].address) == (REFUSED, True)


def test_acs_source_validation_of_the_nearest_port_is_the_tightest(bed: Bed):
    switch_on(bed.ports[0], Acs.SOURCE_VALIDATION)
    assert spoofed(bed, bed.devices[1].address) == (REFUSED, False)


def test_acs_source_validation_is_no_matter_of_function_numbers(bed: Bed):
    switch_on(bed.ports[0], Acs.SOURCE_VALIDATION)
    assert spoofed(bed, bed.devices[0].address | 7) == (REFUSED, True)


def test_acs_source_validation_switched_off_lets_it_pass(bed: Bed):
    assert spoofed(bed, 0x0010) == (REFUSED, True)


def test_acs_source_validation_follows_the_bus_numbers(bed: Bed):
    switch_on(bed.ports[0], Acs.SOURCE_VALIDATION)
    old = bed.devices[0].address
    bed.ports[0].set_bus_numbers(0x40, 0x40)
    assert spoofed(bed, old) == (REFUSED, False)
    assert bed.devices[0].read(0x1000, 8).fault


def test_acs_source_validation_comes_before_peers(bed: Bed):
    switch_on(bed.ports[0], Acs.SOURCE_VALIDATION)
    assert bed.reaches(bed.devices[0], bed.devices[1], requester=0x0010) == ""


def test_acs_source_validation_knows_nothing_of_what_firmware_makes_of_an_id(bed: Bed):
    switch_on(bed.root, Acs.SOURCE_VALIDATION)
    own = bed.devices[0].address
    bed.machine.fabric.firmware_aliases.append(FirmwareAlias(0, own, own, 0x00A5))
    bed.machine.topology_changed()
    assert bed.devices[0].dma.requester == 0x00A5
    assert bed.devices[0].read(0x1000, 8).fault


@pytest.mark.parametrize("kind", [None, PortType.PCIE_TO_PCI])
def test_acs_source_validation_takes_what_bridges_make_of_an_id(bed: Bed, kind: PortType | None):
    for port in (bed.root, bed.ports[0]):
        switch_on(port, Acs.SOURCE_VALIDATION)
    bridge = bed.machine.attach(Registers("bridge", kind), under=bed.ports[0])
    card = bed.machine.attach(Target("card"), under=bridge)
    assert card.read(0x1000, 8).fault


class WithPhantoms(Target):
    """A device whose function 0 uses the numbers of all others."""

    phantom_bits = 3


def test_acs_source_validation_lets_phantom_functions_pass(bed: Bed):
    device = bed.machine.attach(WithPhantoms("phantoms"), 0x20, under=bed.ports[0])
    switch_on(bed.ports[0], Acs.SOURCE_VALIDATION)
    device.config.write(device.pcie + 8, 2, 1 << 9)
    assert all(device.read(0x1000, 8, requester=phantom).fault for phantom in device.phantoms)


def test_acs_posted_write_is_dropped_at_the_port(bed: Bed):
    switch_on(bed.root, Acs.TRANSLATION_BLOCKING)
    bed.unit.reset()
    port = bed.devices[0].dma
    port.transfer(Access.WRITE, 0x1000, b"data", at=AddressType.TRANSLATED, posted=True)
    assert bed.machine.memory.read(0x1000, 4) == bytes(4)


# Egress control: one bit for each port of the switch, or function of the device.


def test_acs_egress_control_refuses_the_ports_of_its_vector(bed: Bed):
    switch_on(bed.ports[0], Acs.EGRESS_CONTROL, vector=1 << 1)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == ""


def test_acs_egress_control_lets_others_pass(bed: Bed):
    switch_on(bed.ports[0], Acs.EGRESS_CONTROL, vector=~(1 << 1) & 0xFFFFFFFF)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


@pytest.mark.parametrize(("vector", "arrival"), [(0, "peer"), (1 << 1, "IOMMU")])
def test_acs_egress_control_chooses_what_is_redirected(bed: Bed, vector: int, arrival: str):
    switch_on(bed.ports[0], Acs.EGRESS_CONTROL | Acs.REQUEST_REDIRECT, vector=vector)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == arrival


def test_acs_egress_control_without_its_service_is_nothing(bed: Bed):
    switch_on(bed.ports[0], Acs.NONE, vector=0xFFFFFFFF)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


def test_acs_capability_tells_the_size_of_its_vector(bed: Bed):
    at = bed.ports[0].config.find_extended(0x0D)
    assert bed.ports[0].config.read(at + 4, 2) == 32 << 8 | 0x7F


def test_acs_downstream_ports_are_numbered_as_their_devices(bed: Bed):
    numbers = [port.config.read(port.pcie + 0x0C, 4) >> 24 for port in bed.ports]
    assert numbers == [0, 1]


def test_acs_rules_say_why(bed: Bed):
    switch_on(bed.root, Acs.TRANSLATION_BLOCKING)
    rule = bed.devices[0].dma.rules[-1]
    assert rule.reason == "translation blocking of root port at 00:01.0"


@pytest.mark.parametrize("numbers", [(0, 0), (1, 0xFF), (0xFF, 0), (0, 0xFF)])
def test_acs_source_validation_stands_bus_numbers_that_make_no_sense(
    bed: Bed, numbers: tuple[int, int]
):
    switch_on(bed.root, Acs.SOURCE_VALIDATION)
    bed.root.set_bus_numbers(*numbers)
    below = range(numbers[0] << 8, (numbers[1] << 8 | 0xFF) + 1)
    for requester in (0, 0x0010, 0x0200, 0xFE00, 0xFFFF):
        assert spoofed(bed, requester) == (REFUSED, requester in below)
