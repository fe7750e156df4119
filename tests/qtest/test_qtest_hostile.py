"""Whatever a client says gets an answer, and the server goes on."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iommu_emu.qtest.catalogue import Catalogue
from iommu_emu.qtest.json_stream import JsonError, JsonStream
from iommu_emu.qtest.protocol import Protocol
from iommu_emu.qtest.q35 import Q35

BAR = 0xE000_0000
COMMANDS = (
    [f"{verb}{letter}" for verb in ("read", "write") for letter in "bwlq"]
    + [f"{verb}{letter}" for verb in ("in", "out") for letter in "bwl"]
    + ["read", "write", "memset", "b64read", "b64write", "clock_step", "clock_set"]
    + ["irq_intercept_in", "irq_intercept_out", "set_irq_in", "endianness", "module_load"]
)
INTERESTING = [0, 1, 4, 8, 0x1000, 0xFFFF, 0xCF8, 0xCFC, 0x510, 0x511, 0x9FFFC, 0xFFFFC]
INTERESTING += [BAR + offset for offset in (0, 4, 8, 0x14, 0x60, 0x80, 0x98, 0xFFC)]
INTERESTING += [0xB000_0000, 0xB000_0060, 0xB002_0004, 0xB002_0010, 0xFEE0_0000]
INTERESTING += [0xFED9_0000 + offset for offset in (0, 0x18, 0x20, 0x28, 0x88, 0x90, 0xF8, 0x220)]
INTERESTING += [0x8000_2004, 0x8000_2010, 0x8000_0060, 0xB000_0001, 7, 1 << 31, (1 << 64) - 1]

numbers = st.sampled_from(INTERESTING) | st.integers(0, (1 << 64) - 1) | st.integers(0, 300)
words = numbers.map(hex) | numbers.map(str) | st.sampled_from(["ioapic", "unnamed-gpio-in", "AAAA"])
lines = st.tuples(st.sampled_from(COMMANDS), st.lists(words, max_size=4)).map(
    lambda parts: " ".join([parts[0], *parts[1]])
)


@pytest.fixture(scope="module")
def protocol():
    board = Q35(2 << 20)
    catalogue = Catalogue(board)
    for driver in ("intel-iommu", "edu", "iommu-testdev"):
        addresses = {"edu": "4.0", "iommu-testdev": "5.0"}
        place = {"addr": addresses[driver]} if driver in addresses else {}
        catalogue.make({"driver": driver, **place})
    protocol = Protocol(board, lambda: True)
    for line in ("outl 0xcf8 0x80002010", f"outl 0xcfc {BAR}", "outl 0xcf8 0x80002004"):
        protocol.answer(line)
    protocol.answer("outl 0xcfc 6")
    return protocol


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(lines | st.text(), min_size=1, max_size=20))
def test_hostile_lines_get_one_reply_each(protocol, said):
    for line in said:
        replies = protocol.answer(line)
        irqs = [reply for reply in replies if reply.startswith("IRQ ")]
        assert len(replies) - len(irqs) == (1 if line.split() else 0)
        assert all(reply.split()[0] in ("OK", "FAIL", "ERR", "IRQ") for reply in replies)
    assert protocol.answer("endianness")[-1] == "OK little"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary() | st.sampled_from([b"{", b"}", b"'", b'"', b"\\", b"[1", b"\n"])))
def test_hostile_json_leaves_the_stream_usable(said):
    stream = JsonStream()
    for data in said:
        for value in stream.feed(data):
            assert isinstance(value, (JsonError, dict, list, str, int, float, bool, type(None)))
    *_, last = [*stream.feed(b"\xff\n"), *stream.feed(b'{"a": 1}')]
    assert last == {"a": 1}
