import pytest

from iommu_emu.linux.scatter_list import finalise, lay_out

PAGE = 4096
FIRST = 0x8000_0000
PCI = 0xFFFF_FFFF
LONGEST = 64 << 10


def entries(segments, *, longest=LONGEST, boundary=PCI):
    return finalise(FIRST, lay_out(segments, PAGE, boundary), longest, boundary)


def test_scatter_list_pieces_follow_each_other_in_whole_granules():
    pieces = lay_out([(0x1800, 0x100), (0x9F00, 0x200)], PAGE, PCI)
    assert [(p.extent.iova_offset, p.extent.physical, p.extent.size) for p in pieces] == [
        (0, 0x1000, 0x1000),
        (0x1000, 0x9000, 0x2000),
    ]


def test_scatter_list_page_aligned_neighbours_are_merged():
    assert entries([(0x1000, PAGE), (0x9000, PAGE), (0x5000, 100)]) == [(FIRST, 2 * PAGE + 100)]


def test_scatter_list_entry_that_begins_inside_a_page_is_not_merged():
    assert entries([(0x1000, PAGE), (0x9800, 0x800)]) == [
        (FIRST, PAGE),
        (FIRST + PAGE + 0x800, 2048),
    ]


def test_scatter_list_entry_behind_one_that_ends_inside_a_page_is_not_merged():
    assert entries([(0x1000, 100), (0x9000, PAGE)]) == [(FIRST, 100), (FIRST + PAGE, PAGE)]


def test_scatter_list_merging_stops_at_the_longest_segment():
    merged = entries([(0x1000, PAGE)] * 3, longest=2 * PAGE)
    assert merged == [(FIRST, 2 * PAGE), (FIRST + 2 * PAGE, PAGE)]


def test_scatter_list_is_padded_so_that_no_entry_crosses_a_boundary():
    boundary = 4 * PAGE - 1
    pieces = lay_out([(0x10000, 3 * PAGE), (0x20000, 2 * PAGE)], PAGE, boundary)
    assert [(p.extent.iova_offset, p.extent.size) for p in pieces] == [
        (0, 4 * PAGE),  # a page of padding: what lies behind the entry is mapped
        (4 * PAGE, 2 * PAGE),
    ]
    assert finalise(FIRST, pieces, LONGEST, boundary) == [
        (FIRST, 3 * PAGE),
        (FIRST + 4 * PAGE, 2 * PAGE),
    ]


def test_scatter_list_entries_are_not_merged_across_a_boundary():
    boundary = 2 * PAGE - 1
    merged = entries([(0x10000, 2 * PAGE), (0x20000, PAGE)], boundary=boundary)
    assert merged == [(FIRST, 2 * PAGE), (FIRST + 2 * PAGE, PAGE)]


@pytest.mark.parametrize("boundary", [0x7FF, 0x1800])
def test_scatter_list_boundary_that_makes_no_sense_is_refused(boundary):
    with pytest.raises(ValueError, match="boundary must be"):
        lay_out([(0, 1)], PAGE, boundary)


def test_scatter_list_boundary_may_be_a_page():
    assert entries([(0x10000, PAGE), (0x20000, PAGE)], boundary=PAGE - 1) == [
        (FIRST, PAGE),
        (FIRST + PAGE, PAGE),
    ]


def test_scatter_list_entry_of_a_peer_stays_as_it_is():
    segments = [(0x1000, PAGE), (0xE000_0000, PAGE), (0x9000, PAGE)]
    pieces = lay_out(segments, PAGE, PCI, lambda address, size: address >= 0xE000_0000)
    assert finalise(FIRST, pieces, LONGEST, PCI) == [
        (FIRST, PAGE),
        (0xE000_0000, PAGE),
        (FIRST + PAGE, PAGE),
    ]
