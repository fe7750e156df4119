"""A laboratory: what it builds, counts and tells."""

import pytest

from iommu_emu import policies
from iommu_emu.core import Access
from iommu_emu.devices import MaliciousDevice
from iommu_emu.devices.malicious.post_deassign import PostDeassign
from iommu_emu.pci.capabilities import Acs
from iommu_emu.refused import RefusedError
from iommu_emu.scenarios.laboratory import FIRMWARE, PAGE, RAM, Laboratory
from iommu_emu.scenarios.result import FOREVER
from iommu_emu.timeline import EventKind

STRICT = policies.load("linux-strict")


@pytest.fixture(params=["vtd", "amdvi"])
def laboratory(request):
    return Laboratory(request.param, STRICT)


def test_laboratory_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match="iommu must be one of vtd, amdvi, not 'smmu'"):
        Laboratory("smmu", STRICT)
    with pytest.raises(ValueError, match="cpus must be at least 1, not 0"):
        Laboratory("vtd", STRICT, cpus=0)


def test_laboratory_has_one_unit_for_every_device(laboratory):
    device = laboratory.attach(MaliciousDevice())
    assert laboratory.machine.unit_of(device) is laboratory.unit
    assert laboratory.machine.notes == []


def test_ports_are_made_once_and_have_access_control(laboratory):
    port = laboratory.port("internal")
    assert laboratory.port("internal") is port
    assert not port.external_facing
    assert laboratory.port("external").external_facing
    assert port.acs is Acs.NONE  # the kernel switches it on
    assert laboratory.linux.groups.of(port) is not None
    assert Acs.REQUEST_REDIRECT in port.acs


def test_each_device_gets_a_port_of_its_own(laboratory):
    first, second = laboratory.attach(MaliciousDevice()), laboratory.attach(MaliciousDevice())
    laboratory.remove(first)
    third = laboratory.attach(MaliciousDevice())
    ports = [device.bus.parent.name for device in (second, third)]
    assert ports == ["internal 2", "internal"]


def test_device_is_external_where_the_policy_or_the_attack_says_so(laboratory):
    inside = laboratory.attach(MaliciousDevice())
    outside = laboratory.attach(MaliciousDevice(), external=True)
    assert [laboratory.linux.device(d).untrusted for d in (inside, outside)] == [False, True]


def test_running_kernel_takes_notice_of_devices(laboratory):
    assert not laboratory.booted
    device = laboratory.attach(MaliciousDevice())
    linux = laboratory.linux
    late = laboratory.attach(MaliciousDevice())
    assert {device, late} <= set(linux.devices)
    laboratory.remove(late)
    assert late not in linux.devices


def test_policy_of_another_system_has_no_such_kernel():
    with pytest.raises(TypeError, match="policy linux-strict has no Xen hypervisor"):
        _ = Laboratory("vtd", STRICT).xen
    with pytest.raises(TypeError, match="policy xen-basic has no Linux kernel"):
        _ = Laboratory("vtd", policies.load("xen-basic")).linux


def test_reserved_memory_is_the_devices_own(laboratory):
    device = laboratory.attach(MaliciousDevice())
    first = laboratory.reserve(device, 2 * PAGE)
    second = laboratory.reserve(0x1234)
    assert (first.base, first.limit) == (FIRMWARE.start, FIRMWARE.start + 2 * PAGE - 1)
    assert second.base == first.limit + 1
    assert first.requesters == ((device.dma.requester,) * 2,)


def test_reserved_memory_must_be_asked_for_in_time_and_in_pages(laboratory):
    device = laboratory.attach(MaliciousDevice())
    with pytest.raises(ValueError, match="base and size must be whole pages, not None and 100"):
        laboratory.reserve(device, 100)
    with pytest.raises(ValueError, match="size must be at most the 8388608 bytes left"):
        laboratory.reserve(device, 16 << 20)
    assert laboratory.linux
    with pytest.raises(RuntimeError, match="before the kernel boots"):
        laboratory.reserve(device)


def test_secret_is_the_same_for_the_same_seed():
    secrets = [Laboratory("vtd", STRICT, seed=seed).secret(64) for seed in (1, 1, 2)]
    assert secrets[0] == secrets[1] != secrets[2]
    assert not {0x00, 0xFF} & set(secrets[0])


