"""Linux's IOVA allocator: which address comes next (os 4.2)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iommu_emu import Machine
from iommu_emu.clock import MILLISECOND
from iommu_emu.linux.iova import DmaLimit, IovaDomain

PAGE = 4096
LAST_32 = (1 << 32) - 1
LAST_48 = (1 << 48) - 1
MSI = (0xFEE0_0000, 0xFEEF_FFFF)


@pytest.fixture
def machine() -> Machine:
    return Machine(PAGE)


@pytest.fixture
def domain(machine: Machine) -> IovaDomain:
    return IovaDomain(machine.clock, last=LAST_48)


def take(domain: IovaDomain, count: int, size: int = PAGE, limit: int = LAST_32) -> list[int]:
    addresses = [domain.allocate(size, limit) for _ in range(count)]
    return [address for address in addresses if address is not None]


# ---- top-down search ---------------------------------------------------------------------------


def test_iova_goes_down_from_the_limit(domain: IovaDomain) -> None:
    assert take(domain, 3) == [0xFFFF_F000, 0xFFFF_E000, 0xFFFF_D000]


def test_iova_size_and_alignment_are_powers_of_two_below_32_pages(domain: IovaDomain) -> None:
    assert take(domain, 1) == [0xFFFF_F000]
    assert take(domain, 2, 3 * PAGE) == [0xFFFF_8000, 0xFFFF_4000]
    assert domain.size_of(0xFFFF_8000) == 4 * PAGE
    assert take(domain, 1, 17 * PAGE) == [0xFFFC_0000]


def test_iova_of_33_pages_is_aligned_to_64_and_not_rounded(domain: IovaDomain) -> None:
    assert take(domain, 1, 33 * PAGE) == [0xFFFC_0000]
    assert domain.size_of(0xFFFC_0000) == 33 * PAGE
    assert take(domain, 1, 33 * PAGE) == [0xFFF8_0000]


def test_iova_size_is_rounded_to_the_granule(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, granule=1 << 16)
    assert take(domain, 2, 1) == [0xFFFF_0000, 0xFFFE_0000]


def test_iova_search_goes_on_below_a_gap_that_was_too_small(domain: IovaDomain) -> None:
    """The gap at 0xffff_e000 is behind the cursor until nothing is left below it."""
    take(domain, 1)
    assert take(domain, 1, 2 * PAGE) == [0xFFFF_C000]
    assert take(domain, 1) == [0xFFFF_B000]


def test_iova_search_returns_to_the_gaps_above_when_nothing_is_below(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, base=0xFFFF_C000)
    take(domain, 1)
    assert take(domain, 1, 2 * PAGE) == [0xFFFF_C000]
    assert take(domain, 1) == [0xFFFF_E000]


def test_iova_freed_from_the_search_moves_it_up_again(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, cached_orders=0)
    first, second, _ = take(domain, 3)
    domain.free(second)
    assert take(domain, 2) == [second, 0xFFFF_C000]
    domain.free(first)
    assert take(domain, 1) == [first]


def test_iova_limit_below_the_cursor_is_kept(domain: IovaDomain) -> None:
    take(domain, 2)
    assert take(domain, 2, limit=0xFF_FFFF) == [0xFF_F000, 0xFF_E000]


def test_iova_limit_inside_a_page_leaves_the_page_out(domain: IovaDomain) -> None:
    assert take(domain, 1, limit=0xFF_F7FF) == [0xFF_E000]


def test_iova_failure_below_a_low_limit_blocks_that_size_below_4g(domain: IovaDomain) -> None:
    """As Linux: the size that failed is remembered without its limit, until something is freed."""
    assert domain.allocate(1 << 24, 0xFF_FFFF) is None
    assert domain.allocate(1 << 24, LAST_32) is None
    (page,) = take(domain, 1)
    domain.free(page)
    domain.flush_caches()
    assert domain.allocate(1 << 24, LAST_32) == 0xFF00_0000


def test_iova_page_zero_is_never_handed_out(machine: Machine) -> None:
    domain = IovaDomain(machine.clock)
    assert take(domain, 4, limit=3 * PAGE - 1) == [2 * PAGE, PAGE]


# ---- 32 bits first -----------------------------------------------------------------------------


def test_iova_for_a_64_bit_pci_device_is_below_4g_first(domain: IovaDomain) -> None:
    device = DmaLimit(last=(1 << 64) - 1)
    assert domain.allocate_for(device, PAGE) == 0xFFFF_F000
    assert device.pci_32bit_workaround


def test_iova_forcedac_starts_at_the_end_of_the_aperture(domain: IovaDomain) -> None:
    device = DmaLimit(last=(1 << 64) - 1, pci_32bit_workaround=False)
    assert domain.allocate_for(device, PAGE) == 0xFFFF_FFFF_F000


def test_iova_first_failure_below_4g_ends_the_workaround(domain: IovaDomain) -> None:
    notices: list[str] = []
    device = DmaLimit(last=(1 << 64) - 1, log=notices.append)
    assert domain.allocate_for(device, 1 << 31) == 0x8000_0000
    assert domain.allocate_for(device, 1 << 31) == 0xFFFF_8000_0000
    assert domain.allocate_for(device, PAGE) == 0xFFFF_7FFF_F000
    assert notices == ["Using 48-bit DMA addresses"]


def test_iova_failure_below_4g_leaves_the_caches_to_a_64_bit_device(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, base=0xFFFF_E000)
    device = DmaLimit(last=LAST_48)
    pages = [domain.allocate_for(device, PAGE) for _ in range(2)]
    for page in pages:
        domain.free(page)
    assert domain.allocate_for(device, 2 * PAGE) == LAST_48 + 1 - 2 * PAGE
    assert domain.cached == 2


def test_iova_for_a_32_bit_device_stays_below_4g(domain: IovaDomain) -> None:
    device = DmaLimit(last=LAST_32)
    domain.allocate_for(device, 1 << 31)
    with pytest.raises(MemoryError, match="up to 0xffffffff"):
        domain.allocate_for(device, 1 << 31)
    assert domain.live == 1


# ---- reserved ranges ---------------------------------------------------------------------------


def test_iova_reserved_msi_window_is_stepped_over(domain: IovaDomain) -> None:
    domain.reserve(*MSI)
    assert take(domain, 2, limit=0xFEF0_0FFF) == [0xFEF0_0000, 0xFEDF_F000]


def test_iova_that_does_not_fit_above_a_reserved_range_goes_below_it(domain: IovaDomain) -> None:
    domain.reserve(*MSI)
    assert domain.allocate(0x110_0000, LAST_32) == 0xFC00_0000


def test_iova_reserved_ranges_may_overlap_each_other(domain: IovaDomain) -> None:
    domain.reserve(0xFFFF_8000, 0xFFFF_9FFF)
    domain.reserve(0xFFFF_C000, 0xFFFF_DFFF)
    domain.reserve(0xFFFF_7000, 0xFFFF_E123)
    assert take(domain, 2) == [0xFFFF_F000, 0xFFFF_6000]


def test_iova_reserved_again_changes_nothing(domain: IovaDomain) -> None:
    domain.reserve(*MSI)
    domain.reserve(*MSI)
    assert take(domain, 1, limit=MSI[1]) == [MSI[0] - PAGE]


@pytest.mark.parametrize("freed", [False, True], ids=["in-use", "cached"])
def test_iova_reserving_what_is_in_use_is_refused(domain: IovaDomain, freed: bool) -> None:
    (page,) = take(domain, 1)
    if freed:
        domain.free(page)
    with pytest.raises(ValueError, match="0xfffff000 in use"):
        domain.reserve(0xFFFF_0000, 0xFFFF_FFFF)
    assert take(domain, 2)[-1] == (0xFFFF_E000 if freed else 0xFFFF_D000)


# ---- magazines and depot -----------------------------------------------------------------------


def test_iova_freed_is_reused_last_in_first_out(domain: IovaDomain) -> None:
    pages = take(domain, 4)
    for page in pages:
        domain.free(page)
    assert take(domain, 4) == pages[::-1]


def test_iova_sizes_do_not_share_magazines(domain: IovaDomain) -> None:
    one, two = take(domain, 1), take(domain, 1, 2 * PAGE)
    domain.free(one[0])
    domain.free(two[0])
    assert take(domain, 1) == one
    assert take(domain, 1, 2 * PAGE) == two


def test_iova_of_a_rounded_size_returns_to_its_power_of_two(domain: IovaDomain) -> None:
    (rounded,) = take(domain, 1, 17 * PAGE)
    domain.free(rounded)
    assert take(domain, 1, 32 * PAGE) == [rounded]


def test_iova_above_32_pages_is_not_cached(domain: IovaDomain) -> None:
    (large,) = take(domain, 1, 33 * PAGE)
    domain.free(large)
    assert domain.cached == 0


def test_iova_freed_on_a_cpu_is_reused_on_that_cpu(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, cpus=2)
    first, second = take(domain, 2)
    domain.free(second, cpu=1)
    domain.free(first, cpu=0)
    assert domain.allocate(PAGE, LAST_32, cpu=1) == second
    assert domain.allocate(PAGE, LAST_32, cpu=1) == 0xFFFF_D000
    assert domain.allocate(PAGE, LAST_32, cpu=0) == first


def test_iova_two_magazines_of_127_are_swapped(domain: IovaDomain) -> None:
    """The second magazine is used up before the first comes back: LIFO over both."""
    pages = take(domain, 254)
    for page in pages:
        domain.free(page)
    assert take(domain, 254) == pages[::-1]
    assert domain.statistics.cached == 254


def test_iova_third_magazine_sends_the_loaded_one_to_the_depot(domain: IovaDomain) -> None:
    """Loaded, previous, depot: what went to the depot comes back after the older previous one."""
    pages = take(domain, 3 * 127)
    for page in pages:
        domain.free(page)
    first, second, third = pages[:127], pages[127:254], pages[254:]
    assert take(domain, 381) == third[::-1] + first[::-1] + second[::-1]


def test_iova_depot_serves_every_cpu(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, cpus=2)
    pages = take(domain, 3 * 127)
    for page in pages:
        domain.free(page, cpu=0)
    assert domain.allocate(PAGE, LAST_32, cpu=1) == pages[253]


def test_iova_depot_is_trimmed_a_magazine_every_100_ms_down_to_one_a_cpu(
    machine: Machine,
) -> None:
    domain = IovaDomain(machine.clock)
    for page in take(domain, 5 * 127):
        domain.free(page)
    machine.clock.advance(100 * MILLISECOND - 1)
    assert domain.cached == 5 * 127
    machine.clock.advance(1)
    assert domain.cached == 4 * 127
    machine.clock.advance(100 * MILLISECOND)
    assert domain.cached == 3 * 127
    assert machine.clock.next_event == 300 * MILLISECOND
    machine.clock.advance(1000 * MILLISECOND)
    assert domain.cached == 3 * 127
    assert machine.clock.next_event is None


def test_iova_above_the_limit_is_left_in_the_magazine(domain: IovaDomain) -> None:
    """The last one takes the place of the one that is handed out, and so changes the order."""
    low = take(domain, 2)
    high = take(domain, 2, limit=LAST_48)
    for page in low + high:
        domain.free(page)
    assert take(domain, 1) == [low[1]]
    assert take(domain, 3, limit=LAST_48) == [high[0], high[1], low[0]]


def test_iova_limit_counts_to_the_end_of_a_cached_range(domain: IovaDomain) -> None:
    (pair,) = take(domain, 1, 2 * PAGE)
    domain.free(pair)
    assert take(domain, 1, 2 * PAGE, limit=pair + PAGE - 1) == [pair - 2 * PAGE]


def test_iova_without_magazines_sizes_are_not_rounded(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, cached_orders=0)
    (three,) = take(domain, 1, 3 * PAGE)
    assert domain.size_of(three) == 3 * PAGE


# ---- exhaustion, and what is freed -------------------------------------------------------------


def test_iova_exhaustion_empties_the_caches_of_all_cpus_and_tries_again(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, cpus=2, base=0xFFFF_C000)
    for cpu, page in enumerate(take(domain, 4)):
        domain.free(page, cpu % 2)
    assert domain.allocate(4 * PAGE, LAST_32) == 0xFFFF_C000
    assert domain.cached == 0
    assert domain.statistics.cache_flushes == 1


def test_iova_exhaustion_leaves_nothing_behind(machine: Machine) -> None:
    domain = IovaDomain(machine.clock, base=0xFFFF_C000)
    pages = take(domain, 4)
    assert domain.allocate(PAGE, LAST_32) is None
    assert domain.live == 4
    for page in pages:
        domain.free(page)
    assert domain.allocate(4 * PAGE, LAST_32) == 0xFFFF_C000


def test_iova_size_beyond_the_space_is_refused(domain: IovaDomain) -> None:
    assert domain.allocate(1 << 70, LAST_48) is None


@pytest.mark.parametrize("address", [0, 0xFFFF_F001, 0xFFFF_E000, 0xFEE0_0000])
def test_iova_free_of_a_foreign_address_is_refused(domain: IovaDomain, address: int) -> None:
    domain.reserve(*MSI)
    take(domain, 1)
    with pytest.raises(ValueError, match="not the address of an IOVA in use"):
        domain.free(address)
    assert domain.live == 1


def test_iova_double_free_is_refused(domain: IovaDomain) -> None:
    (page,) = take(domain, 1)
    domain.free(page)
    with pytest.raises(ValueError, match="0xfffff000 is not"):
        domain.free(page)
    assert domain.cached == 1


@pytest.mark.parametrize("cpu", [-1, 1])
def test_iova_unknown_cpu_is_refused(domain: IovaDomain, cpu: int) -> None:
    (page,) = take(domain, 1)
    with pytest.raises(ValueError, match=r"cpu must be in 0\.\.0"):
        domain.free(page, cpu)
    with pytest.raises(ValueError, match=r"cpu must be in 0\.\.0"):
        domain.allocate(PAGE, LAST_32, cpu)
    assert domain.live == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cpus": 0}, "cpus"),
        ({"granule": 3000}, "granule"),
        ({"granule": 0}, "granule"),
        ({"base": 2, "last": 1}, "base and last"),
        ({"last": 1 << 64}, "base and last"),
        ({"cached_orders": 7}, "cached_orders"),
    ],
)
def test_iova_domain_refuses_arguments(
    machine: Machine, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        IovaDomain(machine.clock, **arguments)


def test_iova_size_of_nothing_is_refused(domain: IovaDomain) -> None:
    with pytest.raises(ValueError, match="size must be at least 1"):
        domain.allocate(0, LAST_32)


@pytest.mark.parametrize("ends", [(-1, 0), (2, 1), (0, 1 << 64)])
def test_iova_reserved_range_has_64_bits(domain: IovaDomain, ends: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="64-bit addresses"):
        domain.reserve(*ends)


def test_iova_close_stops_the_timers(machine: Machine) -> None:
    domain = IovaDomain(machine.clock)
    for page in take(domain, 5 * 127):
        domain.free(page)
    domain.close()
    assert domain.cached == 0
    assert machine.clock.next_event is None


# ---- against a naive allocator -----------------------------------------------------------------

FIRST, SPACE = 0xFFFF_8000 // PAGE, 72  # pages on both sides of 4 GiB


class Model(RuleBasedStateMachine):
    """A set of free pages: allocation may take any that fit, freeing gives them back."""

    @initialize(reserved=st.lists(st.integers(0, SPACE - 1), max_size=4))
    def start(self, reserved: list[int]) -> None:
        self.clock = Machine(PAGE).clock
        last = (FIRST + SPACE) * PAGE - 1
        self.domain = IovaDomain(self.clock, cpus=2, base=FIRST * PAGE, last=last)
        self.free = set(range(FIRST, FIRST + SPACE)) - {FIRST + page for page in reserved}
        for page in reserved:
            self.domain.reserve((FIRST + page) * PAGE, (FIRST + page) * PAGE)
        self.live: list[tuple[int, int]] = []

    def fits(self, pages: int, alignment: int, limit: int) -> bool:
        stop = min(limit // PAGE + 1, FIRST + SPACE)
        starts = range(-(-FIRST // alignment) * alignment, stop - pages + 1, alignment)
        return any(self.free >= set(range(start, start + pages)) for start in starts)

    @rule(
        size=st.integers(1, 40),
        limit=st.sampled_from([LAST_32, LAST_48, (FIRST + 3) * PAGE - 1]),
        cpu=st.integers(0, 1),
    )
    def allocate(self, size: int, limit: int, cpu: int) -> None:
        alignment = 1 << (size - 1).bit_length()
        pages = alignment if size < 32 else size
        address = self.domain.allocate(size * PAGE, limit, cpu)
        if address is None:
            # Below 4 GiB, Linux may remember a failure under a lower limit.
            assert limit <= LAST_32 or not self.fits(pages, alignment, limit)
            return
        taken = set(range(address // PAGE, address // PAGE + pages))
        assert taken <= self.free
        assert address % (alignment * PAGE) == 0
        assert address + pages * PAGE - 1 <= limit
        self.free -= taken
        self.live.append((address, pages))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), cpu=st.integers(0, 1))
    def release(self, data: st.DataObject, cpu: int) -> None:
        address, pages = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.domain.free(address, cpu)
        self.free |= set(range(address // PAGE, address // PAGE + pages))

    @rule()
    def flush(self) -> None:
        self.domain.flush_caches()
        assert self.domain.cached == 0

    @invariant()
    def counts(self) -> None:
        assert self.domain.live == len(self.live)

    def teardown(self) -> None:
        """With everything freed, every page that is not reserved can be had again."""
        for address, _ in self.live:
            self.domain.free(address)
        for address, pages in self.live:
            self.free |= set(range(address // PAGE, address // PAGE + pages))
        self.domain.flush_caches()
        pages = take(self.domain, SPACE, limit=LAST_48)
        assert {page // PAGE for page in pages} == self.free


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
