"""AMD-Vi registers: map, access kinds, rings, Run bits, reset (AMD-Vi 3)."""

from __future__ import annotations

import pytest
from amdvi_core_bench import (
    CMD_BUF_EN,
    CMD_RUN,
    COMMANDS,
    DEVICE,
    DEVICE_TABLE,
    EVENT_INT,
    EVENT_LOG_EN,
    EVENT_RUN,
    EVENTS,
    EVERYTHING,
    INVALIDATE_ALL_SUP,
    IOMMU_EN,
    REGISTERS,
    RUNNING,
    Amdvi,
    bits_of,
    completion_wait,
    dte,
    invalidate_domain,
)

from iommu_emu import core
from iommu_emu.core import FieldAccess, Outcome, Reset, Vendor

NO_FEATURES = INVALIDATE_ALL_SUP  # nothing that adds a control bit or a register
ALL_ONES = (1 << 64) - 1

# Writable bits without any feature (3.2 to 3.7).
WRITABLE = {
    "DevTabBase": bits_of((8, 0), (51, 12)),
    "CmdBufBase": bits_of((51, 12), (59, 56)),
    "EvtLogBase": bits_of((51, 12), (59, 56)),
    "Control": bits_of((12, 0), 59) & ~(IOMMU_EN | EVENT_LOG_EN | CMD_BUF_EN),
    "ExclBase": bits_of(0, 1, (51, 12)),
    "ExclLimit": bits_of((51, 12)),
    "EFR": 0,
    "MsiCapHdr": 0,
    "MsiAddrLow": 0,
    "MsiAddrHigh": 0,
    "MsiData": 0,
    "Status": 0,
}


@pytest.fixture
def off() -> Amdvi:
    """A unit as it is after reset."""
    return Amdvi(efr=NO_FEATURES, on=False)


@pytest.mark.parametrize(("name", "mask"), WRITABLE.items())
def test_register_stores_its_defined_bits_and_no_others(off: Amdvi, name: str, mask: int) -> None:
    before = off.read(name)
    off.write(
        name, ALL_ONES >> 64 - 8 * REGISTERS[name][1] & ~(RUNNING if name == "Control" else 0)
    )
    assert off.read(name) == before | mask


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "EFR"])
def test_register_resets_to_0(off: Amdvi, name: str) -> None:
    off.write(name, ALL_ONES >> 64 - 8 * REGISTERS[name][1])
    off.unit.reset(Reset.POWER_ON)
    assert off.read(name) == 0


@pytest.mark.parametrize("name", ["CmdBufHead", "CmdBufTail", "EvtLogHead", "EvtLogTail"])
@pytest.mark.parametrize("length", [8, 15])
def test_pointer_is_cut_to_its_ring(off: Amdvi, name: str, length: int) -> None:
    off.write("CmdBufBase", length << 56)
    off.write("EvtLogBase", length << 56)
    off.write(name, ALL_ONES)
    assert off.read(name) == (16 << length) - 16


def test_efr_reports_the_configuration_and_is_read_only() -> None:
    off = Amdvi(efr=EVERYTHING, on=False)
    off.write("EFR", 0)
    assert off.read("EFR") == EVERYTHING


@pytest.mark.parametrize(
    "bit", [n for n in range(64) if not EVERYTHING >> n & 1 and n not in (10, 11)]
)
def test_unit_refuses_a_feature_that_is_not_implemented(bit: int) -> None:
    with pytest.raises(ValueError, match="AMDVI unit"):
        Amdvi(efr=1 << bit)


def test_unit_refuses_a_window_that_is_taken() -> None:
    off = Amdvi(on=False)
    with pytest.raises(core.OverlapError):
        off.machine.create_amdvi(off.config)
    assert len(off.machine.units) == 1


def test_unit_refuses_another_window() -> None:
    with pytest.raises(ValueError, match="AMDVI unit"):
        Amdvi(window=0x8000)


def test_msi_registers_are_there_with_their_feature() -> None:
    off = Amdvi(efr=EVERYTHING, on=False)
    for name in ("MsiCapHdr", "MsiAddrLow", "MsiAddrHigh", "MsiData"):
        off.write(name, 0xFFFF_FFFF)
    assert off.read("MsiCapHdr") == 0x00F1_0005
    assert off.read("MsiAddrLow") == 0xFFFF_FFFC
    assert off.read("MsiAddrHigh") == 0xFFFF_FFFF
    assert off.read("MsiData") == 0xFFFF


