"""Physical region pages: every shape of a PRP list, against a naive model, and wrong ones."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_bed import BLOCK, IOVA, MEMORY, PAGE, UNMAPPED, Bed, pattern

from iommu_emu.devices.nvme.specification import NvmOpcode, StatusCode

POOL = 300  # pages that lists and data are taken from
DATA = pattern(512 << 10)


class Layout:
    """Pages in a random order, and what a naive reading of the list says."""

    def __init__(self, bed, draw):
        self.bed = bed
        self.start = MEMORY.start + (2 << 20)
        self.free = draw(st.permutations(range(POOL)))
        self.draw = draw

    def page(self):
        return self.start + PAGE * self.free.pop()

    def build(self, length, offset):
        """Return PRP1, PRP2 and the physical pieces for `length` bytes."""
        first = self.page() + offset
        pieces = [(first, min(length, PAGE - offset))]
        rest = length - pieces[0][1]
        pages = [self.page() for _ in range(-(-rest // PAGE))]
        for page in pages:
            pieces.append((page, min(rest, PAGE)))
            rest -= PAGE
        if len(pages) < 2:
            return first, pages[0] if pages else 0, pieces
        return first, self.chain(pages), pieces

    def chain(self, pages):
        """Store the entries as lists; the first one begins anywhere in its page."""
        address = head = self.page() + 8 * self.draw(st.integers(0, 511))
        while True:
            room = (PAGE - address % PAGE) // 8
            if len(pages) <= room:
                self.store(address, pages)
                return head
            following = self.page()
            self.store(address, [*pages[: room - 1], following])
            pages, address = pages[room - 1 :], following

    def store(self, address, entries):
        offset = IOVA - MEMORY.start
        data = struct.pack(f"<{len(entries)}Q", *(entry + offset for entry in entries))
        self.bed.memory.write(address, data)


@pytest.fixture(scope="module", params=["vtd", "amdvi"])
def shared(request):
    bed = Bed(request.param).ready(entries=8)
    bed.nvme.medium.write(0, DATA)
    return bed


@given(blocks=st.integers(1, 1024), dword=st.integers(0, 1023), data=st.data())
@settings(max_examples=60, deadline=None)
def test_prp_scatters_and_gathers_as_a_naive_walk_does(shared, blocks, dword, data):
    layout = Layout(shared, data.draw)
    length = blocks * BLOCK
    prp1, prp2, pieces = layout.build(length, 4 * dword)
    offset = IOVA - MEMORY.start
    fields = {"prp1": prp1 + offset, "prp2": prp2 + offset, "cdw12": blocks - 1}

    assert shared.command(NvmOpcode.READ, **fields).ok
    scattered = b"".join(shared.memory.read(address, size) for address, size in pieces)
    assert scattered == DATA[:length]

    shared.memory.write(pieces[-1][0], b"changed!")
    assert shared.command(NvmOpcode.WRITE, **fields).ok
    gathered = b"".join(shared.memory.read(address, size) for address, size in pieces)
    assert shared.nvme.medium.read(0, length) == gathered
    shared.nvme.medium.write(0, DATA)


@pytest.mark.parametrize("offset", [1, 2, 3, 513])
def test_prp_1_must_be_dword_aligned(nvme, offset):
    reply = nvme.command(NvmOpcode.READ, prp1=0x40_0000 + offset)
    assert (reply.status, reply.dnr) == (StatusCode.PRP_OFFSET_INVALID, True)


def test_prp_2_is_ignored_if_the_data_fits_in_one_page(nvme):
    buffer = nvme.driver.allocate(PAGE)
    assert nvme.command(NvmOpcode.READ, prp1=buffer.iova, prp2=0x1234_5677, cdw12=7).ok


@pytest.mark.parametrize("offset", [4, 8, 0x800])
def test_prp_2_that_points_to_data_must_have_offset_0(nvme, offset):
    buffer = nvme.driver.allocate(3 * PAGE)
    reply = nvme.command(
        NvmOpcode.READ, prp1=buffer.iova, prp2=buffer.iova + PAGE + offset, cdw12=15
    )
    assert reply.status is StatusCode.PRP_OFFSET_INVALID


@pytest.mark.parametrize("offset", [1, 2, 4, 0xFFC])
def test_prp_list_must_be_qword_aligned(nvme, offset):
    buffer = nvme.driver.allocate(4 * PAGE)
    reply = nvme.command(
        NvmOpcode.READ, prp1=buffer.iova, prp2=buffer.iova + PAGE + offset, cdw12=23
    )
    assert reply.status is StatusCode.PRP_OFFSET_INVALID


@pytest.mark.parametrize("wrong", [0, 1])
def test_prp_list_entries_must_have_offset_0(nvme, wrong):
    buffer = nvme.driver.allocate(4 * PAGE)
    entries = [buffer.iova + PAGE, buffer.iova + 2 * PAGE]
    entries[wrong] += 8
    prp_list = nvme.buffer(struct.pack("<2Q", *entries))
    reply = nvme.command(NvmOpcode.READ, prp1=buffer.iova, prp2=prp_list.iova, cdw12=23)
    assert reply.status is StatusCode.PRP_OFFSET_INVALID
    assert nvme.content(buffer) == bytes(4 * PAGE)


def test_prp_list_must_go_on_at_offset_0(nvme):
    buffer = nvme.driver.allocate(PAGE)
    prp_list = nvme.driver.allocate(PAGE)
    last = prp_list.physical + PAGE - 8
    nvme.memory.write_u64(last, prp_list.iova + 8)
    reply = nvme.command(NvmOpcode.READ, prp1=buffer.iova, prp2=prp_list.iova + PAGE - 8, cdw12=23)
    assert reply.status is StatusCode.PRP_OFFSET_INVALID


def test_prp_list_that_loops_ends_with_the_length(nvme):
    """With 128 entries wanted, a page of 512 is never used up: only its start is read."""
    prp_list = nvme.driver.allocate(PAGE)
    nvme.memory.write(prp_list.physical, struct.pack("<Q", prp_list.iova) * 512)
    buffer = nvme.driver.allocate(PAGE)
    reply = nvme.command(
        NvmOpcode.WRITE, prp1=buffer.iova, prp2=prp_list.iova + PAGE - 8, cdw12=1023
    )
    assert reply.ok


def test_prp_list_out_of_reach_is_a_transfer_error(bed):
    buffer = bed.driver.allocate(PAGE)
    reply = bed.command(NvmOpcode.READ, prp1=buffer.iova, prp2=UNMAPPED, cdw12=23)
    assert (reply.status, reply.dnr) == (StatusCode.DATA_TRANSFER_ERROR, False)


@pytest.mark.parametrize("prp1", [(1 << 64) - 4, (1 << 64) - 4096])
def test_prp_at_the_end_of_the_address_space(nvme, prp1):
    reply = nvme.command(NvmOpcode.READ, prp1=prp1, prp2=0, cdw12=7)
    assert reply.status is StatusCode.DATA_TRANSFER_ERROR


@pytest.mark.parametrize("shift", [13, 16])
def test_prp_pages_follow_the_memory_page_size(shift):
    bed = Bed()
    bed.driver.enable(page_shift=shift)
    bed.driver.create_queues(1)
    page = 1 << shift
    start = 12 << 20
    data = pattern(2 * page)
    bed.nvme.medium.write(0, data)
    blocks = 2 * page // BLOCK
    reply = bed.command(NvmOpcode.READ, prp1=start, prp2=start + 4 * page, cdw12=blocks - 1)
    assert reply.ok
    assert bed.memory.read(start, page) + bed.memory.read(start + 4 * page, page) == data
