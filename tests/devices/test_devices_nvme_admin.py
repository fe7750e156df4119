"""NVMe admin commands: Identify, features, log pages, queues, aborts and events."""

import pytest
from nvme_bed import BLOCK, PAGE, UNMAPPED, Bed, pattern

from iommu_emu.devices import Nvme
from iommu_emu.devices.nvme import RamMedium
from iommu_emu.devices.nvme.specification import (
    AdminOpcode,
    Feature,
    Identify,
    LogPage,
    NvmOpcode,
    StatusCode,
)
from iommu_emu.devices.nvme.structures import (
    CommandEffects,
    ErrorEntry,
    FirmwareSlots,
    Health,
    IdentifyController,
    IdentifyNamespace,
    NamespaceDescriptor,
)

BROADCAST = 0xFFFF_FFFF
CREATE_CQ, CREATE_SQ = AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ
DELETE_CQ, DELETE_SQ = AdminOpcode.DELETE_CQ, AdminOpcode.DELETE_SQ
CONTIGUOUS = 1


# ---- Identify --------------------------------------------------------------------------------


def test_nvme_identify_controller(nvme):
    data = IdentifyController.parse(nvme.identify(Identify.CONTROLLER))
    assert (data.vid, data.ver, data.cntrltype) == (0x1234, 0x0001_0400, 1)
    assert data.sn == b"IOMMUEMU0001".ljust(20)
    assert data.mn == b"iommu-emu NVMe controller".ljust(40)
    assert (data.sqes, data.cqes, data.nn, data.mdts) == (0x66, 0x44, 1, 7)
    assert (data.oncs, data.vwc, data.oacs, data.sgls, data.fuses) == (0x1D, 7, 0, 0, 0)
    assert data.subnqn.startswith("nqn.2014-08.org.nvmexpress:uuid:")


def test_nvme_subsystem_name_and_namespace_uuid_follow_from_the_serial():
    names = set()
    for serial in ("A", "B"):
        bed = Bed(nvme=Nvme(serial=serial)).ready()
        names.add(IdentifyController.parse(bed.identify(1)).subnqn)
        names.add(NamespaceDescriptor.parse(bed.identify(3, nsid=1)).nid)
    assert len(names) == 4


