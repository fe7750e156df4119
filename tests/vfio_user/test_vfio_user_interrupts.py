"""SET_IRQS: event descriptors, masks, and how a model's interrupts reach them."""

import os
import select
import struct
from errno import EINVAL, ENOTTY

import pytest
from vfio_user_client import (
    BOOL,
    CONFIG,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    NONE,
    REQ,
    RESET,
    SET_IRQS,
    TRIGGER,
    UNMASK,
    Refused,
)

from iommu_emu.devices import Edu

FULL = (1 << 64) - 2


def count(fd):
    """Return how often an event descriptor was signalled since the last look."""
    return os.eventfd_read(fd) if select.select([fd], [], [], 0)[0] else 0


def refusal(call, *arguments, **named):
    with pytest.raises(Refused) as refused:
        call(*arguments, **named)
    return refused.value.errno


# MSI-X and MSI.


def test_msix_vector_signals_its_descriptor(client, sample, eventfd):
    fds = [eventfd(), eventfd()]
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 2, 2, fds=fds)
    assert sample.interrupt(3)
    assert [count(fd) for fd in fds] == [0, 1]


def test_msix_needs_no_table_of_ours(client, sample, eventfd, machine):
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[eventfd()])
    sample.interrupt(0)
    assert machine.core.outbox_size == 0


def test_interrupt_without_msi_is_left_to_the_pin(client, sample):
    assert not sample.interrupt(0)


def test_msi_vectors_share_what_the_client_gave(client, sample, eventfd):
    fds = [eventfd(), eventfd()]
    client.set_irqs(MSI, EVENTFD | TRIGGER, 0, 2, fds=fds)
    for vector in range(4):
        assert sample.interrupt(vector)
    assert [count(fd) for fd in fds] == [2, 2]


def test_interrupt_of_a_vector_that_is_not_there_is_the_models_mistake(client, sample, eventfd):
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[eventfd()])
    with pytest.raises(ValueError, match=r"vector must be in 0\.\.7, not 8"):
        sample.interrupt(8)


def test_new_descriptor_replaces_the_old_one(client, sample, eventfd):
    old, new = eventfd(), eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[old])
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[new])
    sample.interrupt(0)
    assert (count(old), count(new)) == (0, 1)


def test_vector_without_descriptor_is_pending_until_it_has_one(client, sample, eventfd):
    client.write(CONFIG, sample.config.find(0x11) + 2, b"\x07\x80")  # MSI-X enable
    assert sample.interrupt(1)
    table_end = 16 * 8
    assert client.read(2, table_end, 8) == struct.pack("<Q", 2)
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 1, fds=[fd])
    assert count(fd) == 1
    assert client.read(2, table_end, 8) == bytes(8)


def test_taking_a_descriptor_away(client, sample, eventfd):
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    client.set_irqs(MSIX, EVENTFD | TRIGGER)
    assert not sample.interrupt(0)
    assert count(fd) == 0


def test_masked_vector_is_signalled_when_it_is_unmasked(client, sample, eventfd):
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    client.set_irqs(MSIX, NONE | MASK)
    sample.interrupt(0)
    sample.interrupt(0)
    assert count(fd) == 0
    client.set_irqs(MSIX, NONE | UNMASK)
    assert count(fd) == 1


def test_booleans_choose_the_vectors(client, eventfd):
    fds = [eventfd() for _ in range(3)]
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 0, 3, fds=fds)
    client.set_irqs(MSIX, BOOL | TRIGGER, 0, 3, data=b"\1\0\1")
    assert [count(fd) for fd in fds] == [1, 0, 1]


def test_client_can_trigger_vectors(client, eventfd):
    fds = [eventfd(), eventfd()]
    client.set_irqs(MSI, EVENTFD | TRIGGER, 0, 2, fds=fds)
    client.set_irqs(MSI, NONE | TRIGGER, 1)
    assert [count(fd) for fd in fds] == [0, 1]


def test_count_of_zero_disables_the_type(client, sample, eventfd):
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    client.set_irqs(MSIX, NONE | TRIGGER, count=0)
    assert not sample.interrupt(0)
    assert count(fd) == 0


def test_reset_keeps_descriptors_and_forgets_what_is_pending(client, sample, eventfd):
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    client.set_irqs(MSIX, NONE | MASK)
    sample.interrupt(0)
    client.call(RESET)
    client.set_irqs(MSIX, NONE | UNMASK)
    assert count(fd) == 0
    sample.interrupt(0)
    assert count(fd) == 1


