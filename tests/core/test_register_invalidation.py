"""The CCMD and IOTLB commands (VT-d 2.6, 2.7); what they drop is in test_invalidation_scope."""

from __future__ import annotations

import pytest
from core_bench import (
    DEVICE,
    DOMAIN,
    GLOBAL,
    ROOT_TABLE,
    SELECTIVE,
    Bench,
    ByRegister,
)

from iommu_emu.core import CacheId, InvalidationState
from iommu_emu.timing import Timing

ICC = IVT = 1 << 63


def caig(bench: Bench) -> int:
    return bench.read("CCMD") >> 59 & 3


def iaig(bench: Bench) -> int:
    return bench.read("IOTLB") >> 57 & 3


def filled(**arguments: object) -> Bench:
    """Return an enabled bench with one translation of domain 1 cached."""
    bench = Bench(**arguments)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    return bench


def cached(bench: Bench) -> tuple[int, int, int]:
    caches = (CacheId.CONTEXT, CacheId.IOTLB, CacheId.PAGING)
    return tuple(len(bench.unit.entries(cache)) for cache in caches)


EVERYTHING = (1, 1, 3)


@pytest.mark.parametrize("g", [GLOBAL, DOMAIN, SELECTIVE])
def test_register_invalidation_of_context_reports_what_it_did(g: int) -> None:
    bench = filled()
    ByRegister(bench).context(g, 1, DEVICE)
    assert not bench.read("CCMD") & ICC
    assert caig(bench) == g
    assert cached(bench) == (0, 1, 3)


@pytest.mark.parametrize("g", [GLOBAL, DOMAIN, SELECTIVE])
def test_register_invalidation_of_iotlb_reports_what_it_did(g: int) -> None:
    bench = filled()
    ByRegister(bench).iotlb(g, 1, 0x5000)
    assert not bench.read("IOTLB") & IVT
    assert iaig(bench) == g
    assert cached(bench) == (1, 0, 0)


@pytest.mark.parametrize("major", [1, 2, 5, 6, 7])
def test_register_invalidation_is_gone_from_version_6_on(major: int) -> None:
    bench = filled(major=major)
    way = ByRegister(bench)
    way.context(GLOBAL)
    way.iotlb(GLOBAL)
    done = major < 6
    assert (caig(bench), iaig(bench)) == ((GLOBAL, GLOBAL) if done else (0, 0))
    assert not bench.read("CCMD") & ICC
    assert not bench.read("IOTLB") & IVT
    assert cached(bench) == ((0, 0, 0) if done else EVERYTHING)


@pytest.mark.parametrize("ttm", [0, 1, 2, 3])
def test_register_invalidation_needs_legacy_mode(ttm: int) -> None:
    bench = filled()
    bench.set_root(ROOT_TABLE | ttm << 10)
    way = ByRegister(bench)
    way.context(GLOBAL)
    way.iotlb(GLOBAL)
    assert (caig(bench), iaig(bench)) == ((0, 0) if ttm else (GLOBAL, GLOBAL))
    assert cached(bench) == (EVERYTHING if ttm else (0, 0, 0))


def test_register_invalidation_of_reserved_granularity_does_nothing() -> None:
    bench = filled()
    way = ByRegister(bench)
    way.context(GLOBAL)
    way.iotlb(GLOBAL)
    bench.translate(0x5000)
    way.context(0)
    way.iotlb(0)
    assert (caig(bench), iaig(bench)) == (0, 0)
    assert cached(bench) == EVERYTHING


@pytest.mark.parametrize("mamv", [0, 9, 18])
@pytest.mark.parametrize("above", [0, 1])
def test_register_invalidation_mask_is_limited(mamv: int, above: int) -> None:
    bench = filled(max_address_mask=mamv)
    ByRegister(bench).iotlb(SELECTIVE, 1, 0x5000, am=mamv + above)
    assert iaig(bench) == (0 if above else SELECTIVE)
    assert cached(bench) == (EVERYTHING if above else (1, 0, 0))


@pytest.mark.parametrize("g", [GLOBAL, DOMAIN, SELECTIVE])
def test_register_invalidation_mask_counts_for_pages_only(g: int) -> None:
    bench = filled(max_address_mask=9)
    ByRegister(bench).iotlb(g, 1, 0x5000, am=63)
    assert iaig(bench) == (0 if g == SELECTIVE else g)


@pytest.mark.parametrize("g", [GLOBAL, DOMAIN, SELECTIVE])
def test_register_invalidation_of_pages_needs_psi(g: int) -> None:
    bench = filled(page_selective=False)
    ByRegister(bench).iotlb(g, 1, 0x5000)
    assert iaig(bench) == (0 if g == SELECTIVE else g)
    assert cached(bench) == (EVERYTHING if g == SELECTIVE else (1, 0, 0))