@pytest.mark.parametrize(("block_size", "lbads"), [(512, 9), (4096, 12)])
def test_nvme_identify_namespace(block_size, lbads):
    bed = Bed(nvme=Nvme(medium=RamMedium(1 << 20, block_size=block_size))).ready()
    data = IdentifyNamespace.parse(bed.identify(Identify.NAMESPACE, nsid=1))
    assert (data.nsze, data.ncap, data.nuse) == ((1 << 20) // block_size,) * 3
    assert (data.lbaf0_lbads, data.nlbaf, data.flbas, data.nsattr) == (lbads, 0, 0, 0)
    assert (data.npdg + 1) * block_size == PAGE  # what is deallocated together


def test_nvme_identify_shows_a_read_only_namespace():
    bed = Bed(nvme=Nvme(medium=RamMedium(1 << 20, read_only=True))).ready()
    assert IdentifyNamespace.parse(bed.identify(0, nsid=1)).nsattr == 1


@pytest.mark.parametrize(("after", "expected"), [(0, 1), (1, 0), (0xFFFF_FFFD, 0)])
def test_nvme_identify_lists_active_namespaces_after_one(nvme, after, expected):
    data = nvme.identify(Identify.ACTIVE_NAMESPACES, nsid=after)
    assert data == expected.to_bytes(4, "little").ljust(PAGE, b"\0")


def test_nvme_identify_namespace_descriptors_hold_a_uuid(nvme):
    data = nvme.identify(Identify.NAMESPACE_DESCRIPTORS, nsid=1)
    descriptor = NamespaceDescriptor.parse(data)
    assert (descriptor.nidt, descriptor.nidl) == (3, 16)
    assert data[20:] == bytes(PAGE - 20)


def test_nvme_identify_command_set_adds_nothing(nvme):
    assert nvme.identify(Identify.COMMAND_SET_CONTROLLER) == bytes(PAGE)
    assert nvme.identify(Identify.COMMAND_SET_NAMESPACE, nsid=1) == bytes(PAGE)


@pytest.mark.parametrize(
    ("cns", "nsid", "dword11", "status"),
    [
        (0x00, 0, 0, StatusCode.INVALID_NAMESPACE),
        (0x00, 2, 0, StatusCode.INVALID_NAMESPACE),
        (0x00, BROADCAST, 0, StatusCode.INVALID_NAMESPACE),
        (0x02, BROADCAST - 1, 0, StatusCode.INVALID_NAMESPACE),
        (0x02, BROADCAST, 0, StatusCode.INVALID_NAMESPACE),
        (0x03, 0, 0, StatusCode.INVALID_NAMESPACE),
        (0x05, 0, 0, StatusCode.INVALID_NAMESPACE),
        (0x05, 1, 2 << 24, StatusCode.INVALID_FIELD),
        (0x06, 0, 2 << 24, StatusCode.INVALID_FIELD),
        (0x10, 0, 0, StatusCode.INVALID_FIELD),
        (0xFF, 1, 0, StatusCode.INVALID_FIELD),
    ],
)
def test_nvme_identify_refuses(nvme, cns, nsid, dword11, status):
    buffer = nvme.driver.allocate(PAGE)
    reply = nvme.admin(AdminOpcode.IDENTIFY, prp1=buffer.iova, nsid=nsid, cdw10=cns, cdw11=dword11)
    assert (reply.status, reply.dnr, nvme.content(buffer)) == (status, True, bytes(PAGE))


# ---- features --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "value", "read_back"),
    [
        (Feature.ARBITRATION, 0x0102_0303, 0x0102_0303),
        (Feature.POWER_MANAGEMENT, 0, 0),
        (Feature.TEMPERATURE_THRESHOLD, 350, 350),
        (Feature.ERROR_RECOVERY, 0x1_0005, 0x1_0005),
        (Feature.VOLATILE_WRITE_CACHE, 0xFFFF_FFFE, 0),
        (Feature.INTERRUPT_COALESCING, 0x0203, 0x0203),
        (Feature.WRITE_ATOMICITY, 1, 1),
        (Feature.ASYNC_EVENTS, 0xFFFF_FFFF, 0xFF),
        (Feature.KEEP_ALIVE_TIMER, 5000, 5000),
    ],
)
def test_nvme_feature_is_read_back(nvme, feature, value, read_back):
    assert nvme.set_feature(feature, value).ok
    assert nvme.get_feature(feature).result == read_back


def test_nvme_feature_of_a_vector_is_its_own(nvme):
    nvme.set_feature(Feature.INTERRUPT_VECTOR, 1 << 16 | 2)
    assert nvme.get_feature(Feature.INTERRUPT_VECTOR, value=2).result == 1 << 16 | 2
    assert nvme.get_feature(Feature.INTERRUPT_VECTOR, value=1).result == 1
    nvme.set_feature(Feature.INTERRUPT_VECTOR, 2)
    assert nvme.get_feature(Feature.INTERRUPT_VECTOR, value=2).result == 2


def test_nvme_temperature_has_two_thresholds(nvme):
    under = 1 << 20
    nvme.set_feature(Feature.TEMPERATURE_THRESHOLD, 333)
    nvme.set_feature(Feature.TEMPERATURE_THRESHOLD, under | 222)
    assert nvme.get_feature(Feature.TEMPERATURE_THRESHOLD).result == 333
    assert nvme.get_feature(Feature.TEMPERATURE_THRESHOLD, value=under).result == 222


