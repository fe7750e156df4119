"""Random tables, legal and broken: unit and reference agree on every request and every record."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st
from vtd_bench import CONTEXT, REQUESTER, ROOT, Bench

from iommu_emu.core import Access, AddressType, RequestFlag
from iommu_emu.reference import INTERRUPT_BASE
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.structures import ContextEntry, RootEntry

IOVAS = [
    0,
    0x1000,
    0x1F_F000,
    0x4000_0000,
    0x12_3456_7000,
    (1 << 38) - 4096,
    1 << 39,
    1 << 47,
    1 << 48,
    (1 << 57) - 4096,
    (1 << 64) - 4096,
    0xFEE0_0000,
]
TARGETS = [0, 0x8_0000, 0xF_F000, 0x10_0000, 0x4000_0000, 0xFEE0_0000, 1 << 39, 1 << 46, 1 << 51]

capabilities = st.builds(
    Capabilities,
    domain_bits=st.sampled_from([4, 8, 16]),
    levels=st.sets(st.sampled_from([3, 4, 5]), min_size=1).map(frozenset),
    guest_address_width=st.sampled_from([39, 46, 48, 57, 64]),
    zero_length_reads=st.booleans(),
    large_pages=st.sampled_from([frozenset(), frozenset({21}), frozenset({21, 30})]),
    pass_through=st.booleans(),
    snoop_control=st.booleans(),
)


def mostly(usual: st.SearchStrategy, rare: st.SearchStrategy) -> st.SearchStrategy:
    """Draw the rare value one time in eight."""
    return st.integers(0, 7).flatmap(lambda n: rare if n == 7 else usual)


@st.composite
def table_bytes(draw, build, width, usual):
    """Draw an entry: usual field values, and now and then one more bit."""
    entry = int.from_bytes(build(**usual), "little")
    flipped = draw(mostly(st.just(0), st.integers(0, width - 1).map(lambda bit: 1 << bit)))
    return (entry ^ flipped).to_bytes(width // 8, "little")


@st.composite
def page_entry(draw, level):
    """Draw a page-table entry for a level: a table, a leaf, or anything."""
    permissions = draw(mostly(st.just(3), st.integers(0, 3)))
    if level > 1 and draw(mostly(st.booleans(), st.just(True))):
        target = draw(mostly(st.just(Bench.table(level - 1)), st.sampled_from(TARGETS)))
        entry = target | permissions
    else:
        snoop = draw(mostly(st.just(0), st.just(1 << 11)))
        large = (1 << 7) if level in (2, 3) else 0
        target = draw(st.sampled_from(TARGETS))
        aligned = target >> 12 + 9 * (level - 1) << 12 + 9 * (level - 1)
        entry = draw(mostly(st.just(aligned), st.just(target))) | permissions | snoop | large
    return entry ^ draw(mostly(st.just(0), st.integers(0, 63).map(lambda bit: 1 << bit)))


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_random_tables_agree_with_the_reference(data):
    at = mostly(st.just(AddressType.UNTRANSLATED), st.sampled_from(AddressType))
    compare(data, data.draw(capabilities), mostly(st.just(0), st.integers(0, 3)), at)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_translation_requests_agree_with_the_reference(data):
    chosen = replace(
        data.draw(capabilities), device_tlbs=True, no_write_flag=data.draw(st.booleans())
    )
    at = mostly(st.just(AddressType.TRANSLATION_REQUEST), st.just(AddressType.TRANSLATED))
    compare(data, chosen, mostly(st.just(1), st.integers(0, 3)), at)


def compare(data, chosen, translation_type, address_type):
    """Compare unit and reference on random tables, with one random request sent twice."""
    width = data.draw(st.sampled_from([36, 39, 46, 52]))
    if width > chosen.guest_address_width:
        width = 36
    bench = Bench(chosen, host_address_width=width)
    levels = data.draw(mostly(st.sampled_from(sorted(chosen.levels)), st.integers(2, 9)))
    limit = 1 << min(12 + 9 * levels, chosen.guest_address_width)
    legal = [iova for iova in IOVAS if iova < limit and iova != INTERRUPT_BASE]
    iova = data.draw(mostly(st.sampled_from(legal), st.sampled_from(IOVAS)))
    root_entry = {"p": 1, "ctp": data.draw(mostly(st.just(CONTEXT), st.sampled_from([1 << 20])))}
    context_entry = {
        "p": 1,
        "fpd": data.draw(mostly(st.just(0), st.just(1))),
        "tt": data.draw(translation_type),
        "ssptptr": data.draw(mostly(st.just(bench.table(levels)), st.just(1 << 20))),
        "aw": levels - 2,
        "did": data.draw(mostly(st.integers(0, 15), st.integers(0, 0xFFFF))),
    }
    bench.write(ROOT + 16 * 3, data.draw(table_bytes(RootEntry.build, 128, root_entry)))
    bench.write(
        CONTEXT + 16 * (REQUESTER & 0xFF),
        data.draw(table_bytes(ContextEntry.build, 128, context_entry)),
    )
    for level in range(1, min(levels, 5) + 1):
        bench.write(bench.entry(level, iova), data.draw(page_entry(level)))
    request = bench.request(
        iova + data.draw(st.sampled_from([0, 4, 0x123, 0xFFC])),
        data.draw(mostly(st.just(Access.READ), st.sampled_from([Access.WRITE, Access.ATOMIC]))),
        at=data.draw(address_type),
        pasid=data.draw(mostly(st.none(), st.just(1))),
        length=data.draw(st.sampled_from([1, 4])),
        flags=data.draw(st.sampled_from([RequestFlag.NONE, RequestFlag.NO_WRITE])),
    )
    result = bench.check(request)
    event(result.cause.name if result.cause else result.outcome.name)
    # Whatever the first request left in the caches, the second one gets the same answer.
    bench.check(request)