def test_matching_counts_bytes_at_their_places_but_no_accidents():
    secret = bytes(range(1, 33))
    assert Laboratory.matching(secret, secret) == 32
    assert Laboratory.matching(bytes(8) + secret[8:20] + bytes(12), secret) == 12
    assert Laboratory.matching(bytes(8) + secret[8:11] + bytes(21), secret) == 0
    assert Laboratory.matching(secret[1:], secret) == 0
    assert Laboratory.matching(secret[:2], secret) == 2


def test_changed_counts_bytes_that_differ(laboratory):
    secret = laboratory.plant(RAM.start, 16)
    laboratory.machine.memory.write(RAM.start + 4, bytes(3))
    assert laboratory.changed(RAM.start, secret) == 3


def test_window_ends_with_the_last_access_that_got_through(laboratory):
    device = laboratory.attach(MaliciousDevice())
    laboratory.read(device, RAM.start, 4)  # the IOMMU is off
    laboratory.clock.advance(1_000)
    laboratory.revoke("everything")
    attempt = laboratory.read(device, RAM.start, 4, until=51_000, every=10_000)
    assert (attempt.tried, attempt.landed, attempt.data) == (6, 6, bytes(4))
    outcome = laboratory.outcome(leaked=4)
    assert (outcome.window, outcome.dmas) == (50_000, 6)


def test_window_is_never_0_if_something_got_through(laboratory):
    device = laboratory.attach(MaliciousDevice())
    laboratory.revoke("everything")
    assert laboratory.outcome().window == 0
    laboratory.write(device, RAM.start, b"x")
    assert laboratory.outcome().window == 1
    assert laboratory.outcome(forever=True).window == FOREVER


def test_attempts_end_with_the_first_that_is_stopped(laboratory):
    device = laboratory.attach(MaliciousDevice())
    assert laboratory.linux
    laboratory.revoke("everything")
    attempt = laboratory.write(device, 0x4000, b"x", until=10**9)
    assert (attempt.tried, attempt.landed, attempt.ok) == (1, 0, False)
    assert laboratory.outcome().blocked
    kinds = [event.kind for event in laboratory.timeline if event.lane == device.name]
    assert kinds == [EventKind.NOTE, EventKind.FAULT]


def test_attempt_waits_for_what_is_in_flight(laboratory):
    device = laboratory.attach(MaliciousDevice())
    device.dma.set_latency(300, 200)
    attempt = laboratory.read(device, RAM.start, 4)
    assert attempt.ok
    assert laboratory.clock.now >= 500


def test_attempt_checks_what_it_is_asked(laboratory):
    device = laboratory.attach(MaliciousDevice())
    with pytest.raises(ValueError, match="payload must be a number of bytes to read"):
        laboratory.attempt(device, Access.READ, 0, b"x")
    with pytest.raises(ValueError, match="every must be at least 1 ns, not 0"):
        laboratory.read(device, 0, 4, until=5, every=0)


def test_row_tells_what_an_administrator_sees(laboratory):
    device = laboratory.attach(MaliciousDevice("stranger"))
    assert laboratory.linux
    laboratory.say("A stranger reads.")
    laboratory.read(device, 0x4000, 4)
    laboratory.refuse(RefusedError("EBUSY", "it is taken"))
    row = laboratory.row("attack", laboratory.outcome())
    assert (row.policy, row.attack) == ("linux-strict", "attack")
    assert row.story == ["A stranger reads."]
    assert row.refused == "-EBUSY: it is taken"
    assert len(row.faults) == 1
    assert row.faults[0] in row.log
    assert 0 < row.invalidations < row.descriptors


def test_accesses_of_a_devices_own_are_followed_to_the_last(laboratory):
    device = laboratory.attach(PostDeassign())
    laboratory.linux.device(device)  # the kernel boots: the device reaches nothing
    laboratory.revoke("everything")
    made = device.keep_reading(0x1000, 4, interval=1000, times=3)
    attempt = laboratory.follow(device, Access.READ, 0x1000, 4, made)
    assert (attempt.tried, attempt.landed, laboratory.clock.now) == (3, 0, 3000)


def test_nothing_cannot_be_followed(laboratory):
    with pytest.raises(ValueError, match="completions must be of at least one access"):
        laboratory.follow(None, Access.READ, 0x1000, 4, [])
