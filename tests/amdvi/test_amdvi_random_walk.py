"""Random tables, legal and broken: unit and reference agree on every request and every event."""

from __future__ import annotations

from amdvi_bench import DEVICES, REQUESTER, Bench
from hypothesis import event, given, settings
from hypothesis import strategies as st

from iommu_emu.amdvi.features import Features
from iommu_emu.amdvi.structures import DeviceTableEntry
from iommu_emu.core import Access, AddressType

IOVAS = [0, 0x1000, 0x1F_F000, 0x4000_0000, 0x12_3456_7000, 1 << 39, 1 << 47, (1 << 64) - 4096]
SPECIAL = [0xFEE0_0000, 0xFD_0000_0000, 0xFD_F910_0000, 0xFD_FC00_0000]  # AMD-Vi 7.1
TARGETS = [0, 0x8_0000, 0xF_F000, 0x10_0000, 0x17_F000, 0x4000_0000, 0x7FFF_F000, 1 << 39, 1 << 51]


def mostly(usual: st.SearchStrategy, rare: st.SearchStrategy) -> st.SearchStrategy:
    """Draw the rare value one time in eight."""
    return st.integers(0, 7).flatmap(lambda n: rare if n == 7 else usual)


@st.composite
def page_entry(draw, level):
    """Draw a page-table entry for a level: a table, a leaf, or anything."""
    values = {
        "pr": draw(mostly(st.just(1), st.just(0))),
        "ir": draw(mostly(st.just(1), st.just(0))),
        "iw": draw(mostly(st.just(1), st.just(0))),
    }
    if level > 1 and draw(mostly(st.just(True), st.just(False))):
        following = draw(mostly(st.just(level - 1), st.integers(1, 6)))
        target = draw(mostly(st.just(Bench.table(following)), st.sampled_from(TARGETS)))
        entry = Bench.pde(target, following, **values)
    else:
        encoded = draw(mostly(st.just(0), st.just(7)))
        entry = Bench.pte(draw(st.sampled_from(TARGETS)), next_level=encoded, **values)
    return entry ^ draw(mostly(st.just(0), st.integers(0, 63).map(lambda bit: 1 << bit)))


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_random_tables_agree_with_the_reference(data):
    others = st.sampled_from([AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED])
    compare(data, mostly(st.just(AddressType.UNTRANSLATED), others), device_tlbs=False)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_translation_requests_agree_with_the_reference(data):
    at = mostly(st.just(AddressType.TRANSLATION_REQUEST), st.just(AddressType.TRANSLATED))
    compare(data, at, device_tlbs=True)


def compare(data, address_type, device_tlbs):
    """Compare unit and reference on random tables, with one random request sent twice."""
    bench = Bench(Features(levels=data.draw(st.sampled_from([4, 5, 6]))), device_tlbs=device_tlbs)
    mode = data.draw(mostly(st.integers(1, 6), st.integers(0, 7)))
    legal = [iova for iova in IOVAS if not iova >> 12 + 9 * mode] or [0]
    others = [*IOVAS, *SPECIAL] if device_tlbs else IOVAS
    iova = data.draw(mostly(st.sampled_from(legal), st.sampled_from(others)))
    device_entry = DeviceTableEntry.build_int(
        v=data.draw(mostly(st.just(1), st.just(0))),
        tv=data.draw(mostly(st.just(1), st.just(0))),
        mode=mode,
        root=data.draw(mostly(st.just(bench.table(mode)), st.just(1 << 20))),
        ir=data.draw(mostly(st.just(1), st.just(0))),
        iw=data.draw(mostly(st.just(1), st.just(0))),
        iv=data.draw(st.integers(0, 1)),
        i=int(device_tlbs) and data.draw(mostly(st.just(1), st.just(0))),
        domain_id=data.draw(st.integers(0, 0xFFFF)),
    )
    # Anything but SE, which needs a history of faults, and GV with its guest tables.
    free = [bit for bit in range(256) if bit not in (55, 97)]
    device_entry ^= data.draw(mostly(st.just(0), st.sampled_from(free).map(lambda bit: 1 << bit)))
    bench.write(DEVICES + 32 * REQUESTER, device_entry.to_bytes(32, "little"))
    for level in range(1, min(mode, 6) + 1):
        bench.write(bench.entry(level, iova), data.draw(page_entry(level)))
    request = bench.request(
        iova + data.draw(st.sampled_from([0, 4, 0x123, 0xFFC])),
        data.draw(st.sampled_from([Access.READ, Access.WRITE, Access.ATOMIC])),
        at=data.draw(address_type),
        length=data.draw(st.sampled_from([1, 4])),
    )
    result = bench.check(request)
    event(result.cause.condition if result.cause else result.outcome.name)
    # Whatever the first request left in the caches, the second one gets the same answer.
    bench.check(request)
