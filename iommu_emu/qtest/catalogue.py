"""The devices that `-device` makes, with the properties that QEMU 11.1 gives them.

A property that asks for what our units do not do is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from iommu_emu.core import StateError
from iommu_emu.pci.function import HEADER_TYPE, MULTIFUNCTION, Function
from iommu_emu.pci.topology import Bridge, Bus, PortType
from iommu_emu.qtest import options
from iommu_emu.qtest.options import OptionError
from iommu_emu.qtest.q35 import Q35
from iommu_emu.unit import Unit

INTEL_BASE = 0xFED9_0000
AMD_BASE = 0xFED8_0000
ROOT_BUS = "pcie.0"
_ADDRESS = re.compile(r"(?:0x)?([0-9a-f]{1,2})(?:\.([0-7]))?", re.I)
_RED_HAT = 0x1B36

INTEL_SWITCHES: dict[str, str] = {
    "caching-mode": "off",
    "snoop-control": "off",
    "dma-drain": "on",
    "pt": "on",
    "intremap": "on",
    "eim": "off",
    "x-buggy-eim": "off",
}
"""Switches of `intel-iommu` that we follow, older ones among them, with QEMU's defaults."""

NO_EFFECT = frozenset({"stale-tm", "fs1gp", "version", "dma-remap"})
"""Properties that change nothing: without device-TLBs and scalable mode, and because our AMD-Vi
unit always remaps DMA."""

UNIMPLEMENTED: dict[str, tuple[str, str]] = {
    "scalable-mode": ("off", "scalable mode (ECAP.SMTS)"),
    "x-scalable-mode": ("off", "scalable mode (ECAP.SMTS)"),
    "fsts": ("off", "first-stage translation (ECAP.FSTS)"),
    "flts": ("off", "first-stage translation (ECAP.FSTS)"),
    "x-flts": ("off", "first-stage translation (ECAP.FSTS)"),
    "pasid-bits": ("0", "PASID support (ECAP.PASID)"),
    "x-pasid-mode": ("off", "PASID support (ECAP.PASID)"),
    "svm": ("off", "the page request interface (ECAP.PRS)"),
    "device-iotlb": ("off", "ATS (device-TLBs)"),
    "dma-translation": ("on", "a unit that only remaps interrupts"),
    "xtsup": ("off", "x2APIC support (EFR.XTSup)"),
}
"""Properties with the only value that we take, and what any other one asks for."""

__all__ = ["DRIVERS", "Catalogue", "Made"]


@dataclass
class Made:
    """A device that was made.

    Attributes:
        driver: QEMU's name of the model.
        name: its id; None: it has none.
        what: the function or unit.
        properties: those that were given.
    """

    driver: str
    name: str | None
    what: Function | Unit
    properties: dict[str, str] = field(default_factory=dict)


