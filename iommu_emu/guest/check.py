"""The host's half of the check: what the guest cannot know, and whether both sides agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from iommu_emu.core import Access
from iommu_emu.devices.nvme import Medium
from iommu_emu.guest.console import Check, Console, KernelFault
from iommu_emu.guest.observer import Observer, SeenFault
from iommu_emu.guest.window import WindowRound
from iommu_emu.pci.address import format_requester

FORBIDDEN_WRITE = 0x7F_1234_5000  # IOVAs of 39 bits that no driver ever mapped
FORBIDDEN_READ = 0x7E_2345_6000
TAKEN_AWAY = 0x4000_0000  # where the guest's program maps its buffer through vfio, see iemu.c
ALLOWED = 0x10_0000  # RAM, for a device that is not translated
MEDIUM = "medium-"  # before the name of a check that the host has repeated on the disk's content
STRICT, LAZY, PASSTHROUGH = POLICIES = ("strict", "lazy", "passthrough")
POLICY_LINES = (
    "iommu: Default domain type",
    "TLB invalidation policy",
    "Disable batched IOTLB flush",
)
_PAGE = 4096
_DOMAIN_TYPES = {STRICT: "Translated", LAZY: "Translated", PASSTHROUGH: "Passthrough"}

__all__ = [
    "ALLOWED",
    "FORBIDDEN_READ",
    "FORBIDDEN_WRITE",
    "MEDIUM",
    "POLICIES",
    "POLICY_LINES",
    "batches_flushes",
    "compare_faults",
    "compare_medium",
    "describe_window",
    "judge_policy",
    "judge_trouble",
    "judge_window",
]


def compare_medium(check: Check, medium: Medium) -> Check | None:
    """Compare what the guest says it has stored or read with what the disk holds.

    Args:
        check: a result of the guest with sha256, offset and bytes.
        medium: the disk's.

    Returns:
        The host's result; None if the check is not about the disk.
    """
    values = [check.value(key) for key in ("sha256", "offset", "bytes")]
    try:
        checksum, offset, length = str(values[0]), int(values[1] or ""), int(values[2] or "")
    except ValueError:
        return None
    if not check.ok or not 0 <= offset <= offset + length <= medium.size:
        return None
    held = hashlib.sha256(medium.read(offset, length)).hexdigest()
    return Check(MEDIUM + check.name, held == checksum, f"sha256={held} offset={offset}")


def compare_faults(attacker: int, console: Console, observer: Observer) -> list[Check]:
    """Hold the kernel's fault messages against the emulator's faults, and both against the plan.

    The plan is what the guest says it has tried.

    Args:
        attacker: requester ID of the device that was told to misbehave.
        console: what the kernel said.
        observer: what the emulator saw.
    """
    tried = {check.name for check in console.checks}
    planned = {
        name: fault
        for name, attack, fault in (
            ("fault-write", "fault-write", (FORBIDDEN_WRITE, Access.WRITE)),
            ("fault-read", "fault-read", (FORBIDDEN_READ, Access.READ)),
            ("fault-vfio", "vfio-dma", (TAKEN_AWAY, Access.WRITE)),
        )
        if attack in tried
    }
    checks = []
    for name, (page, access) in planned.items():
        expected = (attacker, page, access)
        seen = [f for f in observer.faults if (f.requester, f.page, f.access) == expected]
        said = [f for f in console.faults if (f.requester, f.address, f.access) == expected]
        checks.append(_agreement(f"printed-{name}", seen, said))
    others = [
        f
        for f in observer.faults
        if f.requester != attacker or (f.page, f.access) not in planned.values()
    ]
    detail = "none" if not others else f"{len(others)}, the first {_describe(others[0])}"
    checks.append(Check("no-other-faults", not others, detail))
    return checks


def _agreement(name: str, seen: list[SeenFault], said: list[KernelFault]) -> Check:
    if not seen:
        return Check(name, False, "the emulator saw no such fault")
    if not said:
        return Check(name, False, f"the kernel never printed {_describe(seen[0])}")
    ok = said[0].reason == seen[0].code
    return Check(name, ok, f"kernel: reason {said[0].reason:#04x}; emulator: {_describe(seen[0])}")


def _describe(fault: SeenFault) -> str:
    access = (fault.access.name or "").lower()
    return (
        f"{format_requester(fault.requester)} {access} of {fault.address:#x},"
        f" {fault.code:#04x} {fault.cause.name} ({fault.cause.condition})"
    )


def judge_policy(policy: str, console: Console) -> Check:
    """Hold the kernel's own words about its policy against what it was told.

    Before 5.14, Linux says whether it flushes lazily only if it does not; old ones say nothing
    about the type of domains either. What a kernel does not say is not held against it.
    """
    lines = console.find(*POLICY_LINES)
    domain, flushes, unbatched = (
        next((line for line in lines if word in line), None) for word in POLICY_LINES
    )
    ok = domain is None or _DOMAIN_TYPES[policy] in domain
    if policy != PASSTHROUGH:
        if flushes is not None:
            ok = ok and f"{policy} mode" in flushes
        else:
            ok = ok and (
                not batches_flushes(console) or (unbatched is not None) is (policy == STRICT)
            )
    said = "; ".join(line.removeprefix("iommu: ") for line in lines)
    return Check("policy", ok, said or "the kernel says nothing about it")


def batches_flushes(console: Console) -> bool:
    """Tell whether the kernel can be lazy: with caching mode Linux never is (VT-d 9.5)."""
    return not any("due to virtualization" in line for line in console.find("batch"))


def judge_window(policy: str, rounds: Sequence[WindowRound]) -> Check:
    """Judge what a device reached after its pages were unmapped.

    Strict invalidation leaves nothing. The deferred kind leaves a window of 10 ms, and a kernel
    whose timer ticks 250 times a second closes it some ms late. Buffers of several pages are
    flushed at once from Linux 7.3 on, so it is the small ones that are judged.
    """
    stale = [one for one in rounds if one.stale]
    detail = describe_window(rounds)
    if policy == LAZY:
        return Check("window-lazy", any(one.size <= _PAGE for one in stale), detail)
    return Check(f"window-{policy}", bool(rounds) and not stale, detail)


def describe_window(rounds: Sequence[WindowRound]) -> str:
    """Return after how many unmaps of each size pages stayed in reach, and for how long."""
    parts = []
    for size in sorted({one.size for one in rounds}):
        all_of_size = [one for one in rounds if one.size == size]
        count = sum(bool(one.stale) for one in all_of_size)
        parts.append(f"{count} of {len(all_of_size)} unmaps of {size >> 10} KiB")
    longest = max((one.lasted_ms for one in rounds), default=0.0)
    lasted = f", for up to {longest:.1f} ms" if longest else ""
    return f"still in reach after {' and '.join(parts)}{lasted}" if parts else "nobody looked"


def judge_trouble(console: Console) -> Check:
    """Judge whether the kernel complained about anything."""
    trouble = console.trouble
    return Check("no-trouble", not trouble, trouble[0] if trouble else "no warning, no error")