def test_interrupt_does_not_overtake_the_writes_before_it(client, sample, eventfd, memory, machine):
    client.map(0, 1 << 20, memory)
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    client.write(CONFIG, 4, b"\x04\x00")  # bus master
    sample.dma.set_latency(300, 700)
    sample.dma.write(0x1000, b"data")
    assert sample.interrupt(0)
    machine.advance(999)
    assert (count(fd), os.pread(memory, 4, 0x1000)) == (0, bytes(4))
    machine.advance(1)
    assert (count(fd), os.pread(memory, 4, 0x1000)) == (1, b"data")


def test_interrupt_on_its_way_to_a_client_that_goes_is_lost(client, sample, eventfd, machine):
    fd = eventfd()
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    sample.dma.set_latency(0, 1000)
    sample.interrupt(0)
    client.close()
    machine.advance(1000)
    assert count(fd) == 0


# INTx.


@pytest.fixture
def pin(client, eventfd):
    """The descriptor of the sample's INTx pin."""
    fd = eventfd()
    client.set_irqs(INTX, EVENTFD | TRIGGER, fds=[fd])
    return fd


def test_intx_signals_once_and_masks_itself(sample, pin):
    sample.set_intx(True)
    sample.set_intx(True)
    assert count(pin) == 1


def test_intx_that_is_still_asserted_signals_again_when_unmasked(client, sample, pin):
    sample.set_intx(True)
    count(pin)
    client.set_irqs(INTX, NONE | UNMASK)
    assert count(pin) == 1


def test_intx_that_is_deasserted_stays_quiet_when_unmasked(client, sample, pin):
    sample.set_intx(True)
    count(pin)
    sample.set_intx(False)
    client.set_irqs(INTX, NONE | UNMASK)
    assert count(pin) == 0


def test_intx_asserted_before_it_had_a_descriptor(client, sample, eventfd):
    sample.set_intx(True)
    fd = eventfd()
    client.set_irqs(INTX, EVENTFD | TRIGGER, fds=[fd])
    assert count(fd) == 1


def test_intx_arrives_behind_the_writes_before_it(sample, pin, machine):
    sample.dma.set_latency(0, 1000)
    sample.set_intx(True)
    machine.advance(999)
    assert count(pin) == 0
    machine.advance(1)
    assert count(pin) == 1


def test_intx_obeys_the_command_register(client, sample, pin):
    client.write(CONFIG, 4, b"\x00\x04")  # INTx disable
    sample.set_intx(True)
    assert count(pin) == 0
    client.write(CONFIG, 4, b"\x00\x00")
    assert count(pin) == 1


def test_intx_is_unmasked_by_a_descriptor_of_the_client(client, sample, pin, eventfd):
    unmask = eventfd()
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[unmask])
    sample.set_intx(True)
    count(pin)
    os.eventfd_write(unmask, 1)
    assert client.silent
    assert count(pin) == 1


def test_intx_is_masked_by_a_descriptor_of_the_client(client, sample, pin, eventfd):
    mask = eventfd()
    client.set_irqs(INTX, EVENTFD | MASK, fds=[mask])
    os.eventfd_write(mask, 1)
    assert client.silent
    sample.set_intx(True)
    assert count(pin) == 0


def test_intx_descriptors_of_the_client_are_replaced_and_taken_away(client, sample, pin, eventfd):
    old, new = eventfd(), eventfd()
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[old])
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[new])
    client.set_irqs(INTX, EVENTFD | UNMASK)
    sample.set_intx(True)
    count(pin)
    for fd in (old, new):
        os.eventfd_write(fd, 1)
    assert client.silent
    assert count(pin) == 0


def test_edu_raises_its_pin_through_the_client(server, connect, eventfd):
    client = connect(server.serve(Edu(), None, "00:06.0"))
    fd = eventfd()
    client.set_irqs(INTX, EVENTFD | TRIGGER, fds=[fd])
    client.write32(0, 0x60, 1)
    assert count(fd) == 1
    client.write32(0, 0x64, 1)
    client.set_irqs(INTX, NONE | UNMASK)
    assert count(fd) == 0


# Device request and errors.


def test_request_asks_the_client_to_let_go(client, endpoint, eventfd):
    fd = eventfd()
    client.set_irqs(REQ, EVENTFD | TRIGGER, fds=[fd])
    endpoint.interrupts.request_removal()
    assert count(fd) == 1


@pytest.mark.parametrize("index", [ERR, REQ])
@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_error_and_request_cannot_be_masked(client, index, action):
    assert refusal(client.set_irqs, index, NONE | action) == ENOTTY


