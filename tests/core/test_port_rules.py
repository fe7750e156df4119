"""What the fabric decides before any IOMMU: iemu_port_add_rule."""

import pytest

from iommu_emu.core import (
    Access,
    AddressType,
    CoreMachine,
    MessageKind,
    Port,
    PortRule,
    Region,
    Status,
    Verdict,
)

EVERY = frozenset(AddressType)
PLAIN = frozenset({AddressType.UNTRANSLATED})
BAR, OWNER = 0x10_0000, 7
PEER = PortRule(Verdict.PEER, EVERY, BAR, BAR + 0xFFF)


@pytest.fixture
def machine() -> CoreMachine:
    machine = CoreMachine()
    machine.map(0, Region(0x4000))
    machine.map_bar(BAR, 0x1000, OWNER)
    return machine


@pytest.fixture
def port(machine: CoreMachine) -> Port:
    return machine.create_port(0, 0x0300)


def translated(port: Port, address: int) -> Status:
    return port.transfer(Access.WRITE, address, b"data", at=AddressType.TRANSLATED).status


def test_port_rules_refuse_an_address_range(port: Port) -> None:
    port.set_rules([PortRule(Verdict.REFUSE, EVERY, 0x1000, 0x1FFF)])
    outcomes = [port.write(address, b"1234").status for address in (0xFFC, 0x1000, 0x1FFC, 0x2000)]
    done, refused = Status.DONE, Status.UNSUPPORTED_REQUEST
    assert outcomes == [done, refused, refused, done]


def test_port_rules_refuse_part_of_a_transfer(port: Port) -> None:
    port.set_rules([PortRule(Verdict.REFUSE, EVERY, 0x1000, 0x1FFF)])
    completion = port.write(0xFF0, bytes(64))
    assert completion.details is not None
    assert (completion.status, completion.details.done) == (Status.UNSUPPORTED_REQUEST, 16)


def test_port_rules_refuse_requesters(port: Port) -> None:
    port.set_rules([PortRule(Verdict.REFUSE, EVERY, requesters=(0x0400, 0xFFFF))])
    assert port.write(0, b"own").ok
    port.set_requester(0x0400)
    assert port.write(0, b"spoofed").status is Status.UNSUPPORTED_REQUEST


def test_port_rules_are_about_address_types(port: Port) -> None:
    port.set_rules([PortRule(Verdict.REFUSE, PLAIN)])
    assert port.write(0, b"data").status is Status.UNSUPPORTED_REQUEST
    port.set_rules([PortRule(Verdict.REFUSE, EVERY - PLAIN)])
    assert port.write(0, b"data").ok


def test_port_rules_first_that_matches_counts(port: Port) -> None:
    port.set_rules([PEER, PortRule(Verdict.REFUSE, EVERY)])
    assert port.write(BAR, b"data").ok
    assert port.write(0, b"data").status is Status.UNSUPPORTED_REQUEST


def test_port_rules_bring_a_write_to_a_peer(machine: CoreMachine, port: Port) -> None:
    port.set_rules([PEER])
    port.write(BAR + 8, b"data")
    (message,) = machine.take_messages()
    assert (message.kind, message.owner, message.address) == (MessageKind.BAR_WRITE, OWNER, BAR + 8)


def test_port_rules_bring_a_translated_request_to_a_peer(machine: CoreMachine, port: Port) -> None:
    port.set_rules([PEER])
    assert translated(port, BAR) is Status.DONE
    assert machine.outbox_size == 1


def test_port_rules_peer_does_not_translate(port: Port) -> None:
    port.set_rules([PEER])
    asked = port.transfer(Access.READ, BAR, 8, at=AddressType.TRANSLATION_REQUEST)
    assert asked.status is Status.UNSUPPORTED_REQUEST


def test_port_rules_are_met_at_arrival(machine: CoreMachine, port: Port) -> None:
    port.set_latency(100, 0)
    sent = port.write(0, b"data")
    port.set_rules([PortRule(Verdict.REFUSE, EVERY)])
    machine.advance_to(100)
    port.poll()
    assert sent.status is Status.UNSUPPORTED_REQUEST


@pytest.mark.parametrize(
    "rule",
    [
        PortRule(Verdict.REFUSE, EVERY, 2, 1),
        PortRule(Verdict.REFUSE, EVERY, requesters=(2, 1)),
        PortRule(Verdict.REFUSE, frozenset()),
    ],
)
def test_port_rules_that_match_nothing_are_refused(port: Port, rule: PortRule) -> None:
    with pytest.raises(ValueError, match="is outside its documented range"):
        port.set_rules([rule])
