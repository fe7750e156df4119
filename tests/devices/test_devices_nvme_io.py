"""NVMe I/O commands: reads, writes and their kin, and the status of each that fails."""

import pytest
from nvme_bed import BLOCK, PAGE, Bed, pattern

from iommu_emu.devices import Nvme
from iommu_emu.devices.nvme import FileMedium, RamMedium
from iommu_emu.devices.nvme.specification import Feature, LogPage, NvmOpcode, StatusCode
from iommu_emu.devices.nvme.structures import DATASET_RANGE, Health

BLOCKS = 64
BROADCAST = 0xFFFF_FFFF
FUA = 1 << 30
DEALLOCATE = 1 << 2
DATA_COMMANDS = [NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE]


class FailingMedium(RamMedium):
    """Fails what it is told to, and counts flushes."""

    def __init__(self, size, **options):
        super().__init__(size, **options)
        self.failing = set()
        self.flushes = 0

    def read(self, offset, length):
        self._fail("read")
        return super().read(offset, length)

    def write(self, offset, data):
        self._fail("write")
        super().write(offset, data)

    def discard(self, offset, length):
        self._fail("discard")
        return super().discard(offset, length)

    def flush(self):
        self._fail("flush")
        self.flushes += 1

    def _fail(self, what):
        if what in self.failing:
            raise OSError(what)


@pytest.fixture
def medium():
    return FailingMedium(BLOCKS * BLOCK)


@pytest.fixture
def small(medium):
    """A controller with 64 blocks."""
    return Bed(nvme=Nvme(medium=medium)).ready()


@pytest.mark.parametrize(("first", "blocks"), [(0, 1), (7, 8), (3, 9), (0, 64), (63, 1)])
def test_nvme_reads_what_was_written(small, first, blocks):
    data = pattern(blocks * BLOCK)
    assert small.write(first, data).ok
    assert small.read(first, blocks) == data


def test_nvme_write_changes_its_blocks_alone(small, medium):
    small.write(0, b"\xaa" * BLOCKS * BLOCK)
    small.write(5, b"\xbb" * 2 * BLOCK)
    expected = b"\xaa" * 5 * BLOCK + b"\xbb" * 2 * BLOCK + b"\xaa" * 57 * BLOCK
    assert medium.read(0, BLOCKS * BLOCK) == expected


def test_nvme_reads_zeroes_where_nothing_was_written(small):
    assert small.read(0, 64) == bytes(64 * BLOCK)


def test_nvme_blocks_of_4_kib():
    bed = Bed(nvme=Nvme(medium=RamMedium(1 << 20, block_size=4096))).ready()
    data = pattern(3 * PAGE)
    assert bed.driver.transfer(NvmOpcode.WRITE, 2, 3, bed.buffer(data)).ok
    assert bed.nvme.medium.read(2 * PAGE, 3 * PAGE) == data


def test_nvme_transfer_of_512_kib(nvme):
    data = pattern(512 << 10)
    assert nvme.write(0, data).ok
    assert nvme.read(0, 1024) == data


@pytest.mark.parametrize("opcode", DATA_COMMANDS)
def test_nvme_transfer_of_more_than_mdts_is_refused(nvme, opcode):
    reply = nvme.command(opcode, prp1=0x40_0000, prp2=0x40_1000, cdw12=1024)
    assert (reply.status, reply.dnr) == (StatusCode.INVALID_FIELD, True)


@pytest.mark.parametrize("opcode", [*DATA_COMMANDS, NvmOpcode.WRITE_ZEROES])
@pytest.mark.parametrize(
    ("first", "blocks"), [(64, 1), (63, 2), (0, 65), (BROADCAST, 1), ((1 << 64) - 1, 2)]
)
def test_nvme_blocks_beyond_the_end_are_refused(small, opcode, first, blocks):
    buffer = small.driver.allocate(65 * BLOCK)
    reply = small.driver.transfer(opcode, first, blocks, buffer)
    assert (reply.status, reply.dnr) == (StatusCode.LBA_OUT_OF_RANGE, True)


@pytest.mark.parametrize("nsid", [0, 2, BROADCAST - 1, BROADCAST])
@pytest.mark.parametrize(
    "opcode", [*DATA_COMMANDS, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT]
)
def test_nvme_other_namespaces_are_refused(small, opcode, nsid):
    reply = small.command(opcode, nsid=nsid, prp1=0x40_0000)
    assert (reply.status, reply.dnr) == (StatusCode.INVALID_NAMESPACE, True)