@pytest.mark.parametrize(("select", "result"), [(0, 0), (1, 1), (2, 1), (3, 4)])
def test_nvme_get_features_selects(nvme, select, result):
    nvme.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    assert nvme.get_feature(Feature.VOLATILE_WRITE_CACHE, select).result == result


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (0x03, 0),  # LBA range types
        (0x0C, 0),  # autonomous power state transitions
        (0x0D, 0),  # host memory buffer
        (0x10, 0),  # host controlled thermal management
        (0x16, 0),  # host behaviour support
        (0x00, 0),
        (0xFF, 0),
        (Feature.POWER_MANAGEMENT, 1),  # there is one power state
        (Feature.TEMPERATURE_THRESHOLD, 1 << 16),  # there are no sensors
        (Feature.TEMPERATURE_THRESHOLD, 2 << 20),
        (Feature.INTERRUPT_VECTOR, 65),
        (Feature.NUMBER_OF_QUEUES, 0x0000_FFFF),
    ],
)
def test_nvme_set_features_refuses(nvme, feature, value):
    nvme.admin(DELETE_SQ, cdw10=1)
    nvme.admin(DELETE_CQ, cdw10=1)
    reply = nvme.set_feature(feature, value)
    assert (reply.status, reply.dnr) == (StatusCode.INVALID_FIELD, True)


@pytest.mark.parametrize(("feature", "select", "value"), [(0x0C, 0, 0), (1, 4, 0), (9, 0, 65)])
def test_nvme_get_features_refuses(nvme, feature, select, value):
    assert nvme.get_feature(feature, select, value).status is StatusCode.INVALID_FIELD


def test_nvme_features_cannot_be_saved(nvme):
    reply = nvme.admin(AdminOpcode.SET_FEATURES, cdw10=1 << 31 | Feature.VOLATILE_WRITE_CACHE)
    assert reply.status is StatusCode.FEATURE_NOT_SAVEABLE


def test_nvme_features_belong_to_no_namespace(nvme):
    reply = nvme.set_feature(Feature.VOLATILE_WRITE_CACHE, 1, nsid=1)
    assert reply.status is StatusCode.FEATURE_NOT_OF_NAMESPACE


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(0x0003_0003, 0x0003_0003), (0x0001_0007, 0x0007_0007), (0xFE_00FE, 0x3F_003F)],
)
def test_nvme_number_of_queues_is_granted(asked, granted):
    bed = Bed()
    bed.driver.enable()
    assert bed.set_feature(Feature.NUMBER_OF_QUEUES, asked).result == granted
    assert bed.get_feature(Feature.NUMBER_OF_QUEUES).result == granted


def test_nvme_number_of_queues_bounds_their_ids():
    bed = Bed()
    bed.driver.enable()
    bed.set_feature(Feature.NUMBER_OF_QUEUES, 0x0001_0001)
    bed.driver.create_queues(2)
    with pytest.raises(RuntimeError, match="INVALID_QUEUE_IDENTIFIER"):
        bed.driver.create_queues(3)


def test_nvme_number_of_queues_is_settled_once_one_exists(nvme):
    reply = nvme.set_feature(Feature.NUMBER_OF_QUEUES, 0x0001_0001)
    assert reply.status is StatusCode.COMMAND_SEQUENCE_ERROR


# ---- log pages -------------------------------------------------------------------------------


def test_nvme_health_log_counts_what_the_host_did(nvme):
    nvme.write(0, pattern(3 * BLOCK))
    nvme.write(8, pattern(BLOCK))
    nvme.read(0, 1)
    nvme.admin(0x7F)
    health = Health.parse(nvme.log(LogPage.HEALTH, 512))
    assert (health.data_units_read, health.data_units_written) == (1, 1)
    assert (health.host_reads, health.host_writes) == (1, 2)
    assert (health.temperature, health.critical_warning) == (310, 0)
    assert (health.available_spare, health.percentage_used) == (100, 0)
    assert (health.power_cycles, health.error_entries) == (1, 1)


