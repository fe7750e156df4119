import pytest
from guest_samples import DATA

from iommu_emu.clock import MILLISECOND
from iommu_emu.guest.window import PATIENCE, Window, WindowRound

PAGES = 4
SIZE = PAGES * 4096


@pytest.fixture
def used(watched):
    """A device that has used four pages."""
    watched.domain.map(0x5000, DATA, SIZE)
    watched.device.read(0x5000, SIZE)
    watched.window = Window(watched.device, watched.observer)
    return watched


def look(used, milliseconds=100):
    used.window.look(SIZE)
    used.machine.advance(milliseconds * MILLISECOND)
    return used.window.rounds


def test_window_of_pages_that_are_mapped_is_none(used):
    assert look(used) == [WindowRound(size=SIZE, touched=PAGES, stale=0, lasted_ms=0)]


def test_window_after_an_invalidation_is_none(used):
    used.domain.unmap(0x5000, SIZE)
    assert look(used) == [WindowRound(size=SIZE, touched=0, stale=0, lasted_ms=0)]


def test_window_without_an_invalidation_lasts_as_long_as_it_is_looked_at(used):
    used.domain.unmap(0x5000, SIZE, invalidate=False)
    assert look(used) == [
        WindowRound(size=SIZE, touched=PAGES, stale=PAGES, lasted_ms=PATIENCE / MILLISECOND)
    ]


def test_window_ends_with_the_invalidation(used):
    used.domain.unmap(0x5000, SIZE, invalidate=False)
    used.machine.clock.call_later(7 * MILLISECOND + 1, used.domain.flush)
    assert look(used) == [WindowRound(size=SIZE, touched=PAGES, stale=PAGES, lasted_ms=7)]


def test_window_counts_the_pages_that_are_gone_alone(used):
    used.domain.unmap(0x6000, 4096, invalidate=False)
    rounds = look(used)
    assert (rounds[0].touched, rounds[0].stale) == (PAGES, 1)


def test_window_touches_change_nothing_and_fault_nowhere(used):
    used.machine.memory.write(DATA, b"secret")
    look(used)
    used.observer.poll()
    assert (used.observer.fault_count, used.machine.memory.read(DATA, 6)) == (0, b"secret")


def test_window_round_under_way_is_not_begun_again(used):
    used.domain.unmap(0x5000, SIZE, invalidate=False)
    used.window.look(SIZE)
    used.window.look(SIZE)
    used.machine.advance(100 * MILLISECOND)
    assert len(used.window.rounds) == 1


def test_window_that_is_expected_counts_from_before_the_unmap_is_known(used):
    used.window.expect()
    used.machine.advance(2 * MILLISECOND)
    used.domain.unmap(0x5000, SIZE, invalidate=False)
    used.machine.advance(5 * MILLISECOND)  # touched at 3, 4, 5, 6, 7 ms
    used.domain.flush()
    assert look(used) == [WindowRound(size=SIZE, touched=PAGES, stale=PAGES, lasted_ms=4)]


def test_window_that_is_expected_goes_on_until_it_is_stopped(used):
    used.window.expect()
    used.machine.advance(10 * MILLISECOND)
    assert used.machine.clock.next_event is not None
    used.window.stop()
    assert used.machine.clock.next_event is None


def test_window_touches_pages_that_are_mapped_for_writes_alone(watched):
    watched.domain.map(0x5000, DATA, 4096, "w")
    watched.device.write(0x5000, b"x")
    watched.window = Window(watched.device, watched.observer)
    assert look(watched) == [WindowRound(size=SIZE, touched=1, stale=0, lasted_ms=0)]
    watched.observer.poll()
    assert watched.observer.fault_count == 0