class Catalogue:
    """Makes the devices of one machine, and knows them afterwards.

    Args:
        board: where they are put; None: `-machine none` takes no device.
        reserved: devices of bus 0 that are left free unless asked for by address, because QEMU
            has something of its own there.
    """

    def __init__(self, board: Q35 | None, reserved: frozenset[int] = frozenset()) -> None:
        self._board = board
        self._reserved = reserved
        self.made: list[Made] = []

    def make(self, properties: Mapping[str, str]) -> Made:
        """Make a device.

        Args:
            properties: "driver", and whatever else is given.

        Raises:
            OptionError: if there is no such device or property, a value is not allowed, or the
                place is taken.
        """
        rest = dict(properties)
        driver, name = rest.pop("driver"), rest.pop("id", None)
        if driver not in DRIVERS:
            known = ", ".join(DRIVERS)
            raise OptionError(f"'{driver}' is not a valid device model name: iommu-emu has {known}")
        if name is not None and any(made.name == name for made in self.made):
            raise OptionError(f"Duplicate ID '{name}' for device")
        if self._board is None:
            raise OptionError(f"No 'PCI' bus found for device '{driver}': machine none")
        if driver in ("intel-iommu", "amd-iommu") and self._board.machine.units:
            raise OptionError("there is an IOMMU already: q35 has one at most")
        made = Made(driver, name, DRIVERS[driver](self, self._board, rest), dict(properties))
        self.made.append(made)
        return made

    def place(self, board: Q35, function: Function, rest: dict[str, str]) -> Function:
        """Put a function where its properties say, and take these out of `rest`.

        Raises:
            OptionError: if the place does not exist or is taken.
        """
        driver = function.name
        bus, address = rest.pop("bus", ROOT_BUS), rest.pop("addr", None)
        multifunction = options.switch("multifunction", rest.pop("multifunction", "off"))
        rest.pop("rombar", None)  # no device here has a ROM
        if not rest.get("romfile", "-"):
            del rest["romfile"]
        _refuse_rest(driver, rest)
        under = None if bus == ROOT_BUS else self._bridge(bus)
        devfn = self._free(board, under) if address is None else _devfn(driver, address)
        if under is not None and under.kind is PortType.ROOT_PORT and devfn >> 3:
            raise OptionError(
                f"PCI: slot {devfn >> 3} is not valid for {driver}, "
                "parent device only allows plugging into slot 0."
            )
        if multifunction:
            header = function.config.get(HEADER_TYPE, 1)
            function.config.set(HEADER_TYPE, 1, header | MULTIFUNCTION)
        _check_slot(board.bus(under), devfn, function)
        try:
            return board.attach(function, devfn, under)
        except StateError as error:
            raise OptionError(str(error)) from None

    def _bridge(self, bus: str) -> Bridge:
        """Return the bridge above a bus, which has the bridge's id as its name."""
        for made in self.made:
            if made.name == bus and isinstance(made.what, Bridge):
                return made.what
        raise OptionError(f"Bus '{bus}' not found")

    def _free(self, board: Q35, under: Bridge | None) -> int:
        taken = {devfn >> 3 for devfn in board.bus(under).functions}
        if under is None:
            taken |= self._reserved
        for device in range(32):
            if device not in taken:
                return device << 3
        raise OptionError("PCI: no slot/function available")


def _devfn(driver: str, address: str) -> int:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[1], 16) > 31:
        raise OptionError(f"Property '{driver}.addr' doesn't take value '{address}'")
    return int(match[1], 16) << 3 | int(match[2] or "0")


def _check_slot(bus: Bus, devfn: int, function: Function) -> None:
    """Refuse a place that software would not find, because function 0 says that it is alone."""
    if devfn in bus.functions:
        return  # which is the better reason
    slot, number = devfn >> 3, devfn & 7
    first = bus.functions.get(slot << 3)
    others = sorted(at for at in bus.functions if at >> 3 == slot and at & 7)
    if number and first is not None and _is_alone(first):
        raise OptionError(
            f"PCI: single function device can't be populated in function {slot:x}.{number}"
        )
    if not number and others and _is_alone(function):
        raise OptionError(
            f"PCI: {slot:x}.0 indicates single function, "
            f"but {slot:x}.{others[0] & 7} is already populated."
        )


def _is_alone(function: Function) -> bool:
    return not function.config.get(HEADER_TYPE, 1) & MULTIFUNCTION


def _refuse_rest(driver: str, rest: Mapping[str, str]) -> None:
    for name in rest:
        raise OptionError(f"Property '{driver}.{name}' not found")


def _refuse_unimplemented(driver: str, rest: dict[str, str]) -> None:
    """Take out what asks for nothing that is missing, and refuse what does."""
    for name, (only, feature) in UNIMPLEMENTED.items():
        if name not in rest:
            continue
        value = rest.pop(name)
        wanted = bool(options.integer(name, value)) if only == "0" else options.switch(name, value)
        if wanted != (only == "on"):
            raise OptionError(
                f"Property '{driver}.{name}' cannot be '{value}': {feature} is not implemented"
            )
    for name in NO_EFFECT & rest.keys():
        del rest[name]


