from pathlib import Path

import pytest

from iommu_emu.core import Access
from iommu_emu.guest.console import Check, Console, parse_fault

CONSOLES = Path(__file__).parent / "consoles"
KERNELS = ("bookworm", "trixie", "trixie-backports")


def read(*lines):
    console = Console()
    taken = list(console.feed("".join(f"{line}\r\n" for line in lines).encode()))
    return console, taken


@pytest.fixture(params=KERNELS)
def captured(request):
    """What a real guest said: policy lazy, the lines that speak of its IOMMU and our check."""
    return read(*(CONSOLES / f"{request.param}.log").read_text().splitlines())[0]


def test_console_of_real_kernels_has_every_fault(captured):
    assert [(f.requester, f.access, f.address, f.reason) for f in captured.faults] == [
        (0x0200, Access.WRITE, 0x7F_1234_5000, 5),
        (0x0200, Access.READ, 0x7E_2345_6000, 6),
        (0x0200, Access.WRITE, 0x4000_0000, 5),
    ]


def test_console_of_real_kernels_has_no_trouble(captured):
    assert captured.trouble == []


def test_console_of_real_kernels_has_every_phase_to_the_end(captured):
    assert captured.ended
    assert captured.phases == [
        *("modules", "facts", "nvme", "rebind", "hotplug", "fault", "vfio", "window")
    ]


def test_console_of_real_kernels_has_what_the_guest_asked_for(captured):
    assert list(captured.asked) == ["unplug", "plug", *["look 4096", "look 65536"] * 5]


def test_console_of_real_kernels_has_their_words_about_the_policy(captured):
    assert captured.find("TLB invalidation policy") == [
        "iommu: DMA domain TLB invalidation policy: lazy mode (set via kernel command line)"
    ]


def test_console_of_real_kernels_has_facts(captured):
    groups = [value for name, value in captured.facts if name == "group"]
    assert groups == [f"{n} 0000:0{n + 1}:00.0 DMA-FQ" for n in range(3)]
    assert captured.fact("kernel") == captured.find("Linux version")[0].split()[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "DMAR: [DMA Write] Request device [00:02.0] PASID ffffffff fault addr f9a2f000"
            " [fault reason 05] PTE Write access is not set",
            (0x0010, Access.WRITE, 0xF9A2F000, 5),
        ),
        (
            "DMAR: [DMA Read NO_PASID] Request device [0001:3f:1f.7] fault addr 0xfff"
            " [fault reason 0x0c] non-zero reserved fields in PTE",
            (0x3FFF, Access.READ, 0xFFF, 12),
        ),
        (
            "DMAR: [INTR-REMAP] Request device [f0:1f.0] fault index 0x9 [fault reason 0x25]"
            " Blocked a compatibility format interrupt request",
            (0xF0F8, Access.NONE, 9, 0x25),
        ),
    ],
)
def test_console_fault_of_other_kernels(text, expected):
    fault = parse_fault(text)
    assert fault is not None
    assert (fault.requester, fault.access, fault.address, fault.reason) == expected
    assert fault.text == text


def test_console_line_without_a_fault_is_none():
    assert parse_fault("DMAR: DRHD: handling fault status reg 2") is None


@pytest.mark.parametrize(
    "text",
    [
        "WARNING: CPU: 0 PID: 1 at drivers/iommu/intel/iommu.c:1 x+0x1/0x2",
        "BUG: unable to handle page fault for address: 0000000000000008",
        "INFO: task swapper:1 blocked for more than 120 seconds.",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "nvme nvme0: I/O tag 0 (1000) QID 1 timeout, completion polled",
        "I/O error, dev nvme0n1, sector 0 op 0x0:(READ) flags 0x0",
        "DMAR: VT-d detected Invalidation Queue Error: Reason f",
        "Kernel panic - not syncing: Attempted to kill init!",
    ],
)
def test_console_knows_what_a_healthy_guest_never_says(text):
    assert read(f"[    1.000000] {text}")[0].trouble == [text]


def test_console_takes_the_time_stamp_off():
    _, (line,) = read("[   12.345678] hello")
    assert (line.time, line.text) == (12.345678, "hello")


def test_console_takes_the_caller_off_with_the_time_stamp():
    _, (line,) = read("[    0.000000][    T0] hello")
    assert line.text == "hello"


def test_console_line_of_the_firmware_has_no_time():
    _, (line,) = read("\x1bc\x1b[?7l\x1b[2JSeaBIOS (version 1.17.0)")
    assert (line.time, line.text) == (None, "SeaBIOS (version 1.17.0)")


def test_console_joins_what_arrives_in_pieces():
    console = Console()
    pieces = [b"[    1.0", b"00000] IEMU check a o", b"k x=1 y\r", b"\nIEMU"]
    texts = [line.text for piece in pieces for line in console.feed(piece)]
    assert texts == ["IEMU check a ok x=1 y"]
    assert console.checks == [Check("a", True, "x=1 y")]


def test_console_check_that_is_not_ok_has_failed():
    console, _ = read("IEMU check a fail no disk", "IEMU check b", "IEMU check", "IEMU")
    assert console.checks[0] == Check("a", False, "no disk")
    assert not any(check.ok for check in console.checks)


def test_console_knows_what_could_not_be_tried():
    assert read("IEMU skip vfio no such driver")[0].skipped == [("vfio", "no such driver")]


def test_console_check_detail_has_values_by_key():
    check = Check("a", True, "offset=0 sha256=ab= rest")
    assert [check.value(k) for k in ("offset", "sha256", "rest")] == ["0", "ab=", None]


def test_console_keeps_a_bounded_number_of_everything():
    console = Console()
    flood = b"IEMU check a ok\nIEMU fact a b\nIEMU phase a\nIEMU ask a\nWARNING: a\n" * 5000
    for _ in console.feed(flood):
        pass
    kept = (console.checks, console.facts, console.phases, console.asked, console.trouble)
    assert [len(each) for each in kept] == [1000] * 5
    assert len(console.lines) == 20_000


def test_console_cuts_lines_that_never_end():
    console = Console()
    lengths = [len(line.text) for _ in range(50) for line in console.feed(b"x" * 999)]
    assert lengths
    assert max(lengths) <= 1000


def test_console_survives_any_byte():
    console = Console()
    texts = [one.text for one in console.feed(bytes(range(256)) + b"\n")]
    assert texts
    assert all(text.isprintable() for text in texts)
