import hashlib
from types import SimpleNamespace

import pytest

from iommu_emu import core
from iommu_emu.core import Access, Vendor
from iommu_emu.devices.nvme import RamMedium
from iommu_emu.guest.check import (
    FORBIDDEN_READ,
    FORBIDDEN_WRITE,
    LAZY,
    PASSTHROUGH,
    STRICT,
    TAKEN_AWAY,
    batches_flushes,
    compare_faults,
    compare_medium,
    judge_policy,
    judge_trouble,
    judge_window,
)
from iommu_emu.guest.console import Check, Console, KernelFault
from iommu_emu.guest.observer import SeenFault
from iommu_emu.guest.window import WindowRound

ATTACKER = 0x0200
PLAN = [
    (FORBIDDEN_WRITE, Access.WRITE, 5),
    (FORBIDDEN_READ, Access.READ, 6),
    (TAKEN_AWAY, Access.WRITE, 5),
]
STRICT_WORDS = "iommu: DMA domain TLB invalidation policy: strict mode (set via ...)"
TRANSLATED = "iommu: Default domain type: Translated (set via kernel command line)"


def seen(page, access, code, requester=ATTACKER):
    cause = next(row for row in core.faults(Vendor.VTD) if row.code == code)
    return SeenFault(0, requester, page + 0x123, access, code, cause)


def said(page, access, code, requester=ATTACKER):
    return KernelFault(access, requester, page, code, "DMAR: ...")


def compare(kernel, emulator, tried=("fault-write", "fault-read", "vfio-dma")):
    console = SimpleNamespace(faults=kernel, checks=[Check(name, True, "") for name in tried])
    checks = compare_faults(ATTACKER, console, SimpleNamespace(faults=emulator))
    return {check.name: check.ok for check in checks}


def console_of(*lines):
    console = Console()
    list(console.feed("".join(f"{line}\n" for line in lines).encode()))
    return console


@pytest.fixture
def medium():
    medium = RamMedium(1 << 20)
    medium.write(4096, b"pattern" * 100)
    return medium


def on_disk(data, offset=4096, name="nvme-write", ok=True):
    checksum = hashlib.sha256(data).hexdigest()
    return Check(name, ok, f"sha256={checksum} offset={offset} bytes={len(data)}")


def test_check_medium_that_holds_what_the_guest_wrote_is_ok(medium):
    check = compare_medium(on_disk(b"pattern" * 100), medium)
    assert (check.name, check.ok) == ("medium-nvme-write", True)


def test_check_medium_that_holds_something_else_is_not(medium):
    assert not compare_medium(on_disk(b"Pattern" * 100), medium).ok


@pytest.mark.parametrize(
    "check",
    [
        Check("vfio-dma", True, "copied=2048"),
        Check("nvme-write", True, "sha256=00 offset=x bytes=1"),
        Check("nvme-write", True, "sha256=00 offset=-4096 bytes=512"),
        Check("nvme-write", True, "sha256=00 offset=4096 bytes=-512"),
        Check("nvme-write", True, "sha256=00 offset=1048576 bytes=512"),
        on_disk(b"x", ok=False),
    ],
)
def test_check_medium_is_not_asked_about_what_it_cannot_tell(medium, check):
    assert compare_medium(check, medium) is None


def test_check_faults_that_agree_are_ok():
    assert compare([said(*each) for each in PLAN], [seen(*each) for each in PLAN]) == {
        "printed-fault-write": True,
        "printed-fault-read": True,
        "printed-fault-vfio": True,
        "no-other-faults": True,
    }


@pytest.mark.parametrize("missing", range(3))
def test_check_fault_that_the_kernel_did_not_print_fails(missing):
    kernel = [said(*each) for each in PLAN if each is not PLAN[missing]]
    result = compare(kernel, [seen(*each) for each in PLAN])
    assert list(result.values()).index(False) == missing
    assert sum(result.values()) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        said(FORBIDDEN_WRITE, Access.WRITE, 6),
        said(FORBIDDEN_WRITE, Access.READ, 5),
        said(FORBIDDEN_WRITE + 4096, Access.WRITE, 5),
        said(FORBIDDEN_WRITE, Access.WRITE, 5, requester=0x0100),
    ],
)
def test_check_fault_that_the_kernel_printed_wrongly_fails(wrong):
    kernel = [wrong, *(said(*each) for each in PLAN[1:])]
    assert not compare(kernel, [seen(*each) for each in PLAN])["printed-fault-write"]


