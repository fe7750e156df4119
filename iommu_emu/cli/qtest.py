"""`iommu-emu qtest`: a machine of ours for QEMU's own tests, as QEMU offers its machines."""

from __future__ import annotations

import argparse

from iommu_emu.qtest.server import main as serve

HELP = """\
usage: iommu-emu qtest [QEMU's options]

Offers a q35 of ours to a qtest client, such as the programs of QEMU's test-suite: memory, PCI, a
VT-d or AMD-Vi unit and devices behind it, driven through QEMU's qtest protocol and monitor (QMP).
There is no CPU. It takes QEMU's command line; what it does not have is refused by name.

The same program is installed as libexec/iommu-emu/qemu-system-x86_64 beside bin/iommu-emu, because
libqtest reads the architecture from QEMU's name. That folder is on no PATH.

machine:
  -machine q35|none         `none` has no memory and no device (default: q35; QEMU's is pc)
  -m SIZE                   memory; M is understood where there is no suffix (default: 128M)
  -device intel-iommu       VT-d. caching-mode, snoop-control, eim, intremap = on|off;
                            aw-bits = 39|48
  -device amd-iommu         AMD-Vi, with a PCI function of its own
  -device edu               QEMU's educational device. dma_mask = NUMBER
  -device iommu-testdev     QEMU's device for IOMMU tests
  -device pcie-root-port    a port; its id is the name of the bus below. pcie-pci-bridge: likewise
                            on PCI: id = NAME, bus = pcie.0 or the id of a bridge,
                            addr = DEVICE.FUNCTION (hexadecimal)
  -nodefaults               QEMU's VGA and network card, which are not here, keep no place free
  -S                        start paused

who drives it:
  -qtest unix:PATH[,server=on]
                            connect to a qtest client, or wait for one; `stdio` works too
  -qtest-log FILE           log of the protocol; `none` for none (default: standard error)
  -qmp unix:PATH[,server=on]
                            the same for the monitor; or -chardev and -mon, as libqtest has it
  -run-with exit-with-parent=on
                            end when the parent process ends

what is kept of it:
  -record FILE              a recording for `iommu-emu replay`
  -record-seconds N         end it after N seconds of virtual time (default: with the run)

also taken, as they come in QEMU's tests: -accel qtest, -display none, -audio none, -net none,
-nic none, -vga none, -serial none, -parallel none, -monitor none, -smp N, -cpu MODEL, -name,
-no-user-config, -no-reboot, -no-shutdown, -nographic, -object monitor-qmp, -version, -help

examples:
  export QTEST_QEMU_BINARY=$VIRTUAL_ENV/libexec/iommu-emu/qemu-system-x86_64
  build/tests/qtest/iommu-intel-test
  iommu-emu qtest -machine q35 -nodefaults -device intel-iommu -device edu -qtest stdio

exit codes: 0 the run is over, 1 the command line cannot be taken, or the recording not written"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `qtest`; its options are QEMU's, so argparse leaves them alone."""
    parser = subparsers.add_parser(
        "qtest",
        help="a machine for QEMU's own tests, driven as they drive QEMU",
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("line", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns the exit code."""
    return serve(arguments.line, "iommu-emu qtest", HELP)
