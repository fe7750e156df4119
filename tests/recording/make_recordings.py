"""Make the recordings in data/ again: our demo, a qtest run, and each guest of the matrix.

    python tests/recording/make_recordings.py                    all of them, about two minutes
    python tests/recording/make_recordings.py --only demo-vtd --only trixie-lazy

Guests need QEMU and kernels in the cache (`iommu-emu fetch`). Make them again after a change that
lets the emulator behave differently on purpose, and say so in the commit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from iommu_emu.cli.main import main as iommu_emu
from iommu_emu.demo import tell
from iommu_emu.machine import Machine
from iommu_emu.recording import read, recording, replay

DATA = Path(__file__).with_name("data")
LARGEST = 200_000  # bytes of a file

EDU = 0xE000_0000  # where the client puts edu's BAR
UNIT = 0xFED9_0000


def demo(platform: str, path: Path) -> None:
    machine = Machine.from_platform(platform)
    with recording(machine, path, notes={"run": f"iommu-emu demo --platform {platform}"}):
        list(tell(machine))


def qtest_commands() -> Iterator[str]:
    """Translate edu's DMA through a page, fault beside it, invalidate, translate again."""

    def quadwords(address: int, *values: int) -> Iterator[str]:
        for index, value in enumerate(values):
            yield f"writeq {address + 8 * index:#x} {value:#x}"

    def dma(source: int, target: int, command: int) -> Iterator[str]:
        yield from quadwords(EDU + 0x80, source, target, 64, command)
        yield "clock_step 200000000"
        yield f"readq {EDU + 0x98:#x}"

    yield "outl 0xcf8 0x80002010"
    yield f"outl 0xcfc {EDU:#x}"
    yield "outl 0xcf8 0x80002004"
    yield "outl 0xcfc 0x6"  # memory, bus master
    yield from quadwords(0x1000, 0x2001, 0)  # root entry of bus 0
    yield from quadwords(0x2000 + 16 * 0x20, 0x3001, 0x102)  # 00:04.0: domain 1, 4 levels
    for table in (0x3000, 0x4000, 0x5000):
        yield from quadwords(table, table + 0x1003)
    yield from quadwords(0x6000 + 8 * 0x10, 0x20_0003)  # 10000h to 200000h
    yield f"writeq {UNIT + 0x20:#x} 0x1000"
    yield f"writel {UNIT + 0x3C:#x} 0x41"
    yield f"writel {UNIT + 0x40:#x} 0xfee00000"
    yield f"writel {UNIT + 0x38:#x} 0x0"
    yield f"writel {UNIT + 0x18:#x} 0x40000000"  # SRTP
    yield f"writeq {UNIT + 0x90:#x} 0x8000"
    yield f"writel {UNIT + 0x18:#x} 0x84000000"  # TE, QIE
    yield f"readl {UNIT + 0x1C:#x}"
    yield from quadwords(0x20_0000, 0x1122_3344_5566_7788)
    yield from dma(0x1_0000, 0x4_0000, 1)  # read into edu
    yield from dma(0x4_0000, 0x1_0800, 3)  # write from edu
    yield "readq 0x200800"
    yield from dma(0x4_0000, 0x2_0000, 3)  # not mapped
    for offset in (0x34, 0x1C):
        yield f"readl {UNIT + offset:#x}"
    yield f"readq {UNIT + 0x220:#x}"
    yield f"readq {UNIT + 0x228:#x}"
    yield f"writel {UNIT + 0x22C:#x} 0x80000000"
    yield from quadwords(0x6000 + 8 * 0x10, 0x30_0003)  # to 300000h
    yield from dma(0x4_0000, 0x1_0000, 3)  # the cached translation
    yield from quadwords(0x8000, 0x1_00F2, 0x1_0000)  # its page, drained
    yield from quadwords(0x8010, 0x7_0000_0025, 0x9000)  # status 7 to 9000h
    yield f"writeq {UNIT + 0x88:#x} 0x20"
    yield "readl 0x9000"
    yield from dma(0x4_0000, 0x1_0000, 3)


def qtest(path: Path) -> None:
    """The client is a text: its commands do not depend on the answers."""
    commands = "".join(f"{command}\n" for command in qtest_commands()).encode()
    line = "-machine q35 -nodefaults -device intel-iommu -device edu,addr=4.0"
    program = [str(Path(sys.executable).with_name("iommu-emu")), "qtest", *line.split()]
    options = ["-qtest", "stdio", "-qtest-log", "none", "-record", path]
    subprocess.run(
        [*program, *options], input=commands, check=True, stdout=subprocess.DEVNULL, timeout=60
    )


def guest(kernel: str, policy: str, path: Path) -> None:
    options = ["--kernel", kernel, "--policy", policy, "--record", str(path)]
    if iommu_emu(["guest", "linux", *options]):
        raise SystemExit(f"the check of {kernel}, {policy} failed")


RECORDINGS: dict[str, Callable[[Path], None]] = {
    "demo-vtd": partial(demo, "q35-vtd"),
    "demo-amdvi": partial(demo, "q35-amdvi"),
    "qtest-edu": qtest,
    **{
        f"{kernel}-{policy}": partial(guest, kernel, policy)
        for kernel in ("bookworm", "trixie", "trixie-backports")
        for policy in ("strict", "lazy")
    },
}


def main() -> int:
    """Make the chosen recordings; each must replay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=RECORDINGS, help="may come repeatedly")
    for name in parser.parse_args().only or RECORDINGS:
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / f"{name}.iemu"
            with contextlib.redirect_stdout(io.StringIO()):
                RECORDINGS[name](fresh)
            made, size = read(fresh), fresh.stat().st_size
            if not replay(made).same:
                raise SystemExit(f"{name} does not replay")
            if size > LARGEST:
                raise SystemExit(f"{name} has {size} bytes (at most {LARGEST})")
            shutil.copy(fresh, DATA)
        print(f"  {len(made)} records, {size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
