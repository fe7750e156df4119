from guest_samples import DATA

from iommu_emu.guest.mappings import leaf_entry, mappings_of

MIB2 = 2 << 20


def find(watched, requester=0x0028):
    return mappings_of(watched.unit, watched.machine.memory, requester)


def test_mappings_count_leaves_by_size(watched):
    watched.domain.map(0x5000, DATA, 3 * 4096)
    watched.domain.map(0x4000_0000, 0, MIB2)
    found = find(watched)
    assert found.pages == {4096: 3, MIB2: 1}
    assert found.mapped == 3 * 4096 + MIB2


def test_mappings_of_an_empty_domain_are_none(watched):
    assert find(watched).pages == {}


def test_mappings_of_a_requester_without_a_domain_are_unknown(watched):
    assert find(watched, 0x0100) is None


def test_mappings_outside_memory_are_unknown(watched):
    watched.unit.write("RTADDR", 0xFFFF_F000)
    assert find(watched) is None


def test_mappings_of_tables_that_link_to_themselves_end(watched):
    watched.domain.map(0x5000, DATA, 4096)
    memory = watched.machine.memory
    root = watched.domain.table.root
    for index in range(512):
        memory.write_u64(root + 8 * index, root | 3)
    assert find(watched).pages == {}  # the last level is never reached


def test_mappings_leaf_entry_is_found_and_says_what_it_maps(watched):
    watched.domain.map(0x5000, DATA, 4096)
    at, value = leaf_entry(watched.unit, watched.machine.memory, 0x0028, 0x5FFF)
    assert watched.machine.memory.read_u64(at) == value
    assert value & ~0xFFF & (1 << 52) - 1 == DATA


def test_mappings_leaf_entry_of_a_large_page_is_found(watched):
    watched.domain.map(0x4000_0000, 0, MIB2)
    _, value = leaf_entry(watched.unit, watched.machine.memory, 0x0028, 0x401F_FFFF)
    assert value & 0x80


def test_mappings_leaf_entry_of_nothing_is_none(watched):
    memory = watched.machine.memory
    assert leaf_entry(watched.unit, memory, 0x0028, 0x5000) is None
    assert leaf_entry(watched.unit, memory, 0x0100, 0x5000) is None


def test_mappings_leaf_entry_without_its_present_bits_stops_the_device(watched):
    watched.domain.map(0x5000, DATA, 4096)
    memory = watched.machine.memory
    at, value = leaf_entry(watched.unit, memory, 0x0028, 0x5000)
    memory.write_u64(at, value & ~3)
    assert watched.device.read(0x5000, 4).fault == 6