@pytest.mark.parametrize("opcode", [0x04, 0x0C, 0x0D, 0x15, 0x7D, 0x80, 0xFF])
def test_nvme_io_commands_that_are_not_there(small, opcode):
    reply = small.command(opcode)
    assert (reply.status, reply.dnr) == (StatusCode.INVALID_OPCODE, True)


# ---- Flush, and when writes must be durable --------------------------------------------------


@pytest.mark.parametrize("nsid", [1, BROADCAST])
def test_nvme_flush_flushes(small, medium, nsid):
    assert small.command(NvmOpcode.FLUSH, nsid=nsid).ok
    assert medium.flushes == 1


@pytest.mark.parametrize("nsid", [0, 2])
def test_nvme_flush_of_another_namespace_is_refused(small, nsid):
    assert small.command(NvmOpcode.FLUSH, nsid=nsid).status is StatusCode.INVALID_NAMESPACE


def test_nvme_shutdown_flushes(small, medium):
    small.driver.shut_down()
    assert medium.flushes == 1


@pytest.mark.parametrize(("cache", "dword12", "flushes"), [(1, 0, 0), (1, FUA, 1), (0, 0, 1)])
@pytest.mark.parametrize("opcode", [NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES])
def test_nvme_write_is_durable_with_fua_or_without_cache(
    small, medium, opcode, cache, dword12, flushes
):
    small.set_feature(Feature.VOLATILE_WRITE_CACHE, cache)
    buffer = small.driver.allocate(BLOCK)
    assert small.command(opcode, prp1=buffer.iova, cdw12=dword12).ok
    assert medium.flushes == flushes


# ---- Compare, Write Zeroes, Dataset Management -----------------------------------------------


def test_nvme_compare_succeeds_if_alike(small):
    data = pattern(12 * BLOCK)
    small.write(2, data)
    assert small.driver.transfer(NvmOpcode.COMPARE, 2, 12, small.buffer(data)).ok


def test_nvme_compare_fails_if_one_byte_differs(small):
    data = pattern(12 * BLOCK)
    small.write(2, data)
    other = small.buffer(data[:-1] + b"!")
    reply = small.driver.transfer(NvmOpcode.COMPARE, 2, 12, other)
    assert (reply.status, reply.dnr) == (StatusCode.COMPARE_FAILURE, True)


@pytest.mark.parametrize(("first", "blocks"), [(0, 64), (8, 8), (5, 1), (3, 30), (15, 2)])
def test_nvme_write_zeroes_zeroes_its_blocks_alone(small, medium, first, blocks):
    data = bytearray(b"\xaa" * BLOCKS * BLOCK)
    medium.write(0, bytes(data))
    assert small.command(NvmOpcode.WRITE_ZEROES, cdw10=first, cdw12=blocks - 1).ok
    data[first * BLOCK : (first + blocks) * BLOCK] = bytes(blocks * BLOCK)
    assert medium.read(0, medium.size) == bytes(data)


def test_nvme_write_zeroes_is_not_bounded_by_mdts():
    bed = Bed(nvme=Nvme(medium=RamMedium(65536 * BLOCK))).ready()
    bed.nvme.medium.write(65535 * BLOCK, b"x" * BLOCK)
    assert bed.command(NvmOpcode.WRITE_ZEROES, cdw12=0xFFFF).ok
    assert bed.nvme.medium.read(65535 * BLOCK, BLOCK) == bytes(BLOCK)


def deallocate(bed, *ranges, attributes=DEALLOCATE):
    data = b"".join(DATASET_RANGE.pack(0, count, first) for first, count in ranges)
    return bed.command(
        NvmOpcode.DATASET_MANAGEMENT,
        prp1=bed.buffer(data).iova,
        cdw10=len(ranges) - 1,
        cdw11=attributes,
    )


def test_nvme_deallocated_pages_read_zero(small, medium):
    medium.write(0, b"\xaa" * medium.size)
    assert deallocate(small, (0, 8), (24, 16)).ok
    zero = [medium.read(at, PAGE) == bytes(PAGE) for at in range(0, medium.size, PAGE)]
    assert zero == [True, False, False, True, True, False, False, False]


