"""The ring NIC: causes, vectors and the pin."""

from iommu_emu.devices.nic import Cause, Register


def test_nic_receiving_and_transmitting_have_their_own_vectors(nic):
    nic.nic.receive(b"in")
    assert nic.vectors == [0x40]
    nic.driver.send(b"out")
    assert nic.vectors == [0x40, 0x41]


def test_nic_interrupts_once_until_the_cause_is_cleared(nic):
    for _ in range(3):
        nic.nic.receive(b"in")
    assert nic.vectors == [0x40]
    nic.driver.write(Register.CAUSE, Cause.RECEIVED)
    nic.nic.receive(b"in")
    assert nic.vectors == [0x40, 0x40]


def test_nic_masked_cause_interrupts_when_it_is_enabled(nic):
    nic.driver.write(Register.ENABLE, 0)
    nic.nic.receive(b"in")
    assert (nic.vectors, nic.causes) == ([], Cause.RECEIVED)
    nic.driver.write(Register.ENABLE, Cause.RECEIVED)
    assert nic.vectors == [0x40]


def test_nic_sends_a_vector_again_whose_other_cause_is_left(nic):
    nic.nic.happened(Cause.NO_DESCRIPTOR | Cause.RECEIVED)
    nic.driver.write(Register.CAUSE, Cause.RECEIVED)
    assert (nic.vectors, nic.causes) == ([0x40, 0x40], Cause.NO_DESCRIPTOR)


def test_nic_pin_is_up_while_an_enabled_cause_is(bare_nic):
    bare_nic.driver.start(causes=int(Cause.RECEIVED))
    bare_nic.driver.send(b"out")
    assert not bare_nic.nic.intx
    bare_nic.nic.receive(b"in")
    assert bare_nic.nic.intx
    bare_nic.driver.write(Register.CAUSE, Cause.RECEIVED)
    assert not bare_nic.nic.intx


def test_nic_interrupts_after_its_write_back(slow_nic):
    seen = []
    slow_nic.machine.on_interrupt = lambda interrupt: seen.append(slow_nic.driver.poll())
    slow_nic.nic.receive(b"in")
    slow_nic.machine.advance(1_000)
    assert seen == [[b"in"]]