@pytest.mark.parametrize("name", ["CCMD", "IOTLB"])
def test_register_invalidation_starts_with_the_high_dword(name: str) -> None:
    bench = filled()
    offset, _ = bench.place(name)
    request = GLOBAL << (61 if name == "CCMD" else 60)
    bench.unit.mmio_write(offset, 8, request)  # bit 63 clear: no command
    assert cached(bench) == EVERYTHING
    bench.unit.mmio_write(offset, 4, 0xFFFF_FFFF)  # low dword: no command
    assert cached(bench) == EVERYTHING
    bench.unit.mmio_write(offset + 4, 4, (1 << 63 | request) >> 32)
    assert cached(bench) == ((0, 1, 3) if name == "CCMD" else (1, 0, 0))


def test_register_invalidation_keeps_the_request_fields() -> None:
    bench = filled()
    way = ByRegister(bench)
    way.context(SELECTIVE, 0x1234, 0xABCD, 3)
    way.iotlb(DOMAIN, 0x4321, dw=1, dr=1)
    assert bench.read("CCMD") == SELECTIVE << 61 | SELECTIVE << 59 | 0x1234  # SID, FM: write-only
    assert bench.read("IOTLB") == DOMAIN << 60 | DOMAIN << 57 | 3 << 48 | 0x4321 << 32
    assert bench.read("IVA") == 0  # write-only


@pytest.mark.parametrize("name", ["CCMD", "IOTLB"])
def test_register_invalidation_is_forbidden_with_the_queue_on(name: str) -> None:
    """Software must not; the unit ignores it and leaves the bit set (2.6)."""
    bench = filled()
    bench.enable_queue()
    way = ByRegister(bench)
    (way.context if name == "CCMD" else way.iotlb)(GLOBAL)
    assert bench.read(name) >> 63 == 1
    assert cached(bench) == EVERYTHING
    assert bench.unit.invalidation_state is InvalidationState.IDLE


# ---- submitted, in progress, complete -------------------------------------------------------


@pytest.mark.parametrize("name", ["CCMD", "IOTLB"])
def test_register_invalidation_by_hand(name: str) -> None:
    def state() -> InvalidationState:
        return bench.unit.invalidation_state

    bench = filled(timing=Timing(manual=True))
    assert state() is InvalidationState.IDLE
    assert not bench.unit.step()
    way = ByRegister(bench)
    (way.context if name == "CCMD" else way.iotlb)(GLOBAL)
    assert state() is InvalidationState.SUBMITTED
    assert (bench.read(name) >> 63, cached(bench)) == (1, EVERYTHING)
    assert bench.unit.step()
    assert state() is InvalidationState.IN_PROGRESS
    assert (bench.read(name) >> 63, cached(bench)) == (1, EVERYTHING)
    assert bench.unit.step()
    assert state() is InvalidationState.IDLE
    assert bench.read(name) >> 63 == 0
    assert cached(bench) == ((0, 1, 3) if name == "CCMD" else (1, 0, 0))
    assert not bench.unit.step()


@pytest.mark.parametrize("name", ["CCMD", "IOTLB"])
def test_register_invalidation_takes_its_time(name: str) -> None:
    bench = filled(timing=Timing(invalidation=100))
    way = ByRegister(bench)
    (way.context if name == "CCMD" else way.iotlb)(GLOBAL)
    assert bench.machine.next_event == 100
    bench.machine.advance_to(99)
    assert (bench.read(name) >> 63, cached(bench)) == (1, EVERYTHING)
    bench.machine.advance_to(100)
    assert bench.read(name) >> 63 == 0
    assert cached(bench) != EVERYTHING


def test_register_invalidation_time_out_of_hand_goes_on() -> None:
    bench = filled(timing=Timing(manual=True))
    ByRegister(bench).context(GLOBAL)
    bench.unit.set_timing(Timing().parameters())
    assert not bench.read("CCMD") & ICC
    assert cached(bench) == (0, 1, 3)


def test_register_invalidation_stepped_once_still_ends_by_the_clock() -> None:
    bench = filled(timing=Timing(invalidation=100))
    ByRegister(bench).context(GLOBAL)
    bench.unit.step()
    bench.machine.advance_to(1000)
    assert not bench.read("CCMD") & ICC


def test_register_invalidation_pending_register_refuses_writes() -> None:
    bench = filled(timing=Timing(manual=True))
    way = ByRegister(bench)
    way.context(DOMAIN, 1)
    before = bench.read("CCMD")
    bench.write("CCMD", GLOBAL << 61 | 0x77)
    assert bench.read("CCMD") == before
    while bench.unit.step():
        pass
    way.iotlb(SELECTIVE, 1, 0x5000)
    way.iotlb(SELECTIVE, 9, 0x9000)  # neither IVA nor IOTLB takes it
    while bench.unit.step():
        pass
    assert cached(bench) == (0, 0, 0)


def test_register_invalidation_address_is_latched_by_the_command() -> None:
    bench = filled()
    bench.write("IVA", 0x5000)
    bench.write("IOTLB", IVT | SELECTIVE << 60 | 1 << 32)
    assert cached(bench) == (1, 0, 0)


def test_register_invalidation_pending_is_forgotten_by_reset() -> None:
    bench = filled(timing=Timing(invalidation=100))
    ByRegister(bench).context(GLOBAL)
    bench.unit.reset()
    assert bench.unit.invalidation_state is InvalidationState.IDLE
    assert bench.machine.next_event is None
    assert bench.read("CCMD") == 0