def test_nvme_deallocated_blocks_that_share_a_page_stay(small, medium):
    medium.write(0, b"\xaa" * medium.size)
    assert deallocate(small, (1, 7), (8, 7)).ok
    assert medium.read(0, medium.size) == b"\xaa" * medium.size


def test_nvme_dataset_management_hints_change_nothing(small, medium):
    medium.write(0, b"\xaa" * medium.size)
    assert deallocate(small, (0, 64), attributes=3).ok
    assert medium.read(0, medium.size) == b"\xaa" * medium.size


def test_nvme_deallocate_of_256_ranges(small):
    assert deallocate(small, *[(0, 64)] * 256).ok


@pytest.mark.parametrize("wrong", [(64, 1), (0, 65), (0, BROADCAST), ((1 << 64) - 1, 1)])
def test_nvme_deallocate_beyond_the_end_changes_nothing(small, medium, wrong):
    medium.write(0, b"\xaa" * medium.size)
    assert deallocate(small, (0, 8), wrong).status is StatusCode.LBA_OUT_OF_RANGE
    assert medium.read(0, medium.size) == b"\xaa" * medium.size


# ---- write protection and media errors -------------------------------------------------------


@pytest.mark.parametrize(
    "opcode", [NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT]
)
def test_nvme_read_only_namespace_is_write_protected(opcode):
    bed = Bed(nvme=Nvme(medium=RamMedium(1 << 16, read_only=True))).ready()
    reply = bed.command(opcode, prp1=bed.driver.allocate(PAGE).iova, cdw11=0, cdw12=0)
    if opcode is NvmOpcode.DATASET_MANAGEMENT:
        assert reply.ok  # a hint
        reply = deallocate(bed, (0, 8))
    assert (reply.status, reply.dnr) == (StatusCode.WRITE_PROTECTED, True)


def test_nvme_read_only_namespace_is_read():
    medium = RamMedium(1 << 16, read_only=True)
    medium.write(0, b"kept" * 128)
    bed = Bed(nvme=Nvme(medium=medium)).ready()
    assert bed.read(0, 1) == b"kept" * 128


@pytest.mark.parametrize(
    ("failing", "opcode", "status"),
    [
        ("read", NvmOpcode.READ, StatusCode.UNRECOVERED_READ_ERROR),
        ("read", NvmOpcode.COMPARE, StatusCode.UNRECOVERED_READ_ERROR),
        ("write", NvmOpcode.WRITE, StatusCode.WRITE_FAULT),
        ("write", NvmOpcode.WRITE_ZEROES, StatusCode.WRITE_FAULT),
        ("flush", NvmOpcode.FLUSH, StatusCode.WRITE_FAULT),
    ],
)
def test_nvme_media_error_has_its_status_and_is_counted(small, medium, failing, opcode, status):
    medium.failing = {failing}
    reply = small.command(opcode, prp1=small.driver.allocate(PAGE).iova)
    assert (reply.status, reply.dnr) == (status, False)
    assert Health.parse(small.log(LogPage.HEALTH, 512)).media_errors == 1


def test_nvme_shutdown_completes_on_a_failing_medium(small, medium):
    medium.failing = {"flush"}
    small.driver.shut_down()
    assert small.csts == 1 | 2 << 2


def test_nvme_serves_a_file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(pattern(1 << 16))
    with FileMedium(path) as medium:
        bed = Bed(nvme=Nvme(medium=medium)).ready()
        assert bed.read(3, 2) == pattern(1 << 16)[3 * BLOCK : 5 * BLOCK]
        bed.write(4, b"\xcc" * BLOCK)
    assert path.read_bytes()[4 * BLOCK : 5 * BLOCK] == b"\xcc" * BLOCK


def test_nvme_file_that_is_cut_short_is_a_media_error(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 16))
    with FileMedium(path, read_only=True) as medium:
        bed = Bed(nvme=Nvme(medium=medium)).ready()
        path.write_bytes(b"")
        buffer = bed.driver.allocate(BLOCK)
        reply = bed.driver.transfer(NvmOpcode.READ, 0, 1, buffer)
    assert reply.status is StatusCode.UNRECOVERED_READ_ERROR


def test_nvme_file_that_was_closed_is_a_media_error(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 16))
    with FileMedium(path) as medium:
        bed = Bed(nvme=Nvme(medium=medium)).ready()
    assert bed.command(NvmOpcode.FLUSH).status is StatusCode.WRITE_FAULT
