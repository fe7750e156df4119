import pytest

from iommu_emu import AddressType, Bridge, Machine, Status
from iommu_emu.core import AtomicKind
from iommu_emu.devices import MaliciousDevice


@pytest.fixture
def attack(machine):
    return machine.attach(MaliciousDevice(), "00:05.0")


def test_malicious_reads_any_memory_without_an_iommu(machine, attack):
    machine.memory.write(0x1000, b"secret")
    assert attack.read(0x1000, 6).data == b"secret"


def test_malicious_write_waits_its_delay(machine, attack):
    completion = attack.write(0x1000, b"owned", delay=100)
    machine.advance(99)
    assert (completion.pending, machine.memory.read(0x1000, 5)) == (True, bytes(5))
    machine.advance(1)
    assert (completion.ok, machine.memory.read(0x1000, 5)) == (True, b"owned")


def test_malicious_writes_what_it_was_told_at_the_time(machine, attack):
    data = bytearray(b"then")
    attack.write(0x1000, data, delay=10)
    data[:] = b"now!"
    machine.advance(10)
    assert machine.memory.read(0x1000, 4) == b"then"


def test_malicious_is_blocked_by_the_iommu_with_a_record(driver, attack):
    completion = attack.write(0x1000, b"owned")
    assert completion.status is Status.UNSUPPORTED_REQUEST
    assert [record.requester for record in driver.faults()] == [0x0028]


def test_malicious_spoofs_a_requester_id_and_uses_its_mappings(driver, attack):
    domain = driver.create_domain()
    domain.map(0x1000, 0x5000, 4096)
    driver.attach(domain, 0x0010)
    assert attack.write(0x1000, b"owned", requester=0x0010).ok
    assert attack.dma.requester == 0x0028


def test_malicious_translated_request_is_blocked_without_ats(driver, attack):
    completion = attack.read(0x1000, 4, at=AddressType.TRANSLATED)
    assert completion.status is Status.UNSUPPORTED_REQUEST


def test_malicious_ignores_its_own_bus_master_bit(machine, attack):
    machine.config_write("00:05.0", 0x04, 2, 0)
    assert attack.write(0x1000, b"owned").ok


def test_malicious_is_stopped_by_a_bridge_that_does_not_forward(machine):
    port = machine.attach(Bridge(), "00:1c.0")
    attack = machine.attach(MaliciousDevice(), under=port)
    machine.config_write("00:1c.0", 0x04, 2, 0)
    assert attack.write(0x1000, b"owned").status is Status.UNSUPPORTED_REQUEST


def test_malicious_sends_interrupts(machine, attack):
    attack.write(0xFEE0_0000, (0x80).to_bytes(4, "little"))
    assert [(i.vector, i.requester) for i in machine.interrupts] == [(0x80, 0x0028)]


def test_malicious_atomic_swaps(machine, attack):
    machine.memory.write_u64(0x1000, 1)
    assert attack.atomic(AtomicKind.SWAP, 0x1000, 2).data == (1).to_bytes(8, "little")


def test_malicious_looks_like_what_it_is_told():
    machine = Machine(4096)
    machine.attach(MaliciousDevice(looks_like=(0x8086, 0x10D3)), "00:01.0")
    assert machine.config_read("00:01.0", 0, 4) == 0x10D3_8086


def test_malicious_refuses_an_id_of_17_bits():
    with pytest.raises(ValueError, match=r"looks_like must be two numbers in 0\.\.0xffff"):
        MaliciousDevice(looks_like=(0x10000, 0))


def test_malicious_log_keeps_every_attack(machine, attack):
    attack.read(0x1000, 4)
    attack.write(0x9000_0000, b"x")
    assert [completion.ok for completion in attack.log] == [True, False]


def test_malicious_removed_before_its_delay_is_over_sends_nothing(machine, attack):
    completion = attack.write(0x1000, b"owned", delay=10)
    machine.remove(attack)
    machine.advance(10)
    assert (completion.status, machine.memory.read(0x1000, 5)) == (Status.REMOVED, bytes(5))


def test_malicious_reads_in_flight_at_removal_are_lost(machine, attack):
    attack.dma.set_latency(10, 10)
    completion = attack.read(0x1000, 4)
    machine.remove(attack)
    machine.advance(20)
    assert completion.status is Status.REMOVED