@pytest.mark.parametrize("offset", [0x0038, 0x1FF8, 0x3FF8])
def test_reserved_offset_reads_0_and_ignores_writes(off: Amdvi, offset: int) -> None:
    off.unit.mmio_write(offset, 8, ALL_ONES)
    assert off.unit.mmio_read(offset, 8) == 0


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (0x4000, 8)])
def test_access_of_another_kind_is_dropped(off: Amdvi, offset: int, size: int) -> None:
    off.unit.mmio_write(offset, size, ALL_ONES >> 64 - 8 * size)
    assert [off.read(name) for name in ("DevTabBase", "CmdBufBase")] == [0, 0]
    assert off.unit.mmio_read(offset, size) == 0


def test_register_takes_two_dwords(off: Amdvi) -> None:
    off.unit.mmio_write(0x0000, 4, 0x0002_01FF)
    off.unit.mmio_write(0x0004, 4, 0x0000_0012)
    assert off.read("DevTabBase") == 0x12_0002_01FF
    assert off.unit.mmio_read(0x0004, 4) == 0x12


def test_field_table_names_every_access_kind_that_the_unit_has() -> None:
    kinds = {row.access for row in core.fields(Vendor.AMDVI)}
    assert kinds == {FieldAccess.RO, FieldAccess.RW, FieldAccess.RW1C}


def test_field_that_needs_a_feature_is_absent_without_it(off: Amdvi) -> None:
    absent = {row.name for row in core.fields(Vendor.AMDVI) if not off.unit.has_field(row.index)}
    assert {"GTEn", "PprEn", "XTEn", "GAEn", "Address", "Data"} <= absent
    assert not {"IommuEn", "CmdBufEn", "HATS"} & absent


# ---- rings and Run bits (3.3, 3.4) ------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "run"),
    [
        (IOMMU_EN, 0),
        (CMD_BUF_EN | EVENT_LOG_EN, 0),
        (IOMMU_EN | CMD_BUF_EN, CMD_RUN),
        (IOMMU_EN | EVENT_LOG_EN, EVENT_RUN),
        (RUNNING, CMD_RUN | EVENT_RUN),
    ],
)
def test_run_bits_follow_the_enables(off: Amdvi, control: int, run: int) -> None:
    off.start(control)
    assert off.read("Status") == run


def test_run_bits_clear_with_the_unit() -> None:
    bench = Amdvi()
    bench.write("Control", CMD_BUF_EN | EVENT_LOG_EN)
    assert bench.read("Status") == 0


@pytest.mark.parametrize("length", range(8))
def test_ring_of_a_reserved_length_does_not_run(off: Amdvi, length: int) -> None:
    off.start(length=length)
    assert off.read("Status") == 0


def test_ring_runs_once_its_length_is_legal(off: Amdvi) -> None:
    off.start(length=7)
    off.write("CmdBufBase", COMMANDS | 8 << 56)
    assert off.read("Status") == CMD_RUN
    off.write("EvtLogBase", EVENTS | 8 << 56)
    assert off.read("Status") == CMD_RUN | EVENT_RUN


def test_base_write_resets_both_pointers(off: Amdvi) -> None:
    off.write("CmdBufBase", COMMANDS | 8 << 56)
    off.write("EvtLogBase", EVENTS | 8 << 56)
    names = ("CmdBufHead", "CmdBufTail", "EvtLogHead", "EvtLogTail")
    for name in names:
        off.write(name, 0x40)
    assert [off.read(name) for name in names] == [0x40] * 4
    off.write("CmdBufBase", COMMANDS | 8 << 56)
    assert [off.read(name) for name in names] == [0, 0, 0x40, 0x40]
    off.write("EvtLogBase", EVENTS | 8 << 56)
    assert [off.read(name) for name in names] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["CmdBufBase", "CmdBufHead", "EvtLogBase", "EvtLogTail"])
def test_running_ring_keeps_what_hardware_owns(name: str) -> None:
    bench = Amdvi()
    before = bench.read(name)
    bench.write(name, 9 << 56 | 0x5_0010)
    assert bench.read(name) == before


@pytest.mark.parametrize("name", ["CmdBufHead", "EvtLogHead", "EvtLogTail"])
def test_stopped_ring_takes_any_pointer(off: Amdvi, name: str) -> None:
    off.start(0)
    off.write(name, 0x50)
    assert off.read(name) == 0x50