def test_nvme_health_log_tells_power_on_hours_of_the_virtual_clock(nvme):
    nvme.machine.advance(2 * 3600 * 1_000_000_000)
    assert Health.parse(nvme.log(LogPage.HEALTH, 512)).power_on_hours == 2


def test_nvme_error_log_has_the_newest_error_first(nvme):
    nvme.admin(0x7F, cid=0x11)
    nvme.command(NvmOpcode.READ, cid=0x22, cdw10=0xFFFF_FFFF, cdw11=1)
    log = nvme.log(LogPage.ERRORS, 128)
    newest, oldest = ErrorEntry.parse(log), ErrorEntry.parse(log[64:])
    assert (newest.count, newest.sqid, newest.cid, newest.nsid) == (2, 1, 0x22, 1)
    assert (newest.status >> 1 & 0x7FF, newest.lba) == (StatusCode.LBA_OUT_OF_RANGE, 0x1_FFFF_FFFF)
    assert (oldest.count, oldest.sqid, oldest.cid) == (1, 0, 0x11)


def test_nvme_error_says_that_the_log_tells_more(nvme):
    reply = nvme.admin(0x7F)
    assert (reply.status, reply.more, reply.dnr) == (StatusCode.INVALID_OPCODE, True, True)


def test_nvme_error_log_keeps_64_entries(nvme):
    for _ in range(70):
        nvme.admin(0x7F)
    log = nvme.log(LogPage.ERRORS, PAGE)
    counts = [ErrorEntry.parse(log[at : at + 64]).count for at in range(0, PAGE, 64)]
    assert counts == list(range(70, 6, -1))
    reply = nvme.admin(AdminOpcode.GET_LOG_PAGE, prp1=0x40_0000, cdw10=1, cdw12=PAGE)
    assert reply.status is StatusCode.INVALID_FIELD  # there is no more of it


def test_nvme_firmware_slot_log(nvme):
    slots = FirmwareSlots.parse(nvme.log(LogPage.FIRMWARE_SLOTS, 512))
    assert (slots.afi, slots.frs1) == (1, b"1.0     ")


def test_nvme_effects_log_lists_the_commands(nvme):
    effects = CommandEffects.parse(nvme.log(LogPage.COMMAND_EFFECTS, PAGE))
    assert {n for n, value in enumerate(effects.admin) if value} == set(AdminOpcode)
    assert {n for n, value in enumerate(effects.io) if value} == set(NvmOpcode)
    assert (effects.io[NvmOpcode.WRITE], effects.io[NvmOpcode.READ]) == (3, 1)


def test_nvme_log_page_is_read_in_part(nvme):
    whole = nvme.log(LogPage.COMMAND_EFFECTS, 2048)
    assert nvme.log(LogPage.COMMAND_EFFECTS, 256, offset=1024) == whole[1024:1280]


def test_nvme_log_page_transfers_nothing_beyond_its_end(nvme):
    buffer = nvme.buffer(b"\xee" * PAGE)
    nvme.admin(AdminOpcode.GET_LOG_PAGE, prp1=buffer.iova, cdw10=LogPage.HEALTH | 1023 << 16)
    assert nvme.content(buffer)[512:] == b"\xee" * (PAGE - 512)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 0x04}, StatusCode.INVALID_LOG_PAGE),
        ({"cdw10": 0x00}, StatusCode.INVALID_LOG_PAGE),
        ({"cdw10": 0x02, "nsid": 1}, StatusCode.INVALID_FIELD),
        ({"cdw10": 0x02, "cdw12": 2}, StatusCode.INVALID_FIELD),
        ({"cdw10": 0x02, "cdw12": 512}, StatusCode.INVALID_FIELD),
        ({"cdw10": 0x02, "cdw13": 1}, StatusCode.INVALID_FIELD),
        ({"cdw10": 0xFFFF_0002, "cdw11": 0xFFFF}, StatusCode.INVALID_FIELD),
    ],
)
def test_nvme_get_log_page_refuses(nvme, fields, status):
    buffer = nvme.driver.allocate(PAGE)
    assert nvme.admin(AdminOpcode.GET_LOG_PAGE, prp1=buffer.iova, **fields).status is status


