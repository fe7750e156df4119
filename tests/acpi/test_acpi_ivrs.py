"""IVRS: which block counts for an IOMMU, and which requester IDs it means."""

from acpi_samples import needs_real, real

from iommu_emu.acpi.ivrs import (
    AliasEntry,
    DeviceEntry,
    ExtendedEntry,
    HidEntry,
    Ivhd10,
    Ivhd11,
    Ivrs,
    SpecialEntry,
)


def resolved(*entries):
    return [tuple(requesters)[:5] for requesters in Ivhd10(entries=list(entries)).requesters()]


def test_requesters_select():
    assert resolved(DeviceEntry(type=2, device_id=0x10, setting=7)) == [(0x10, 0x10, None, 7, 0)]


def test_requesters_all():
    assert resolved(DeviceEntry(type=1, setting=1)) == [(0, 0xFFFF, None, 1, 0)]


def test_requesters_range_takes_setting_of_its_start():
    start = DeviceEntry(type=3, device_id=8, setting=0xD7)
    end = DeviceEntry(type=4, device_id=0xFFFE, setting=1)
    assert resolved(start, end) == [(8, 0xFFFE, None, 0xD7, 0)]


def test_requesters_alias_select():
    entry = AliasEntry(type=0x42, device_id=0x500, source_device_id=0xA4)
    assert resolved(entry) == [(0x500, 0x500, 0xA4, 0, 0)]


def test_requesters_alias_range():
    start = AliasEntry(type=0x43, device_id=0x500, source_device_id=0xA4)
    assert resolved(start, DeviceEntry(type=4, device_id=0x5FF)) == [(0x500, 0x5FF, 0xA4, 0, 0)]


def test_requesters_extended_select():
    entry = ExtendedEntry(type=0x46, device_id=1, extended=1 << 31)
    assert resolved(entry) == [(1, 1, None, 0, 1 << 31)]


def test_requesters_extended_range():
    start = ExtendedEntry(type=0x47, device_id=1, extended=5)
    assert resolved(start, DeviceEntry(type=4, device_id=2)) == [(1, 2, None, 0, 5)]


def test_requesters_hid_device():
    assert resolved(HidEntry(device_id=0xA5, setting=0x40)) == [(0xA5, 0xA5, None, 0x40, 0)]


def test_requesters_range_of_one():
    start, end = DeviceEntry(type=3, device_id=8), DeviceEntry(type=4, device_id=8)
    assert resolved(start, end) == [(8, 8, None, 0, 0)]


def test_requesters_start_without_end_assigns_nothing():
    assert resolved(DeviceEntry(type=3, device_id=8)) == []


def test_requesters_end_without_start_assigns_nothing():
    assert resolved(DeviceEntry(type=4, device_id=8)) == []


def test_requesters_reversed_range_assigns_nothing():
    assert resolved(DeviceEntry(type=3, device_id=8), DeviceEntry(type=4, device_id=7)) == []


def test_requesters_skip_padding_and_specials():
    assert resolved(DeviceEntry(type=0), SpecialEntry(handle=1)) == []


def test_specials_and_hid_devices_apart():
    special, hid = SpecialEntry(handle=33), HidEntry(hid="AMDI0020")
    block = Ivhd11(entries=[special, hid])
    assert (block.specials(), block.hid_devices()) == ([special], [hid])


def test_blocks_choose_highest_type():
    table = Ivrs(structures=[Ivhd10(), Ivhd11(), Ivhd11(type=0x40)])
    assert [block.type for block in table.blocks()] == [0x40]


def test_blocks_choose_among_understood():
    table = Ivrs(structures=[Ivhd10(), Ivhd11(), Ivhd11(type=0x40)])
    assert [block.type for block in table.blocks(understood=(0x10, 0x11))] == [0x11]


def test_blocks_one_per_iommu_and_segment():
    table = Ivrs(structures=[Ivhd11(device_id=2), Ivhd10(device_id=2, segment=1), Ivhd10()])
    assert [(b.type, b.segment, b.device_id) for b in table.blocks()] == [
        (0x11, 0, 2),
        (0x10, 1, 2),
        (0x10, 0, 0),
    ]


@needs_real
def test_blocks_of_four_interleaved_iommus():
    blocks = real("ROG-ZENITH-II").blocks()
    assert [(b.type, b.device_id) for b in blocks] == [
        (0x11, 0x6002),
        (0x11, 0x4002),
        (0x11, 0x2002),
        (0x11, 0x0002),
    ]


@needs_real
def test_requesters_of_real_table():
    (block,) = real("Zenbook-S-16").blocks()
    assert [tuple(r)[:4] for r in block.requesters()] == [
        (0x0003, 0xFFFE, None, 0),
        (0xFF00, 0xFFFF, 0xA5, 0),
        *[(0xA5, 0xA5, None, 0x40)] * 4,
        (0x60, 0x60, None, 0x40),
    ]