def test_error_descriptor_is_taken(client, eventfd):
    fd = eventfd()
    client.set_irqs(ERR, EVENTFD | TRIGGER, fds=[fd])
    client.set_irqs(ERR, NONE | TRIGGER)
    assert count(fd) == 1


# What cannot be meant.


@pytest.mark.parametrize(
    ("index", "flags", "start", "number", "data"),
    [
        (5, NONE | TRIGGER, 0, 1, b""),
        (MSIX, 0, 0, 1, b""),
        (MSIX, NONE, 0, 1, b""),
        (MSIX, TRIGGER, 0, 1, b""),
        (MSIX, NONE | BOOL | TRIGGER, 0, 1, b"\1"),
        (MSIX, NONE | MASK | UNMASK, 0, 1, b""),
        (MSIX, NONE | TRIGGER | 64, 0, 1, b""),
        (MSIX, NONE | TRIGGER, 8, 1, b""),
        (MSIX, NONE | TRIGGER, 0, 9, b""),
        (MSIX, NONE | TRIGGER, 0xFFFF_FFFF, 0xFFFF_FFFF, b""),
        (MSIX, NONE | TRIGGER, 1, 0, b""),
        (MSIX, NONE | MASK, 0, 0, b""),
        (MSIX, EVENTFD | TRIGGER, 0, 0, b""),
        (MSIX, BOOL | TRIGGER, 0, 2, b"\1"),
    ],
)
def test_set_irqs_of_what_cannot_be_meant_is_invalid(client, index, flags, start, number, data):
    assert refusal(client.set_irqs, index, flags, start, number, data) == EINVAL


@pytest.mark.parametrize("body", [b"", bytes(19), struct.pack("<IIIII", 19, 33, 0, 0, 1)])
def test_set_irqs_must_be_whole(client, body):
    assert refusal(client.call, SET_IRQS, body) == EINVAL


def test_set_irqs_takes_as_many_descriptors_as_vectors(client, eventfd):
    fds = [eventfd(), eventfd()]
    assert refusal(client.set_irqs, MSIX, EVENTFD | TRIGGER, 0, 3, fds=fds) == EINVAL
    assert refusal(client.set_irqs, MSIX, NONE | TRIGGER, 0, 2, fds=fds) == EINVAL


def test_set_irqs_wants_event_descriptors(client, sample):
    reading, writing = os.pipe()
    assert refusal(client.set_irqs, MSIX, EVENTFD | TRIGGER, fds=[writing]) == EINVAL
    assert not sample.interrupt(0)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_set_irqs_masks_messages_without_descriptors_only(client, eventfd, action):
    assert refusal(client.set_irqs, MSIX, EVENTFD | action, fds=[eventfd()]) == ENOTTY


def test_descriptor_that_is_full_blocks_nobody(client, sample, eventfd):
    fd = eventfd(flags=os.EFD_CLOEXEC)
    os.eventfd_write(fd, FULL)
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[fd])
    assert sample.interrupt(0)
    assert os.eventfd_read(fd) == FULL + 1


def test_unmask_that_the_client_takes_back_blocks_nobody(client, sample, server, pin, eventfd):
    """The descriptor blocks, and is read by its other owner between our look and our act."""
    unmask, trap = eventfd(flags=os.EFD_CLOEXEC), eventfd()
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[unmask])
    os.set_blocking(unmask, True)
    sample.set_intx(True)
    count(pin)
    server.watch(trap, lambda: (os.eventfd_read(trap), os.eventfd_read(unmask)))
    os.eventfd_write(trap, 1)
    os.eventfd_write(unmask, 1)
    server.run_once(0)
    server.unwatch(trap)
    assert count(pin) == 0


def test_unmask_by_descriptor_that_is_taken_away_at_once(client, pin, eventfd):
    """Both are there in one turn: what was signalled is closed when it is looked at."""
    unmask = eventfd()
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[unmask])
    client.send(SET_IRQS, struct.pack("<IIIII", 20, NONE | TRIGGER, INTX, 0, 0))
    os.eventfd_write(unmask, 1)
    assert client.receive().error == 0
    assert client.irq_info(INTX)


def test_unmask_by_descriptor_is_noticed_each_time(client, sample, pin, eventfd):
    unmask = eventfd()
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[unmask])
    sample.set_intx(True)
    for _ in range(3):
        assert count(pin) == 1
        os.eventfd_write(unmask, 1)
        assert client.silent