# ---- queues ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 31 << 16}, StatusCode.INVALID_QUEUE_IDENTIFIER),
        ({"cdw10": 31 << 16 | 1}, StatusCode.INVALID_QUEUE_IDENTIFIER),  # taken
        ({"cdw10": 31 << 16 | 65}, StatusCode.INVALID_QUEUE_IDENTIFIER),
        ({"cdw10": 31 << 16 | 0xFFFF}, StatusCode.INVALID_QUEUE_IDENTIFIER),
        ({"cdw10": 2}, StatusCode.INVALID_QUEUE_SIZE),
        ({"cdw10": 1024 << 16 | 2}, StatusCode.INVALID_QUEUE_SIZE),
        ({"cdw11": 0}, StatusCode.INVALID_FIELD),  # CAP.CQR: contiguous alone
        ({"prp1": 0x40_0800}, StatusCode.PRP_OFFSET_INVALID),
    ],
)
@pytest.mark.parametrize("opcode", [CREATE_CQ, CREATE_SQ])
def test_nvme_create_queue_refuses(nvme, opcode, fields, status):
    dword11 = CONTIGUOUS if opcode == CREATE_CQ else 1 << 16 | CONTIGUOUS
    valid = {"prp1": 0x40_0000, "cdw10": 31 << 16 | 2, "cdw11": dword11}
    assert nvme.admin(opcode, **valid | fields).status is status


@pytest.mark.parametrize(("msix", "vector"), [(True, 65), (True, 0xFFFF), (False, 1)])
def test_nvme_create_completion_queue_refuses_a_vector(msix, vector):
    bed = Bed().ready(msix=msix)
    reply = bed.admin(
        CREATE_CQ, prp1=0x40_0000, cdw10=31 << 16 | 2, cdw11=vector << 16 | CONTIGUOUS
    )
    assert reply.status is StatusCode.INVALID_INTERRUPT_VECTOR


@pytest.mark.parametrize("cqid", [0, 2, 0xFFFF])
def test_nvme_create_submission_queue_refuses_a_completion_queue(nvme, cqid):
    reply = nvme.admin(CREATE_SQ, prp1=0x40_0000, cdw10=31 << 16 | 2, cdw11=cqid << 16 | CONTIGUOUS)
    assert reply.status is StatusCode.COMPLETION_QUEUE_INVALID


@pytest.mark.parametrize("shift", [16, 20], ids=["IOSQES", "IOCQES"])
def test_nvme_create_queue_refuses_a_wrong_entry_size(shift):
    bed = Bed()
    bed.driver.enable()
    bed.driver.write(0x14, bed.driver.read(0x14) & ~(0xF << shift))
    with pytest.raises(RuntimeError, match="INVALID_FIELD"):
        bed.driver.create_queues(1)


def test_nvme_largest_queue(nvme):
    assert nvme.driver.create_queues(64, 1024).qid == 64


@pytest.mark.parametrize("qid", [0, 2, 0xFFFF])
@pytest.mark.parametrize("opcode", [DELETE_CQ, DELETE_SQ])
def test_nvme_delete_queue_refuses(nvme, opcode, qid):
    assert nvme.admin(opcode, cdw10=qid).status is StatusCode.INVALID_QUEUE_IDENTIFIER


def test_nvme_completion_queue_in_use_is_not_deleted(nvme):
    assert nvme.admin(DELETE_CQ, cdw10=1).status is StatusCode.INVALID_QUEUE_DELETION
    assert nvme.admin(DELETE_SQ, cdw10=1).ok
    assert nvme.admin(DELETE_CQ, cdw10=1).ok


