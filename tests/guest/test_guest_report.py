import io
import json

import pytest
from guest_samples import DATA
from rich.console import Console as Terminal

from iommu_emu.guest.check import MEDIUM
from iommu_emu.guest.console import Check, Console
from iommu_emu.guest.mappings import mappings_of
from iommu_emu.guest.report import Report, Versions
from iommu_emu.guest.window import WindowRound


@pytest.fixture
def report(watched):
    """A small run: two pages mapped, one fault, one use of a stale entry."""
    watched.domain.map(0x5000, DATA, 8192)
    watched.device.read(0x5000, 8192)
    watched.device.write(0x9123, b"x")
    watched.domain.unmap(0x6000, 4096, invalidate=False)
    watched.device.read(0x6000, 4)
    watched.observer.poll()
    console = Console()
    said = (
        b"[    0.9] iommu: Default domain type: Translated (set via kernel command line)\n"
        b"[    1.0] IEMU fact group 7 0000:00:05.0 DMA\n"
        b"[    1.1] IEMU fact disk nvme0n1 43 0 5384 24 16 0 2048 7 0 28 32\n"
        b"[    1.1] IEMU skip vfio this kernel has no vfio-pci\n"
        b"[    1.2] IEMU check nvme-write ok sha256=0123456789abcdef offset=0 bytes=4\n"
        b"[    1.3] DMAR: [DMA Write NO_PASID] Request device [00:05.0] fault addr 0x9000 "
        b"[fault reason 0x05] PTE Write access is not set\n"
    )
    list(console.feed(said))
    return Report(
        versions=Versions("0.1.0", "QEMU emulator version 11.1.3", "6.12.0", "trixie"),
        policy="lazy",
        console=console,
        observer=watched.observer,
        counters=watched.unit.counters,
        mappings={
            "disk": mappings_of(watched.unit, watched.machine.memory, 0x0028),
            "other": None,
        },
        devices={"disk": 0x0028, "other": 0x0100},
        checks=[Check(MEDIUM + "nvme-write", True, "sha256=0123"), Check("policy", True, "lazy")],
        window=[WindowRound(4096, 4, 1, 9.5), WindowRound(65536, 3, 0, 0)],
        phases={"firmware": 1.25, "kernel": 2.5},
    )


def text(report):
    output = io.StringIO()
    Terminal(file=output, width=300).print(report.render())
    return output.getvalue()


def test_report_is_ok_if_every_check_is(report):
    assert report.ok


@pytest.mark.parametrize("who", ["guest", "host"])
def test_report_is_not_ok_if_one_check_failed(report, who):
    checks = report.console.checks if who == "guest" else report.checks
    checks.append(Check("last", False, "broken"))
    assert not report.ok
    assert "a check FAILED" in text(report)


def test_report_without_checks_is_not_ok(report):
    report.checks.clear()
    report.console.checks.clear()
    assert not report.ok


def test_report_for_programs_is_json(report):
    plain = json.loads(json.dumps(report.plain()))
    assert list(plain) == [
        *("ok", "policy", "versions", "phases", "checks", "not_run", "guest", "emulator", "window")
    ]


def test_report_for_programs_puts_the_fault_on_both_sides(report):
    plain = report.plain()
    (said,), (seen,) = plain["guest"]["faults"], plain["emulator"]["faults"]
    assert (said["requester"], said["access"], said["address"]) == ("00:05.0", "write", 0x9000)
    assert (seen["requester"], seen["access"], seen["address"]) == ("00:05.0", "write", 0x9123)
    assert said["reason"] == seen["reason"] == 5


def test_report_for_programs_names_the_invalidation_that_was_owed(report):
    (use,) = report.plain()["emulator"]["stale_uses"]
    assert (use["address"], use["owed"]) == (0x6000, ["IOTLB_PAGE"])


def test_report_for_programs_has_what_is_mapped(report):
    mappings = report.plain()["emulator"]["mappings"]
    assert (mappings["disk"]["mapped"], mappings["disk"]["pages"]) == (4096, {4096: 1})
    assert mappings["other"] is None


@pytest.mark.parametrize(
    "line",
    [
        "Linux 6.12.0, policy lazy: every check passed",
        "QEMU emulator version 11.1.3, iommu-emu 0.1.0",
        "nvme-write  ok       ok    sha256=0123456789ab… offset=0 bytes=4",
        "vfio        not run        this kernel has no vfio-pci",
        "disk 00:05.0: group 7, DMA",
        "disk: domain 2, 4 levels, 1 entries map 4 KiB",
        "other: no domain",
        "nvme0n1: 2692 KiB read, 1024 KiB written",
        "[fault reason 0x05] PTE Write access is not set",
        "00:05.0 write of 0x9123: 0x05 LGN.2, write, entry not present",
        "1 uses of stale entries",
        "still in reach after 1 of 1 unmaps of 4 KiB and 0 of 1 unmaps of 64 KiB, for up to 9.5 ms",
        "firmware 1.2 s, kernel 2.5 s; together 3.8 s",
    ],
)
def test_report_for_people_says(report, line):
    assert line in text(report)