def test_tail_before_the_enable_is_fetched_at_the_enable(off: Amdvi) -> None:
    off.start(0)
    off.submit(completion_wait(s=1, data=5))
    assert off.peek(0x3_0000) == 0
    off.write("Control", RUNNING)
    assert off.peek(0x3_0000) == 5


def test_status_bits_are_cleared_one_by_one(off: Amdvi) -> None:
    off.start()
    off.submit(completion_wait(i=1))
    off.translate(0x5000, device=0xFFFF)  # V=0 passes: no event
    assert off.read("Status") == CMD_RUN | EVENT_RUN | 4
    off.write("Status", EVENT_INT | CMD_RUN | EVENT_RUN)
    assert off.read("Status") == CMD_RUN | EVENT_RUN | 4
    off.write("Status", 4)
    assert off.read("Status") == CMD_RUN | EVENT_RUN


# ---- exclusion range (3.7) --------------------------------------------------------------------


def excluding(allow: int) -> Amdvi:
    bench = Amdvi()
    bench.attach().map(0x7000, 0x9000)
    bench.write("ExclLimit", 0x8000)
    bench.write("ExclBase", 0x7000 | allow << 1 | 1)
    return bench


@pytest.mark.parametrize(
    ("address", "output"), [(0x7000, 0x7000), (0x8FFC, 0x8FFC), (0x6FFC, None), (0x9000, None)]
)
def test_exclusion_passes_its_first_to_its_last_byte(address: int, output: int | None) -> None:
    assert excluding(allow=1).reads(address) == output


def test_exclusion_without_allow_needs_the_device_to_have_it() -> None:
    bench = excluding(allow=0)
    assert bench.reads(0x7000) == 0x9000
    bench.attach(0x18, low=1 << 103)
    assert bench.reads(0x7000, 0x18) == 0x7000


def test_exclusion_goes_before_a_cached_translation() -> None:
    bench = Amdvi()
    bench.attach().map(0x7000, 0x9000)
    assert bench.reads(0x7000) == 0x9000
    bench.write("ExclLimit", 0x7000)
    bench.write("ExclBase", 0x7000 | 3)
    assert bench.reads(0x7000) == 0x7000
    bench.write("ExclBase", 0)
    assert bench.reads(0x7000) == 0x9000


# ---- on, off, reset ---------------------------------------------------------------------------


def test_unit_that_is_off_passes_everything(off: Amdvi) -> None:
    result = off.translate(0x1234_5678)
    assert (result.outcome, result.address) == (Outcome.MEMORY, 0x1234_5678)


def test_switching_off_and_on_flushes_nothing() -> None:
    bench = Amdvi()
    leaf = bench.attach().map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    bench.write("Control", 0)
    assert bench.reads(0x5000) == 0x5000
    bench.poke(leaf, 0)
    bench.write("Control", RUNNING)
    assert bench.reads(0x5000) == 0x9000
    bench.submit(invalidate_domain())
    assert bench.reads(0x5000) is None


def test_switching_off_ends_the_quick_way_at_once() -> None:
    bench = Amdvi()
    bench.attach().map(0x5000, 0x9000)
    bench.write("ExclBase", 0)
    assert [bench.reads(0x5000), bench.reads(0x5000)] == [0x9000, 0x9000]
    bench.write("Control", 0)
    assert bench.reads(0x5000) == 0x5000


def test_reset_empties_the_caches_and_switches_off() -> None:
    bench = Amdvi()
    leaf = bench.attach().map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    bench.unit.reset()
    assert bench.reads(0x5000) == 0x5000
    bench.poke(leaf, 0)
    bench.start()
    assert bench.reads(0x5000) is None


def test_new_device_table_while_stopped_drops_cached_entries() -> None:
    bench = Amdvi()
    bench.set_dte(dte())
    assert bench.reads(0x5000) == 0x5000
    bench.write("Control", 0)
    bench.set_dte(dte(permissions=0))
    bench.write("DevTabBase", DEVICE_TABLE | 0x1FF)
    bench.write("Control", RUNNING)
    assert bench.reads(0x6000, DEVICE) is None


def test_new_device_table_while_running_keeps_cached_entries() -> None:
    bench = Amdvi()
    bench.set_dte(dte())
    assert bench.reads(0x5000) == 0x5000
    bench.set_dte(dte(permissions=0))
    bench.write("DevTabBase", DEVICE_TABLE | 0x1FF)
    assert bench.reads(0x6000) == 0x6000
