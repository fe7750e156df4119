"""Where a request to a peer's BAR goes, with and without request redirect (pci 4)."""

import pytest
from pci_bed import Bed, Registers, Target, switch_on

from iommu_emu import Status
from iommu_emu.core import AddressType
from iommu_emu.devices import MaliciousDevice
from iommu_emu.pci.capabilities import Acs, PortType

TRANSLATED = AddressType.TRANSLATED
REDIRECT = Acs.REQUEST_REDIRECT | Acs.UPSTREAM_FORWARDING


def test_acs_peer_below_the_same_switch_is_reached_past_the_iommu(bed: Bed):
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


def test_acs_peer_is_read_past_the_iommu(bed: Bed):
    completion = bed.devices[0].read(bed.devices[1].bar_address(0), 4)
    bed.machine.service()
    assert completion.data == b"\x5a\0\0\0"


def test_acs_request_redirect_sends_it_to_the_iommu(bed: Bed):
    switch_on(bed.ports[0], Acs.REQUEST_REDIRECT)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "IOMMU"


def test_acs_request_redirect_is_that_of_the_port_it_comes_by(bed: Bed):
    switch_on(bed.ports[1], Acs.REQUEST_REDIRECT)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


def test_acs_request_redirect_switched_off_again(bed: Bed):
    switch_on(bed.ports[0], Acs.REQUEST_REDIRECT)
    switch_on(bed.ports[0], Acs.NONE)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


@pytest.mark.parametrize("target", ["port", "upstream"])
def test_acs_registers_of_switch_ports_are_peers(bed: Bed, target: str):
    port = bed.ports[1] if target == "port" else bed.upstream
    assert bed.reaches(bed.devices[0], port) == "peer"
    switch_on(bed.ports[0], Acs.REQUEST_REDIRECT)
    assert bed.reaches(bed.devices[0], port) == "IOMMU"


def test_acs_registers_of_the_root_port_are_reached_through_the_iommu(bed: Bed):
    assert bed.reaches(bed.devices[0], bed.root) == "IOMMU"


def test_acs_device_below_another_root_port_is_reached_through_the_iommu(bed: Bed):
    other = bed.machine.attach(Registers("other", PortType.ROOT_PORT))
    target = bed.machine.attach(Target("target"), under=other)
    assert bed.reaches(bed.devices[0], target) == "IOMMU"


def test_acs_functions_of_the_root_bus_reach_each_other_through_the_iommu(bed: Bed):
    first = bed.machine.attach(Target("first"), "00:10.0")
    second = bed.machine.attach(Target("second"), "00:10.1")
    assert bed.reaches(first, second) == "IOMMU"


def test_acs_redirected_request_reaches_the_bar_it_is_translated_to(bed: Bed):
    switch_on(bed.ports[0], Acs.REQUEST_REDIRECT)
    bed.unit.reset()  # nothing is translated
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


def test_acs_memory_is_never_a_peers(bed: Bed):
    assert bed.devices[0].write(0x1000, b"data").fault


def test_acs_part_of_a_transfer_goes_to_a_peer(bed: Bed):
    completion = bed.devices[0].write(bed.devices[1].bar_address(0) + 4088, bytes(16))
    bed.machine.service()
    assert (completion.details.done, len(bed.devices[1].got)) == (8, 1)


def test_acs_moved_bar_is_followed(bed: Bed):
    old, new = bed.devices[1].bar_address(0), 0xF000_0000
    bed.devices[1].place_bar(0, new)
    assert bed.devices[0].write(old, b"data").fault
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "peer"


def test_acs_bar_that_is_not_decoded_is_nobodys(bed: Bed):
    bed.devices[1].config.write(4, 2, 1 << 2)
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "IOMMU"


def test_acs_removed_peer_is_nobodys(bed: Bed):
    address = bed.devices[1].bar_address(0)
    bed.machine.remove(bed.devices[1])
    assert bed.devices[0].write(address, b"data").fault


# Several functions in one device.


@pytest.fixture
def pair(bed: Bed) -> tuple[Target, Target]:
    """Two functions of one device below a root port."""
    port = bed.machine.attach(Registers("port of the pair", PortType.ROOT_PORT))
    first, second = (bed.machine.attach(Target(f"function {n}"), n, under=port) for n in range(2))
    return first, second


def test_acs_functions_of_one_device_reach_each_other(bed: Bed, pair: tuple[Target, Target]):
    assert bed.reaches(*pair) == "peer"


def test_acs_functions_of_one_device_with_request_redirect(bed: Bed, pair: tuple[Target, Target]):
    switch_on(pair[0], Acs.REQUEST_REDIRECT)
    assert bed.reaches(*pair) == "IOMMU"


def test_acs_reset_function_redirects_no_more(bed: Bed, pair: tuple[Target, Target]):
    switch_on(pair[0], Acs.REQUEST_REDIRECT)
    pair[0].reset()
    assert bed.reaches(*pair) == "peer"


# Conventional buses: nothing redirects.


@pytest.mark.parametrize("kind", [None, PortType.PCIE_TO_PCI])
def test_acs_conventional_bus_is_shared(bed: Bed, kind: PortType | None):
    switch_on(bed.root, REDIRECT)
    bridge = bed.machine.attach(Registers("bridge", kind), under=bed.ports[0])
    switch_on(bed.ports[0], REDIRECT)
    first, second = (
        bed.machine.attach(Target(f"card {n}"), n << 3, under=bridge) for n in range(2)
    )
    assert bed.reaches(first, second) == "peer"
    assert bed.reaches(first, bridge) == "peer"
    assert bed.reaches(first, bed.devices[1]) == "IOMMU"


# Address types.


def test_acs_translated_request_reaches_a_peer(bed: Bed):
    assert bed.reaches(bed.devices[0], bed.devices[1], at=TRANSLATED) == "peer"


def test_acs_translated_request_is_redirected(bed: Bed):
    switch_on(bed.ports[0], Acs.REQUEST_REDIRECT)
    assert bed.reaches(bed.devices[0], bed.devices[1], at=TRANSLATED) == "IOMMU"


def test_acs_direct_translated_is_not_redirected(bed: Bed):
    switch_on(bed.ports[0], Acs.REQUEST_REDIRECT | Acs.DIRECT_TRANSLATED)
    assert bed.reaches(bed.devices[0], bed.devices[1], at=TRANSLATED) == "peer"
    assert bed.reaches(bed.devices[0], bed.devices[1]) == "IOMMU"


def test_acs_translation_blocking_wins_over_direct_translated(bed: Bed):
    switch_on(bed.ports[0], Acs.TRANSLATION_BLOCKING | Acs.DIRECT_TRANSLATED)
    assert bed.reaches(bed.devices[0], bed.devices[1], at=TRANSLATED) == ""


# Back where it came from.


def own_bar(device: MaliciousDevice) -> Status:
    return device.write(device.bar_address(0), b"data").status


def test_acs_switch_sends_nothing_back(bed: Bed):
    assert bed.reaches(bed.devices[0], bed.devices[0]) == ""


def test_acs_upstream_forwarding_sends_it_to_the_iommu(bed: Bed):
    switch_on(bed.ports[0], Acs.UPSTREAM_FORWARDING)
    assert bed.reaches(bed.devices[0], bed.devices[0]) == "IOMMU"


def test_acs_root_port_always_forwards(bed: Bed):
    other = bed.machine.attach(Registers("other", PortType.ROOT_PORT))
    device = bed.machine.attach(Target("device"), under=other)
    assert bed.reaches(device, device) == "IOMMU"
