"""Which requests never reach the IOMMU: peer-to-peer routing, and access control services (pci 4).

A request climbs from its function to the root complex. On each bus on the way something else may
claim its address, unless an access control service of the port it comes through says otherwise:

- inside a device with several functions, the other functions;
- on the bus inside a switch, the other downstream ports with everything below them, and the
  registers of all ports;
- on a conventional bus, everything on it, and the registers of the bridge above. Nothing there
  can say otherwise.

What climbs all the way to the root complex is translated, peer or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from iommu_emu.core import AddressType, PortRule, Verdict
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.capabilities import Acs, PortType, egress_control
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge, Fabric

# Base and size of the BARs that are decoded.
Windows: TypeAlias = "Mapping[Function, Sequence[tuple[int, int]]]"
_Types: TypeAlias = "frozenset[AddressType]"

_PORTS = (PortType.ROOT_PORT, PortType.DOWNSTREAM)
_CONVENTIONAL = (None, PortType.PCIE_TO_PCI)  # what is below them is a conventional bus
_EVERY = frozenset(AddressType)
# The reserved type is an error wherever it arrives, so it may as well be the IOMMU.
_ROUTED = _EVERY - {AddressType.RESERVED}
_TRANSLATED = frozenset({AddressType.TRANSLATED})
_NOT_UNTRANSLATED = _EVERY - {AddressType.UNTRANSLATED}
_ALL_REQUESTERS = (0, 0xFFFF)

__all__ = ["Windows", "apply_access_control"]


def apply_access_control(fabric: Fabric, windows: Windows) -> None:
    """Give every port the rules that topology, services and BARs say now.

    Args:
        fabric: the bus tree.
        windows: BARs that are decoded, by function.
    """
    ways = _Ways(windows)
    for function in fabric.functions():
        rules = ways.rules_of(function)
        if fabric.firmware_aliases:
            rules = tuple(_sparing(rules, fabric.requester(function)))
        if rules != function.dma.rules:
            function.dma.set_rules(rules)


class _Ways:
    """The way up from each function, with what is decided on it.

    Functions share most of theirs: what was found once is kept, as long as nothing changes.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._rules: dict[Function, tuple[PortRule, ...]] = {}
        self._claims: dict[tuple[Function, Verdict, _Types, bool], list[PortRule]] = {}

    def rules_of(self, function: Function) -> tuple[PortRule, ...]:
        """Return what is decided about a function's requests, the first rule first."""
        if function not in self._rules:
            self._rules[function] = tuple(self._find(function))
        return self._rules[function]

    def _find(self, function: Function) -> Iterator[PortRule]:
        bridge = None if function.bus is None else function.bus.parent
        if bridge is None:
            return
        if bridge.kind in _CONVENTIONAL:
            yield from self._conventional_bus(function, bridge)
        else:
            yield from self._express_bus(function, bridge)
        if bridge.kind in _PORTS:
            yield from _ingress(bridge)
        if bridge.kind is PortType.DOWNSTREAM and not bridge.acs & Acs.UPSTREAM_FORWARDING:
            # A switch does not send a request back out of the port it came in by.
            for below in bridge.secondary.functions.values():
                yield from self._claimed(below, Verdict.REFUSE)
        yield from self.rules_of(bridge)

    def _conventional_bus(self, child: Function, bridge: Bridge) -> Iterator[PortRule]:
        """Yield the claims on a bus that all functions share: no service takes them back."""
        for peer in bridge.secondary.functions.values():
            if peer is not child:
                yield from self._claimed(peer, Verdict.PEER)
        yield from self._claimed(bridge, Verdict.PEER, below=False)

    def _express_bus(self, child: Function, bridge: Bridge) -> Iterator[PortRule]:
        """Yield the claims on the link below a port, or on the bus inside a switch."""
        inside = bridge.kind is PortType.UPSTREAM
        for peer in bridge.secondary.functions.values():
            if peer is child or not (inside or peer.devfn >> 3 == child.devfn >> 3):
                continue
            number = peer.devfn >> 3 if inside else peer.devfn & 7
            for verdict, types in _egress(child, number):
                yield from self._claimed(peer, verdict, types)
        if inside:
            for verdict, types in _egress(child, None):
                yield from self._claimed(bridge, verdict, types, below=False)

    def _claimed(
        self,
        function: Function,
        verdict: Verdict,
        types: _Types = _ROUTED,
        *,
        below: bool = True,
    ) -> list[PortRule]:
        """Return rules about the BARs of a function, and of everything below it."""
        key = (function, verdict, types, below)
        if key not in self._claims:
            members = [function]
            if below and isinstance(function, Bridge):
                members += function.secondary.all_functions()
            self._claims[key] = [
                PortRule(verdict, types, base, base + size - 1, reason=f"BAR of {_named(member)}")
                for member in members
                for base, size in self._windows.get(member, ())
            ]
        return self._claims[key]


def _ingress(port: Bridge) -> Iterator[PortRule]:
    """Yield what a root or downstream port does with requests that it receives from below."""
    if port.acs & Acs.TRANSLATION_BLOCKING:
        reason = f"translation blocking of {_named(port)}"
        yield PortRule(Verdict.REFUSE, _NOT_UNTRANSLATED, reason=reason)
    if port.acs & Acs.SOURCE_VALIDATION:
        first, last = port.secondary_number << 8, port.subordinate_number << 8 | 0xFF
        reason = f"source validation of {_named(port)}"
        for outside in ((0, first - 1), (max(first, last + 1), 0xFFFF)):
            if outside[0] <= outside[1]:
                yield PortRule(Verdict.REFUSE, _EVERY, requesters=outside, reason=reason)


def _egress(source: Function, number: int | None) -> Iterator[tuple[Verdict, _Types]]:
    """Yield what the services of the function or port a request comes from make of a peer.

    Args:
        source: the function, or the downstream port.
        number: of the peer in the egress control vector; None: it has none.
    """
    acs = source.acs
    direct = _TRANSLATED if acs & Acs.DIRECT_TRANSLATED else frozenset()
    controlled = bool(acs & Acs.EGRESS_CONTROL) and number is not None
    closed = controlled and bool(egress_control(source.config) >> (number or 0) & 1)
    if controlled and not closed:
        yield Verdict.PEER, _ROUTED
    elif closed or acs & Acs.REQUEST_REDIRECT:
        if direct:
            yield Verdict.PEER, direct
        if not acs & Acs.REQUEST_REDIRECT:
            yield Verdict.REFUSE, _ROUTED - direct
    else:
        yield Verdict.PEER, _ROUTED


def _sparing(rules: Iterable[PortRule], own: int) -> Iterator[PortRule]:
    """Yield rules of source validation so that they let `own` pass.

    Firmware says that requests of the function appear with it (IVHD alias), but they carry the
    function's own ID as long as they are in the fabric.
    """
    for rule in rules:
        first, last = rule.requesters
        if rule.requesters == _ALL_REQUESTERS or not first <= own <= last:
            yield rule
            continue
        for part in ((first, own - 1), (own + 1, last)):
            if part[0] <= part[1]:
                yield replace(rule, requesters=part)


def _named(function: Function) -> str:
    return f"{function.name} at {format_requester(function.address, function.segment)}"