def test_nvme_deleted_queue_is_created_again(nvme):
    nvme.admin(DELETE_SQ, cdw10=1)
    nvme.admin(DELETE_CQ, cdw10=1)
    nvme.driver.create_queues(1)
    assert nvme.command(NvmOpcode.FLUSH).ok


def test_nvme_doorbell_of_a_deleted_queue_is_an_error(nvme):
    nvme.admin(DELETE_SQ, cdw10=1)
    nvme.driver.ring_tail(1, 1)
    assert nvme.nvme.statistics.doorbell_errors == 1


def test_nvme_two_submission_queues_share_a_completion_queue(nvme):
    memory = nvme.driver.allocate(PAGE)
    nvme.admin(CREATE_SQ, prp1=memory.iova, cdw10=31 << 16 | 2, cdw11=1 << 16 | CONTIGUOUS)
    command = b"\0\0\x07\0\x01".ljust(64, b"\0")  # flush, CID 7, namespace 1
    nvme.memory.write(memory.physical, command)
    nvme.driver.ring_tail(2, 1)
    reply = nvme.driver.take(nvme.io)
    assert (reply.cid, reply.queue, reply.head, reply.ok) == (7, 2, 1, True)


# ---- asynchronous events, aborts, keep alive -------------------------------------------------


def request_event(bed):
    return bed.driver.submit(bed.driver.admin, AdminOpcode.ASYNC_EVENT)


def test_nvme_event_request_stays_outstanding(nvme):
    request_event(nvme)
    nvme.machine.advance(1_000_000)
    assert nvme.driver.peek(nvme.driver.admin) is None


def test_nvme_event_requests_beyond_the_limit_fail(nvme):
    for _ in range(4):
        request_event(nvme)
    reply = nvme.admin(AdminOpcode.ASYNC_EVENT)
    assert reply.status is StatusCode.ASYNC_EVENT_LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("ring", "result"),
    [
        (lambda driver: driver.ring_tail(9, 1), 0x01_00_00),
        (lambda driver: driver.ring_head(9, 1), 0x01_00_00),
        (lambda driver: driver.ring_tail(1, 32), 0x01_01_00),
        (lambda driver: driver.ring_tail(1, 0xFFFF_FFFF), 0x01_01_00),
        (lambda driver: driver.ring_head(1, 32), 0x01_01_00),
        (lambda driver: driver.ring_head(1, 5), 0x01_01_00),  # beyond what was posted
    ],
    ids=["no queue", "no queue, head", "tail", "tail, wide", "head", "head, not posted"],
)
def test_nvme_wrong_doorbell_is_reported_as_an_event(nvme, ring, result):
    cid = request_event(nvme)
    ring(nvme.driver)
    reply = nvme.driver.take(nvme.driver.admin)
    assert (reply.cid, reply.result, reply.ok) == (cid, result, True)


def test_nvme_event_waits_for_a_request(nvme):
    nvme.driver.ring_tail(9, 1)
    assert nvme.admin(AdminOpcode.ASYNC_EVENT).result == 0x01_00_00


def test_nvme_events_of_a_type_are_masked_until_the_log_is_read(nvme):
    nvme.driver.ring_tail(9, 1)
    nvme.admin(AdminOpcode.ASYNC_EVENT)
    request_event(nvme)
    nvme.driver.ring_tail(9, 1)
    assert nvme.driver.peek(nvme.driver.admin) is None
    nvme.log(LogPage.ERRORS, 64, retain=True)
    assert nvme.driver.peek(nvme.driver.admin) is None
    buffer = nvme.driver.allocate(PAGE)
    first = nvme.admin(AdminOpcode.GET_LOG_PAGE, prp1=buffer.iova, cdw10=LogPage.ERRORS | 15 << 16)
    second = nvme.driver.wait(nvme.driver.admin)
    assert {first.result, second.result} == {0, 0x01_00_00}


