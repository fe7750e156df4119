"""The story that `iommu-emu demo` tells, as data: one `Step` for each thing that happens.

Nothing here is staged by hand: each step does DMA through the emulator, and its facts are what
came back. The device is the same all along; what changes is what software did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommu_emu.acpi.text import format_size
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.core import Access, Completion, FullError, Owed, StaleUse, TableLevel
from iommu_emu.devices.malicious import MaliciousDevice
from iommu_emu.driver import Driver, Fault
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.topology import Bridge
from iommu_emu.routing import RuleKind
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["Step", "tell"]

DRIVER_FRAMES = range(0x10_0000, 0x90_0000)  # tables and queues of the driver
BUFFER = 0xA0_0000  # physical page that the device may use
NEIGHBOUR = BUFFER + 0x1000  # the page behind it, somebody else's
IOVA = 0x7_0000  # what the device calls the buffer
SECRET = b"root:$6$k3yM4t3r1al"
PACKET = b"a packet for you"
PAGE = 4096

OWED = {
    Owed.CONTEXT_GLOBAL: "context cache, global",
    Owed.CONTEXT_DEVICE: "context cache (device table entry), this device",
    Owed.IOTLB_GLOBAL: "IOTLB, global",
    Owed.IOTLB_DOMAIN: "IOTLB, this domain",
    Owed.IOTLB_PAGE: "IOTLB, this page of this domain",
}


@dataclass(frozen=True)
class Step:
    """One thing that happened.

    Attributes:
        title: what was done.
        text: why, in plain words.
        facts: what came back: name and value, for people.
        verdict: one sentence.
        good: whether this is what one wants to see; None: neither.
    """

    title: str
    text: str
    facts: dict[str, str]
    verdict: str
    good: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)


def tell(machine: Machine) -> Iterator[Step]:
    """Run the story on a machine with at least one unit; yields each step as it is done.

    Raises:
        ValueError: if no unit of the machine serves an address where a device can be attached.
    """
    device = _attach(machine)
    unit = machine.unit_of(device)
    driver: Driver[Any]
    if isinstance(unit, AmdviUnit):
        driver = AmdviDriver(machine, unit, DRIVER_FRAMES)
    elif isinstance(unit, VtdUnit):
        ways = "queue" if unit.capabilities.queued_invalidation else "register"
        driver = VtdDriver(machine, unit, DRIVER_FRAMES, ways)
    else:
        raise TypeError(f"no driver for {unit!r}")
    unit.watch()

    yield _platform(machine, device)
    yield _unprotected(machine, device)
    yield _switched_on(driver, device)
    domain = driver.create_domain(min(4, max(driver.entry_format().levels)))
    driver.attach(domain, device.dma.requester)
    domain.map(IOVA, BUFFER, PAGE)
    yield _legal(machine, driver, device)
    yield _overrun(machine, driver, device)
    domain.unmap(IOVA, PAGE, invalidate=False)
    yield _forgotten(machine, driver, device)
    domain.flush()
    yield _made_up_for(driver, device)


def _attach(machine: Machine) -> MaliciousDevice:
    """Plug the device in where a stranger could: an external port, else any served address."""
    for place in _places(machine):
        device = MaliciousDevice("a network card")
        try:
            machine.attach(device, **place)
        except (ValueError, FullError):  # taken, or behind a bridge that is not there
            continue
        if machine.unit_of(device) is not None:
            return device
        machine.remove(device)
    notes = "".join(f"; {note}" for note in machine.notes)
    raise ValueError(f"no IOMMU serves an address where a device can be attached{notes}")


def _places(machine: Machine) -> Iterator[dict[str, Any]]:
    """Where to attach a device, best first, as arguments of `Machine.attach`."""
    bridges = [f for f in machine.fabric.functions() if isinstance(f, Bridge)]
    yield from ({"under": bridge} for bridge in bridges if bridge.external_facing)
    yield {}
    for rule in machine.rules:
        found = machine.fabric.walk(rule.unit.segment, rule.start_bus, rule.path)
        if found is not None:
            yield {"address": format_requester(found[0], rule.unit.segment)}
    yield from ({"under": bridge} for bridge in bridges)
    ranges = [rule for rule in machine.rules if rule.kind is RuleKind.RANGE]
    # Where there is a choice, not device 0: the host bridge, and on AMD the IOMMU itself.
    for rule in sorted(ranges, key=lambda rule: not rule.first & 0xF8):
        yield {"address": format_requester(rule.first, rule.unit.segment)}
    for segment, number in machine.fabric.roots:  # the last device of any root bus
        yield {"address": format_requester(number << 8 | 0xF8, segment)}


def _platform(machine: Machine, device: MaliciousDevice) -> Step:
    facts = {}
    for unit in machine.units:
        mine = " (serves our device)" if machine.unit_of(device) is unit else ""
        kind = "VT-d" if isinstance(unit, VtdUnit) else "AMD-Vi"
        facts[f"{kind} unit {unit.number}"] = f"registers at {unit.base:#x}{mine}"
    for region in machine.reserved_regions:
        facts[f"reserved memory {region.base:#x}"] = (
            f"{format_size(region.limit + 1 - region.base)} that firmware lets a device use"
        )
    facts["our device"] = f"{device.name} at {format_requester(device.address)}"
    units = (
        "One IOMMU unit, still off"
        if len(machine.units) == 1
        else (f"{len(machine.units)} IOMMU units, all still off")
    )
    return Step(
        "The machine, as firmware describes it",
        "Devices read and write memory on their own (DMA). An IOMMU stands between them and "
        "memory, and lets each device reach only what the operating system has mapped for it. "
        "The ACPI table says which IOMMU serves which device.",
        facts,
        f"{units}, as after reset.",
    )


def _unprotected(machine: Machine, device: MaliciousDevice) -> Step:
    machine.memory.write(NEIGHBOUR, SECRET)
    stolen = device.read(NEIGHBOUR, len(SECRET))
    return Step(
        "Before the IOMMU is on",
        "The device asks for memory that nobody gave it.",
        {"read of": f"{NEIGHBOUR:#x}", "device got": _shown(stolen)},
        "It reads whatever it likes: this is what a stranger's Thunderbolt stick could do.",
        good=False,
        details={"data": stolen.data},
    )


def _switched_on(driver: Driver[Any], device: MaliciousDevice) -> Step:
    driver.start()
    tried = device.read(NEIGHBOUR, len(SECRET))
    faults = driver.faults()
    return Step(
        "The driver brings the unit up",
        "Tables in memory, queues, fault interrupt, then the switch. No device is allowed "
        "anything yet. The device tries again.",
        {"device got": _shown(tried), **_fault_facts(faults)},
        "Blocked, and the unit has written down who tried what.",
        good=True,
        details={"completion": tried, "faults": faults},
    )


def _legal(machine: Machine, driver: Driver[Any], device: MaliciousDevice) -> Step:
    sent = device.write(IOVA, PACKET)
    arrived = machine.memory.read(BUFFER, len(PACKET))
    return Step(
        "Legal DMA",
        f"The driver maps one page: what the device calls {IOVA:#x} is the page at {BUFFER:#x}. "
        "The device writes a packet there.",
        {
            "device wrote": f"{PACKET!r} to I/O address {IOVA:#x}",
            "completion": _shown(sent),
            f"memory at {BUFFER:#x}": repr(arrived),
            "IOTLB": _entries(driver),
        },
        "It arrives; and the unit remembers the translation in its cache, the IOTLB.",
        good=True,
        details={"arrived": arrived},
    )


def _overrun(machine: Machine, driver: Driver[Any], device: MaliciousDevice) -> Step:
    start = IOVA + PAGE - 16
    sent = device.write(start, b"X" * 64)
    landed = sent.details.done if sent.details else 64
    faults = driver.faults()
    return Step(
        "A buffer overrun",
        "The device writes 64 bytes where only 16 are left of the page.",
        {
            "device wrote": f"64 bytes to {start:#x}",
            "completion": f"{_shown(sent)} after {landed} bytes",
            **_fault_facts(faults),
            "the page behind": repr(machine.memory.read(NEIGHBOUR, len(SECRET))),
        },
        "The 16 bytes land, the rest is stopped at the page's edge.",
        good=True,
        details={"completion": sent, "faults": faults},
    )


def _forgotten(machine: Machine, driver: Driver[Any], device: MaliciousDevice) -> Step:
    machine.memory.write(BUFFER, SECRET)  # the kernel uses the page for something else now
    driver.unit.stale_uses()
    stolen = device.read(IOVA, len(SECRET))
    uses = driver.unit.stale_uses()
    return Step(
        "A forgotten invalidation",
        "The driver unmaps the page and the kernel puts a password hash into it. But the driver "
        "forgot to tell the IOMMU's cache. Most emulators would hide this bug.",
        {"device got": _shown(stolen), **(_stale_facts(uses[0]) if uses else {})},
        "The DMA succeeds through a stale cache entry: the tables say no, the cache says yes. "
        "The detector names the entry that changed and the invalidation that was owed.",
        good=False,
        details={"data": stolen.data, "stale_uses": uses},
    )


def _made_up_for(driver: Driver[Any], device: MaliciousDevice) -> Step:
    tried = device.read(IOVA, len(SECRET))
    faults = driver.faults()
    return Step(
        "With the invalidation",
        "The driver makes up for it: it invalidates and waits until the unit says it is done.",
        {"device got": _shown(tried), "IOTLB": _entries(driver), **_fault_facts(faults)},
        "Closed. An unmap is over when the invalidation is, not when the table is written.",
        good=True,
        details={"completion": tried, "faults": faults},
    )


def _shown(completion: Completion) -> str:
    if completion.ok:
        return repr(completion.data) if completion.data else "success"
    return completion.status.name.replace("_", " ").capitalize()


def _entries(driver: Driver[Any]) -> str:
    entries = driver.unit.entries("iotlb")
    if not entries:
        return "empty"
    return ", ".join(
        f"{entry.address:#x} → {entry.output:#x} (domain {entry.domain})" for entry in entries
    )


def _fault_facts(faults: Any) -> dict[str, str]:
    return {"fault record": _fault(faults[-1])} if faults else {}


def _fault(fault: Fault) -> str:
    kind = "DMA write" if Access.WRITE in fault.access else "DMA read"
    return (
        f"[{kind}] device {format_requester(fault.requester)}, address {fault.address:#x}, "
        f"reason {fault.code:#04x} ({fault.name}): {fault.condition}"
    )


def _stale_facts(use: StaleUse) -> dict[str, str]:
    if use.level in set(TableLevel):
        level = TableLevel(use.level).name.lower()
    else:
        level = f"page table, level {use.level}"
    owed = [text for bit, text in OWED.items() if bit in use.owed]
    return {
        "answered by": use.cache.name,
        "entry that changed": f"{level}, at {use.entry:#x}",
        "was, and is": f"{use.before:#x} → {use.after:#x}",
        "owed": "; ".join(owed),
    }
