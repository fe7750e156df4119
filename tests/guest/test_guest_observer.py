from guest_samples import DATA

from iommu_emu.core import Access
from iommu_emu.guest.observer import TRACE_EVENTS, describe_descriptor
from iommu_emu.vtd.structures import ContextInvalidation, IotlbInvalidation, WaitDescriptor


def test_observer_counts_register_accesses_by_name(machine, watched):
    observer = watched.observer
    observer.poll()
    before = observer.reads["CAP"], observer.writes["FSTS"]
    machine.mmio_read(0xFED9_0008, 8)
    machine.mmio_read(0xFED9_000C, 4)
    machine.mmio_write(0xFED9_0034, 4, 0)
    observer.poll()
    assert (observer.reads["CAP"], observer.writes["FSTS"]) == (before[0] + 2, before[1] + 1)


def test_observer_names_what_is_no_register(machine, watched):
    machine.mmio_read(0xFED9_0FF0, 4)
    watched.observer.poll()
    assert watched.observer.reads["reserved 0xff0"] == 1


def test_observer_counts_invalidations_by_kind(watched):
    watched.observer.poll()
    watched.observer.invalidations.clear()
    watched.domain.map(0x5000, DATA, 4096)
    watched.device.read(0x5000, 4)
    watched.domain.unmap(0x5000, 4096)
    watched.observer.poll()
    assert watched.observer.invalidations == {"IOTLB, page": 1, "wait": 1}


def test_observer_keeps_a_fault_with_its_cause(watched):
    watched.device.write(0x7123, b"x")
    watched.observer.poll()
    (fault,) = watched.observer.faults
    assert (fault.requester, fault.address, fault.page) == (0x0028, 0x7123, 0x7000)
    assert (fault.access, fault.code, fault.cause.name) == (Access.WRITE, 5, "LGN.2")


def test_observer_counts_traffic_by_requester(watched):
    watched.domain.map(0x5000, DATA, 8192)
    watched.device.read(0x5FFC, 8)  # two pages, two transactions
    watched.device.read(0x9000, 4)
    watched.observer.poll()
    traffic = watched.observer.traffic[0x0028]
    assert (traffic.dmas, traffic.bytes, traffic.translations, traffic.refused) == (2, 8, 3, 1)


def test_observer_keeps_uses_of_stale_entries(watched):
    watched.domain.map(0x5000, DATA, 4096)
    watched.device.read(0x5000, 4)
    watched.domain.unmap(0x5000, 4096, invalidate=False)
    watched.device.read(0x5000, 4)
    watched.observer.poll()
    assert [use.request.address for use in watched.observer.stale] == [0x5000]


def test_observer_sees_each_event_once(watched):
    watched.device.read(0x9000, 4)
    for _ in range(3):
        watched.observer.poll()
    assert watched.observer.fault_count == 1


def test_observer_keeps_a_thousand_faults_and_counts_all(watched):
    for _ in range(3):
        for page in range(500):
            watched.device.read(page << 12, 4)
        watched.observer.poll()
    assert (len(watched.observer.faults), watched.observer.fault_count) == (1000, 1500)


def test_observer_says_how_many_events_it_missed(watched):
    watched.observer.poll()
    for _ in range(TRACE_EVENTS + 100):
        watched.unit.read("VER")
    watched.observer.poll()
    assert watched.observer.lost == 100


def test_observer_names_descriptors():
    def words(entry):
        return int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")

    named = [
        describe_descriptor(*words(entry))
        for entry in (
            ContextInvalidation.build(g=1),
            ContextInvalidation.build(g=3),
            IotlbInvalidation.build(g=2),
            WaitDescriptor.build(sw=1),
        )
    ]
    assert named == ["context, global", "context, device", "IOTLB, domain", "wait"]
    assert describe_descriptor(0xF, 0) == "type 15"