def test_check_fault_that_we_did_not_see_fails():
    result = compare([said(*each) for each in PLAN], [seen(*each) for each in PLAN[1:]])
    assert not result["printed-fault-write"]


def test_check_fault_that_was_not_tried_is_not_missed():
    kernel, emulator = [said(*each) for each in PLAN[:2]], [seen(*each) for each in PLAN[:2]]
    assert compare(kernel, emulator, tried=("fault-write", "fault-read")) == {
        "printed-fault-write": True,
        "printed-fault-read": True,
        "no-other-faults": True,
    }


@pytest.mark.parametrize("fault", PLAN)
def test_check_fault_that_was_not_tried_must_not_be_there(fault):
    assert not compare([said(*fault)], [seen(*fault)], tried=())["no-other-faults"]


def test_check_fault_that_nobody_planned_fails():
    emulator = [*(seen(*each) for each in PLAN), seen(0x1000, Access.READ, 6, requester=0x0100)]
    assert not compare([said(*each) for each in PLAN], emulator)["no-other-faults"]


@pytest.mark.parametrize(
    ("policy", "lines", "ok"),
    [
        (STRICT, (TRANSLATED, STRICT_WORDS), True),
        (STRICT, (TRANSLATED, STRICT_WORDS.replace("strict", "lazy")), False),
        (LAZY, (TRANSLATED, STRICT_WORDS.replace("strict", "lazy")), True),
        (LAZY, (TRANSLATED, STRICT_WORDS), False),
        (STRICT, (), False),
        (LAZY, (), True),  # Linux 4.x says nothing unless it is strict
        (STRICT, ("DMAR: Disable batched IOTLB flush",), True),
        (PASSTHROUGH, (), True),
        (LAZY, ("DMAR: Disable batched IOTLB flush due to virtualization",), True),
        (STRICT, (TRANSLATED, "DMAR: Disable batched IOTLB flush"), True),  # Linux before 5.14
        (STRICT, (TRANSLATED,), False),
        (LAZY, (TRANSLATED,), True),
        (LAZY, (TRANSLATED, "DMAR: Disable batched IOTLB flush"), False),
        (PASSTHROUGH, (TRANSLATED.replace("Translated", "Passthrough"),), True),
        (PASSTHROUGH, (TRANSLATED,), False),
    ],
)
def test_check_policy_is_what_the_kernel_says(policy, lines, ok):
    assert judge_policy(policy, console_of(*lines)).ok is ok


@pytest.mark.parametrize(
    ("line", "batches"),
    [
        ("DMAR: IOMMU batching disallowed due to virtualization", False),
        ("DMAR: Disable batched IOTLB flush due to virtualization", False),
        ("rcu: something else, due to virtualization", True),
        ("DMAR: Disable batched IOTLB flush", True),
    ],
)
def test_check_kernel_that_never_batches_says_so(line, batches):
    assert batches_flushes(console_of(line)) is batches


OPEN, SHUT = WindowRound(4096, 4, 1, 9.5), WindowRound(4096, 3, 0, 0)
LARGE = WindowRound(65536, 19, 16, 20.25)


@pytest.mark.parametrize(
    ("policy", "rounds", "ok"),
    [
        (STRICT, [SHUT, SHUT], True),
        (STRICT, [SHUT, OPEN], False),
        (STRICT, [], False),
        (PASSTHROUGH, [SHUT], True),
        (STRICT, [SHUT, LARGE], False),
        (LAZY, [SHUT, OPEN], True),
        (LAZY, [SHUT, LARGE], False),
        (LAZY, [SHUT, SHUT], False),
        (LAZY, [], False),
    ],
)
def test_check_window_is_open_in_lazy_mode_alone(policy, rounds, ok):
    assert judge_window(policy, rounds).ok is ok


def test_check_window_says_how_wide_it_is():
    assert judge_window(LAZY, [OPEN, LARGE, SHUT]).detail == (
        "still in reach after 1 of 2 unmaps of 4 KiB and 1 of 1 unmaps of 64 KiB, for up to 20.2 ms"
    )


def test_check_window_that_was_shut_has_no_width():
    assert judge_window(STRICT, [SHUT]).detail == "still in reach after 0 of 1 unmaps of 4 KiB"


def test_check_trouble_is_quoted():
    check = judge_trouble(console_of("fine", "WARNING: CPU: 0"))
    assert (check.ok, check.detail) == (False, "WARNING: CPU: 0")


def test_check_no_trouble_is_ok():
    assert judge_trouble(console_of("fine")).ok