def _intel(catalogue: Catalogue, board: Q35, rest: dict[str, str]) -> Unit:
    """Make QEMU's VT-d unit: what it reports follows from its properties as QEMU 11.1 does it."""
    from iommu_emu.vtd.presets import preset
    from iommu_emu.vtd.unit import VtdUnit

    _refuse_unimplemented("intel-iommu", rest)
    width = options.integer("aw-bits", rest.pop("aw-bits", "48"))
    given = {name: rest.pop(name, default) for name, default in INTEL_SWITCHES.items()}
    _refuse_rest("intel-iommu", rest)
    for name in ("intremap", "eim"):  # without KVM, automatic means what the default is
        if given[name] == "auto":
            given[name] = INTEL_SWITCHES[name]
    on = {name: options.switch(name, value) for name, value in given.items()}
    extended = on["eim"] or (on["x-buggy-eim"] and on["intremap"])
    if width not in (39, 48):
        raise OptionError("Legacy mode: supported values for aw-bits are: 39, 48")
    if extended and not on["intremap"]:
        raise OptionError("eim=on cannot be selected without intremap=on")
    q35 = preset("qemu-q35", INTEL_BASE)
    capabilities = replace(
        q35.capabilities,
        guest_address_width=width,
        levels=frozenset({3} if width == 39 else {3, 4}),
        caching_mode=on["caching-mode"],
        snoop_control=on["snoop-control"],
        drain_reads=on["dma-drain"],
        drain_writes=on["dma-drain"],
        pass_through=on["pt"],
        interrupt_remapping=on["intremap"],
        max_handle_mask=15 if on["intremap"] else 0,
        extended_interrupts=extended,
    )
    config = replace(q35, capabilities=capabilities, host_address_width=width)
    return VtdUnit(board.machine, config)


def _amd(catalogue: Catalogue, board: Q35, rest: dict[str, str]) -> Unit:
    """Make an AMD-Vi unit with those of QEMU's features that we implement, and its function."""
    from iommu_emu.amdvi.function import AmdviFunction
    from iommu_emu.amdvi.presets import preset
    from iommu_emu.amdvi.unit import AmdviUnit

    _refuse_unimplemented("amd-iommu", rest)
    intremap = rest.pop("intremap", "auto")
    if intremap != "auto" and not options.switch("intremap", intremap):
        raise OptionError(
            "Property 'amd-iommu.intremap' cannot be 'off': the device table decides (IV, IntCtl)"
        )
    _refuse_rest("amd-iommu", rest)
    config = preset("qemu-q35", AMD_BASE)
    function = AmdviFunction(config, name="AMDVI-PCI")
    catalogue.place(board, function, {})
    return AmdviUnit(board.machine, replace(config, device_id=function.address))


def _bridge(
    kind: PortType, device_id: int, name: str
) -> Callable[[Catalogue, Q35, dict[str, str]], Function]:
    def make(catalogue: Catalogue, board: Q35, rest: dict[str, str]) -> Function:
        for number in ("chassis", "slot", "port"):  # there is no hot-plug
            options.integer(number, rest.pop(number, "0"))
        bridge = Bridge(name, kind, vendor_id=_RED_HAT, device_id=device_id)
        if kind is PortType.ROOT_PORT and rest.get("bus", ROOT_BUS) != ROOT_BUS:
            raise OptionError(f"Device '{name}' can only go on {ROOT_BUS}")
        return catalogue.place(board, bridge, rest)

    return make


def _edu(catalogue: Catalogue, board: Q35, rest: dict[str, str]) -> Function:
    from iommu_emu.devices.edu import Edu

    given: dict[str, Any] = {}
    if "dma_mask" in rest:
        given["dma_mask"] = options.integer("dma_mask", rest.pop("dma_mask"))
    return catalogue.place(board, Edu(**given), rest)


def _testdev(catalogue: Catalogue, board: Q35, rest: dict[str, str]) -> Function:
    from iommu_emu.devices.iommu_testdev import IommuTestdev

    return catalogue.place(board, IommuTestdev(), rest)


DRIVERS: dict[str, Callable[[Catalogue, Q35, dict[str, str]], Function | Unit]] = {
    "intel-iommu": _intel,
    "amd-iommu": _amd,
    "edu": _edu,
    "iommu-testdev": _testdev,
    "pcie-root-port": _bridge(PortType.ROOT_PORT, 0x000C, "pcie-root-port"),
    "pcie-pci-bridge": _bridge(PortType.PCIE_TO_PCI, 0x000E, "pcie-pci-bridge"),
}
"""What `-device` takes, and what makes it."""
