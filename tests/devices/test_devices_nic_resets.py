"""The ring NIC: switched off, reset and removed, at rest and in the middle of its work."""

import gc
import weakref

from nic_bed import ADDRESS, FABRIC, RUNNING, RX, TO_MEMORY, TX, FullFabric, start_both

from iommu_emu.devices.nic import Control, Register


def test_nic_ring_is_off_when_nothing_of_it_is_in_flight(slow_nic):
    start_both(slow_nic)
    slow_nic.enable(0)
    assert slow_nic.status == RUNNING
    slow_nic.machine.advance(FABRIC + TO_MEMORY)
    assert (slow_nic.status, slow_nic.nic.dma.in_flight) == (0, (0, 0))


def test_nic_switched_off_writes_nothing_back(slow_nic):
    start_both(slow_nic)
    slow_nic.enable(0)
    slow_nic.machine.advance(100_000)
    assert (slow_nic.driver.take(), slow_nic.driver.reclaim(), slow_nic.vectors) == (None, 0, [])


def test_nic_switched_on_too_early_starts_when_it_has_stopped(slow_nic):
    start_both(slow_nic)
    slow_nic.enable(0)
    slow_nic.enable()
    slow_nic.machine.advance(FABRIC + TO_MEMORY)
    assert (slow_nic.status, slow_nic.head(RX)) == (RUNNING, 0)
    slow_nic.tail(RX, 1)
    slow_nic.nic.receive(b"in")
    slow_nic.machine.advance(1_000)
    assert slow_nic.driver.take().data == b"in"


def test_nic_reset_bit_is_set_until_nothing_is_in_flight(slow_nic):
    start_both(slow_nic)
    slow_nic.enable(Control.RESET)
    assert slow_nic.driver.read(Register.CONTROL) == Control.RESET
    slow_nic.machine.advance(FABRIC + TO_MEMORY)
    registers = [slow_nic.driver.read(at) for at in (0x00, 0x04, 0x08, 0x0C, 0x100, 0x108, 0x208)]
    assert registers == [0] * 7


def test_nic_takes_no_register_writes_while_it_resets(slow_nic):
    start_both(slow_nic)
    slow_nic.enable(Control.RESET)
    slow_nic.enable()
    slow_nic.machine.advance(100_000)
    assert slow_nic.status == 0


def test_nic_reset_at_rest_is_over_at_once(nic):
    nic.enable(Control.RESET)
    assert (nic.driver.read(Register.CONTROL), nic.status) == (0, 0)


def test_nic_function_reset_forgets_what_is_in_flight(slow_nic):
    start_both(slow_nic)
    slow_nic.nic.reset()
    slow_nic.machine.advance(100_000)
    assert (slow_nic.driver.take(), list(slow_nic.nic.sent)) == (None, [])
    assert slow_nic.nic.bar_read(0, Register.STATUS, 4) == 0


def test_nic_removed_in_the_middle_says_nothing_more(slow_nic):
    start_both(slow_nic)
    slow_nic.machine.remove(slow_nic.nic)
    slow_nic.machine.advance(100_000)
    slow_nic.nic.receive(b"in")
    assert (slow_nic.driver.take(), list(slow_nic.nic.sent), slow_nic.vectors) == (None, [], [])
    assert slow_nic.nic.statistics.rx_missed == 2


def test_nic_removed_during_backpressure_stops_its_clock(nic):
    FullFabric(nic.nic.dma, nic.driver.free[0])
    nic.driver.send(b"out")
    nic.machine.remove(nic.nic)
    nic.machine.advance(10_000)
    assert (nic.machine.clock.next_event, list(nic.nic.sent)) == (None, [])


def test_nic_wire_may_remove_the_controller(nic):
    nic.nic.wire = lambda _: nic.machine.remove(nic.nic)
    nic.driver.post(b"first")
    nic.driver.post(b"second")
    nic.driver.kick()
    assert nic.nic.statistics.tx_frames == 1


def test_nic_wire_may_stop_the_driver_and_start_it_again(guarded_nic):
    def restart(_):
        guarded_nic.driver.stop()
        guarded_nic.driver.start()

    guarded_nic.nic.wire = restart
    guarded_nic.driver.post(b"first")
    guarded_nic.driver.send(b"second")
    assert (guarded_nic.status, guarded_nic.head(TX)) == (RUNNING, 0)
    assert guarded_nic.nic.statistics.tx_frames == 1


def test_nic_leaves_nothing_behind_when_it_is_removed(slow_nic):
    start_both(slow_nic)
    gone = weakref.ref(slow_nic.nic)
    slow_nic.machine.remove(slow_nic.nic)
    slow_nic.machine.advance(100_000)
    slow_nic.nic = slow_nic.driver = None
    gc.collect()
    assert gone() is None


def test_nic_plugged_in_again_works(slow_nic):
    start_both(slow_nic)
    slow_nic.machine.remove(slow_nic.nic)
    slow_nic.driver.stop()
    slow_nic.machine.attach(slow_nic.nic, ADDRESS)
    slow_nic.ready()
    slow_nic.nic.receive(b"again")
    slow_nic.machine.advance(1_000)
    assert slow_nic.driver.poll() == [b"again"]
