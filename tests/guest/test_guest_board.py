import pytest

from iommu_emu import acpi
from iommu_emu.guest.board import PORTS, UNIT_BASE, Board, build_dmar
from iommu_emu.guest.errors import GuestError


@pytest.fixture
def board():
    return Board.build()


def bridge(slot, bus):
    return {"slot": slot, "function": 0, "pci_bridge": {"bus": {"secondary": bus}}}


def test_board_dmar_names_two_endpoints_a_hot_plug_slot_and_nothing_else():
    table = acpi.parse(build_dmar())
    (unit,) = table.structures
    assert (unit.base_address, unit.include_pci_all) == (UNIT_BASE, False)
    assert [(s.type, s.start_bus, s.path) for s in unit.scopes] == [
        (1, 0, [(2, 0), (0, 0)]),
        (1, 0, [(3, 0), (0, 0)]),
        (2, 0, [(4, 0)]),  # with everything below it
    ]


def test_board_dmar_leaves_interrupt_remapping_off():
    assert acpi.parse(build_dmar()).flags == 0


def test_board_dmar_has_no_error_for_the_linter():
    findings = acpi.check(acpi.parse(build_dmar()))
    assert [finding for finding in findings if finding.severity == "error"] == []


def test_board_machine_has_no_memory_of_its_own(board):
    assert board.machine.memory.size == 0


def test_board_unit_serves_the_endpoints_and_the_slot(board):
    core = board.machine.core
    served = [r for r in range(0x10000) if core.routed_unit(0, r) is not None]
    assert served == [0x0020, 0x0100, 0x0200, *range(0x0300, 0x0400)]


def test_board_disks_differ_in_serial_number_and_interrupts(board):
    assert board.nvme.identity.controller() != board.pluggable.identity.controller()
    assert (board.nvme.msix is None, board.nvme.msi is None) == (False, True)
    assert (board.pluggable.msix is None, board.pluggable.msi is None) == (True, False)


def test_board_follows_the_bus_numbers_of_the_firmware(board):
    board.follow_buses(
        [{"bus": 0, "devices": [bridge(2, 9), bridge(3, 5), bridge(4, 7), {"slot": 31}]}]
    )
    assert {name: board.address(name) for name in PORTS} == {
        "nvme": 0x0900,
        "attacker": 0x0500,
        "pluggable": 0x0700,
    }
    assert board.machine.core.routed_unit(0, 0x0900) is not None
    assert board.machine.core.routed_unit(0, 0x0100) is None


def test_board_needs_a_bus_number_for_every_root_port(board):
    with pytest.raises(GuestError, match=r"gave root port 00:03\.0 no bus number$"):
        board.follow_buses([{"bus": 0, "devices": [bridge(2, 1), bridge(4, 3)]}])


def test_board_with_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset must be one of default, "):
        Board.build("no-such-unit")
