"""A VT-d unit with device-TLBs, and a function behind it that has one."""

from __future__ import annotations

from typing import Any

from core_bench import DEVICE, SMALL, TE, Bench, device_descriptor, wait_descriptor

from iommu_emu.core import Answer, DeviceTlb, MessageKind, Port, Status, Translation

WITH_ATS = 1  # context entry, TT (VT-d 4.3)
PAGE = 0x5000  # of IOVAs
MEMORY = 0x20_0000  # where it is mapped
STATUS = 0x7000  # where waits write
TIMEOUT = 1_000_000  # ns
EVERYTHING = 0x7FFF_FFFF_FFFF_F000


def ats_bench(*, enabled: bool = True, **arguments: Any) -> Bench:
    """Return a unit that translates for DEVICE, with its queue on and the events unmasked."""
    bench = Bench(**({"device_tlb": True, "timeout": TIMEOUT} | arguments))
    bench.attach(tt=WITH_ATS).map(PAGE, MEMORY)
    bench.set_root()
    if enabled:
        bench.command(TE)
    bench.enable_queue()
    bench.write("FEADDR", 0xFEE0_0000)
    bench.write("FEDATA", 0x41)
    bench.write("FECTL", 0)
    return bench


def ats_port(
    bench: Bench, answer: Answer = Answer.AFTER, delay: int = 0, on: bool = True, **arguments: Any
) -> tuple[Port, DeviceTlb]:
    """Return a port of DEVICE and its device-TLB."""
    port = bench.port(arguments.pop("requester", DEVICE))
    tlb = port.add_device_tlb(SMALL.parameters(), answer, delay, **arguments)
    tlb.enable(on)
    return port, tlb


def translation(port: Port, address: int, **arguments: Any) -> Translation:
    completion = port.translation_request(address, **arguments)
    assert completion.status is Status.DONE
    return Translation.decode(completion.data)


def invalidate(
    bench: Bench, address: int = 0, size: int = 0, sid: int = DEVICE, **how: int
) -> None:
    """Submit a device-TLB invalidation and a wait that stores 1."""
    bench.poke(STATUS, 0)
    wait = wait_descriptor(write=1, address=STATUS, data=1)
    bench.submit(device_descriptor(sid, address, size, **how), wait)


def complete(bench: Bench) -> bool:
    """Whether the wait has completed."""
    return bench.peek(STATUS) == 1


def events(bench: Bench) -> int:
    """Take the messages; return how many of the unit's own there were."""
    return len(bench.messages(MessageKind.UNIT))