def test_nvme_wrong_doorbells_are_logged_without_a_command(nvme):
    nvme.driver.ring_tail(9, 1)
    entry = ErrorEntry.parse(nvme.log(LogPage.ERRORS, 64))
    assert (entry.sqid, entry.cid) == (0xFFFF, 0xFFFF)


def test_nvme_temperature_event_if_software_wants_it(nvme):
    nvme.set_feature(Feature.ASYNC_EVENTS, 1 << 1)
    nvme.set_feature(Feature.TEMPERATURE_THRESHOLD, 300)
    assert nvme.admin(AdminOpcode.ASYNC_EVENT).result == 0x02_01_01
    assert Health.parse(nvme.log(LogPage.HEALTH, 512)).critical_warning == 2


def test_nvme_temperature_event_not_wanted(nvme):
    nvme.set_feature(Feature.TEMPERATURE_THRESHOLD, 300)
    request_event(nvme)
    assert nvme.driver.peek(nvme.driver.admin) is None


def test_nvme_abort_ends_an_event_request(nvme):
    cid = request_event(nvme)
    abort = nvme.driver.submit(nvme.driver.admin, AdminOpcode.ABORT, cdw10=cid << 16)
    ended, aborted = (nvme.driver.take(nvme.driver.admin) for _ in range(2))
    assert (ended.cid, ended.status, ended.dnr) == (cid, StatusCode.ABORT_REQUESTED, False)
    assert (aborted.cid, aborted.ok, aborted.result) == (abort, True, 0)


@pytest.mark.parametrize("dword10", [0x1234 << 16, 0x0001_0001, 0xFFFF_FFFF])
def test_nvme_abort_of_what_is_not_there_aborts_nothing(nvme, dword10):
    reply = nvme.admin(AdminOpcode.ABORT, cdw10=dword10)
    assert (reply.ok, reply.result) == (True, 1)


def test_nvme_keep_alive_is_optional(nvme):
    assert nvme.admin(AdminOpcode.KEEP_ALIVE).ok
    nvme.machine.advance(1 << 40)
    assert nvme.csts == 1


def test_nvme_keep_alive_that_does_not_come_is_fatal(nvme):
    nvme.set_feature(Feature.KEEP_ALIVE_TIMER, 150)  # ms, rounded up to 200
    nvme.machine.advance(199_000_000)
    nvme.admin(AdminOpcode.KEEP_ALIVE)
    nvme.machine.advance(199_999_999)
    assert nvme.csts == 1
    nvme.machine.advance(1)
    assert nvme.csts == 3


def test_nvme_reset_stops_the_keep_alive_timer(nvme):
    nvme.set_feature(Feature.KEEP_ALIVE_TIMER, 100)
    nvme.driver.disable()
    nvme.driver.enable()
    nvme.machine.advance(1_000_000_000)
    assert nvme.csts == 1


# ---- what is wrong with any command ----------------------------------------------------------


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x40, 0x80])
def test_nvme_fused_and_sgl_commands_are_refused(nvme, flags):
    assert nvme.admin(AdminOpcode.KEEP_ALIVE, flags=flags).status is StatusCode.INVALID_FIELD
    assert nvme.command(NvmOpcode.FLUSH, flags=flags).status is StatusCode.INVALID_FIELD


@pytest.mark.parametrize("opcode", [0x03, 0x0D, 0x10, 0x11, 0x15, 0x80, 0xFF])
def test_nvme_admin_commands_that_are_not_there(nvme, opcode):
    assert nvme.admin(opcode).status is StatusCode.INVALID_OPCODE


def test_nvme_admin_data_out_of_reach_is_a_transfer_error(nvme):
    reply = nvme.admin(AdminOpcode.IDENTIFY, prp1=UNMAPPED, cdw10=1)
    assert (reply.status, reply.dnr) == (StatusCode.DATA_TRANSFER_ERROR, False)
