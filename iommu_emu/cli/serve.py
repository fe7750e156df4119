"""`iommu-emu serve`: devices and an IOMMU of ours for somebody else's QEMU, over vfio-user."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from iommu_emu import acpi, firmware
from iommu_emu.acpi.dmar import DeviceScope, Dmar, Drhd
from iommu_emu.cli import source
from iommu_emu.clock import SECOND, monotonic_source
from iommu_emu.core import StateError
from iommu_emu.devices import Attacker, Edu, IommuTestdev, Nvme
from iommu_emu.devices.nvme import FileMedium
from iommu_emu.machine import Machine
from iommu_emu.pci.address import format_requester, parse_address
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.recording import RecordingError, recording
from iommu_emu.unit import Unit
from iommu_emu.vfio_user import Endpoint, Event, Server
from iommu_emu.vfio_user.qemu import (
    memory_arguments,
    port_id,
    register_page_commands,
    root_port,
)
from iommu_emu.vtd.unit import VtdUnit

UNIT_BASE = 0xFED9_0000
HOST_ADDRESS_WIDTH = 46
FIRST_PORT = 0x10  # device number of the first root port
PAGES_FROM = 0x1E  # device number of unit 0's register page; the next unit's is one lower
DEVICES: dict[str, Callable[[], Function]] = {
    "nvme": Nvme,
    "edu": Edu,
    "iommu-testdev": IommuTestdev,
    "malicious": Attacker,
}

DESCRIPTION = """\
Puts device models, and the IOMMU that they are behind, into a guest of yours: each is served on a
UNIX socket, to which QEMU (11.1 or later) connects with `-device vfio-user-pci`.

Without --platform or --acpi there is one VT-d unit at fed90000, and a DMAR table that puts the
devices, and nothing else, behind it. Give it to the guest: --write-acpi saves it, and QEMU's
-acpitable hands it on. Devices on bus 1, 2, ... sit below root ports, which QEMU must have as well.
What QEMU has to be told is printed when everything is ready.

  --device KIND@ADDRESS=SOCKET   a device at a PCI address of the guest. KIND is one of
        nvme             an NVMe disk in RAM, 64 MiB; nvme:FILE keeps it in a file
        edu              QEMU's educational device
        iommu-testdev    QEMU's device for IOMMU tests
        malicious        a device that reads and writes wherever the guest tells it to
  --unit NUMBER=SOCKET           the registers of a VT-d unit
"""
EPILOG = """\
A device appears when QEMU connects and is gone when QEMU ends; the next QEMU finds everything
reset. Guest memory must be `memory-backend-memfd` with share=on, which QEMU seals against
shrinking; what cannot be mapped is reported, and devices do not reach it. Interrupt remapping does
not work in such a guest: its I/O APIC is QEMU's. SIGINT and SIGTERM end the server and remove its
sockets.

examples:
  iommu-emu serve --unit 0=unit.sock --device edu@00:05.0=edu.sock --write-acpi dmar.bin
  iommu-emu serve --unit 0=unit.sock --device nvme:disk.img@01:00.0=nvme.sock \\
      --device malicious@02:00.0=malicious.sock --write-acpi dmar.bin --record run.iemu
  iommu-emu serve --acpi my-dmar.bin --unit 0=unit.sock --device nvme@01:00.0=nvme.sock --json

exit codes: 0 ended by a signal, 1 the recording could not be written, 2 bad input
"""


@dataclass(frozen=True)
class Served:
    """One --device or --unit: what, where, and its socket."""

    what: str
    place: str
    socket: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="devices and an IOMMU of ours in a guest of yours (vfio-user)",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--platform", metavar="NAME", help="a built-in platform (`acpi list`)")
    table.add_argument("--acpi", metavar="FILE", help="the DMAR table that the guest has")
    parser.add_argument(
        "--device", action="append", default=[], type=_device, metavar="KIND@ADDRESS=SOCKET"
    )
    parser.add_argument("--unit", action="append", default=[], type=_unit, metavar="NUMBER=SOCKET")
    parser.add_argument(
        "--preset", default="default", help="VT-d preset of the units (default: %(default)s)"
    )
    parser.add_argument("--write-acpi", metavar="FILE", help="save the DMAR table")
    parser.add_argument("--record", metavar="FILE", help="record the run for `iommu-emu replay`")
    parser.add_argument(
        "--record-seconds",
        type=_seconds,
        metavar="N",
        help="end the recording after N seconds (default: with the run)",
    )
    parser.add_argument(
        "--json", action="store_true", help="what is served, then each event, a line of JSON each"
    )
    parser.set_defaults(run=run)


def _device(text: str) -> Served:
    place, separator, socket = text.partition("=")
    kind, at, address = place.rpartition("@")
    if not separator or not at or not socket:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND@ADDRESS=SOCKET")
    if kind.partition(":")[0] not in DEVICES:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(DEVICES)}")
    try:
        segment, requester = parse_address(address)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Served(kind, format_requester(requester, segment), socket)


def _unit(text: str) -> Served:
    number, separator, socket = text.partition("=")
    if not separator or not number.isdecimal() or not socket:
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER=SOCKET")
    return Served("unit", str(int(number)), socket)


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 on")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit code."""
    name = arguments.acpi or arguments.platform or "the served devices"
    problem = _problem(arguments)
    if problem:
        print(f"iommu-emu serve: {problem}", file=sys.stderr)
        return 2
    try:
        with _signals() as wakeup, ExitStack() as stack:
            _serve(arguments, stack, wakeup)
    except BrokenPipeError:
        raise
    except RecordingError as error:
        print(f"iommu-emu serve: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, StateError) as error:
        return source.refuse("serve", name, error)
    return 0


def _problem(arguments: argparse.Namespace) -> str:
    """Return what is wrong with the arguments together; "" if nothing is."""
    if arguments.platform and not source.is_platform(arguments.platform):
        return (
            f"{arguments.platform}: no built-in platform of that name (see `iommu-emu acpi list`)"
        )
    if not arguments.device and not arguments.unit:
        return "nothing to serve: give --device or --unit"
    if arguments.record_seconds and not arguments.record:
        return "--record-seconds is of use with --record only"
    return ""


def _serve(arguments: argparse.Namespace, stack: ExitStack, wakeup: int) -> None:
    machine, table = _machine(arguments)
    report = _report_json if arguments.json else _report
    server = stack.enter_context(Server(machine, report))
    devices = [_serve_device(server, served, stack) for served in arguments.device]
    units = [_serve_unit(server, served) for served in arguments.unit]
    if arguments.record:
        limit = arguments.record_seconds and arguments.record_seconds * SECOND
        stack.enter_context(recording(machine, arguments.record, max_time=limit))
    if arguments.write_acpi:
        Path(arguments.write_acpi).write_bytes(table)
    _introduce(arguments, machine, devices, units)
    ended: list[int] = []
    server.watch(wakeup, lambda: ended.append(os.eventfd_read(wakeup)))
    while not ended:
        server.run_once()


@contextmanager
def _signals() -> Iterator[int]:
    """Yield a descriptor that SIGINT and SIGTERM make readable, so that they end a loop cleanly."""
    wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(number: int, frame: FrameType | None) -> None:
        os.eventfd_write(wakeup, 1)

    before = {number: signal.signal(number, wake) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wakeup
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wakeup)


# What is served.


def _machine(arguments: argparse.Namespace) -> tuple[Machine, bytes]:
    """Return a machine without RAM, and its table."""
    options: dict[str, Any] = {
        "memory": (),
        "transactions": 1024,
        "clock_source": monotonic_source(),
    }
    preset = arguments.preset
    if arguments.platform:
        table = acpi.build(acpi.platforms.load(arguments.platform).table)
        return Machine.from_platform(arguments.platform, preset=preset, **options), table
    if arguments.acpi:
        table = source.read(arguments.acpi)
        return Machine.from_acpi(table, preset=preset, **options), table
    machine = Machine(**options)
    table = _own_table(machine, [served.place for served in arguments.device])
    firmware.populate(machine, table, preset)
    return machine, table


def _own_table(machine: Machine, addresses: list[str]) -> bytes:
    """Attach the root ports of the addresses' buses; return a DMAR with just these devices."""
    requesters = []
    for address in addresses:
        segment, requester = parse_address(address)
        if segment:
            raise ValueError(f"{address}: QEMU's q35 has segment 0 only")
        requesters.append(requester)
    buses = sorted({requester >> 8 for requester in requesters} - {0})
    if buses != list(range(1, len(buses) + 1)):
        raise ValueError(
            "buses below root ports are 1, 2, 3, ... in this order, as the guest's firmware "
            f"numbers them: not {', '.join(map(str, buses))}"
        )
    if len(buses) > PAGES_FROM - FIRST_PORT:
        raise ValueError(f"at most {PAGES_FROM - FIRST_PORT} buses below root ports")
    for bus in buses:
        port = Bridge(f"root port of bus {bus}")
        port.set_bus_numbers(bus, bus)
        machine.attach(port, FIRST_PORT + bus - 1 << 3)
    scopes = []
    for requester in requesters:
        path = [(requester >> 3 & 31, requester & 7)]
        if requester >> 8:
            path.insert(0, (FIRST_PORT + (requester >> 8) - 1, 0))
        scopes.append(DeviceScope(path=path))
    unit = Drhd(base_address=UNIT_BASE, scopes=scopes)
    return acpi.build(Dmar(host_address_width=HOST_ADDRESS_WIDTH, structures=[unit]))


def _serve_device(server: Server, served: Served, stack: ExitStack) -> Endpoint:
    kind, _, file = served.what.partition(":")
    segment, requester = parse_address(served.place)
    fabric = server.machine.fabric
    if fabric.find_bus(segment, requester >> 8) is None:
        raise ValueError(f"{served.place}: no such bus; the tree is {fabric.describe()}")
    taken = [str(endpoint.address) for endpoint in server.endpoints]
    if fabric.find(segment, requester) is not None or served.place in taken:
        raise ValueError(f"{served.place} is taken")
    if not file:
        device = DEVICES[kind]()
    elif kind == "nvme":
        device = Nvme(medium=stack.enter_context(FileMedium(file)))
    else:
        raise ValueError(f"{served.what}: only nvme keeps anything in a file")
    return server.serve(device, served.socket, served.place)


def _serve_unit(server: Server, served: Served) -> tuple[Unit, Endpoint]:
    number, units = int(served.place), server.machine.units
    if number >= len(units):
        raise ValueError(f"unit must be in 0..{len(units) - 1}, not {number}")
    unit = units[number]
    if not isinstance(unit, VtdUnit):
        raise ValueError(f"unit {number} is no VT-d unit, and others cannot be served yet")
    return unit, server.serve_unit(unit, served.socket)


# What people and programs are told.


def _introduce(
    arguments: argparse.Namespace,
    machine: Machine,
    devices: list[Endpoint],
    units: list[tuple[Unit, Endpoint]],
) -> None:
    """Say what QEMU has to be told."""
    line = memory_arguments("1G")
    if arguments.write_acpi or arguments.acpi:
        line += ["-acpitable", f"file={arguments.write_acpi or arguments.acpi}"]
    ports: dict[str, str] = {}
    plugged = []
    for endpoint in devices:
        segment, requester = parse_address(str(endpoint.address))
        bus = machine.fabric.find_bus(segment, requester >> 8)
        place = f"{requester >> 3 & 31:#x}.{requester & 7:#x}"
        if bus is None or bus.parent is None:
            plugged.append(endpoint.qemu_device(bus="pcie.0", addr=place))
        else:
            ports[port_id(bus.parent)] = root_port(bus.parent)
            plugged.append(endpoint.qemu_device(bus=port_id(bus.parent), addr=place))
    monitor = []
    for unit, endpoint in units:
        devfn = PAGES_FROM - unit.number << 3 | 1
        place = f"{devfn >> 3:#x}.{devfn & 7:#x}"
        plugged.append(endpoint.qemu_device(bus="pcie.0", addr=place))
        monitor += register_page_commands(devfn, unit.base)
    for value in (*ports.values(), *plugged):
        line += ["-device", value]
    if monitor:
        line.append("-S")
        monitor.append("cont")
    if arguments.json:
        _print_json({"event": "serving", "qemu": line, "monitor": monitor})
        return
    lines = ["start QEMU with these arguments, and more of yours:", ""]
    for option, values in _pairs(line):
        lines.append("    " + " ".join([option, *map(shlex.quote, values)]) + " \\")
    if monitor:
        lines += ["", "it waits; tell its monitor where the unit's registers are, then let it run:"]
        lines += ["", *(f"    {command}" for command in monitor)]
    _print_line("\n".join([*lines, "", "serving; Ctrl-C ends it"]))


def _pairs(line: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option with its values."""
    option = line[0]
    values: list[str] = []
    for word in line[1:]:
        if word.startswith("-"):
            yield option, values
            option, values = word, []
        else:
            values.append(word)
    yield option, values


def _report(event: Event) -> None:
    details = ", ".join(
        f"{name} {value:#x}" if isinstance(value, int) else f"{name} {value}"
        for name, value in event.details.items()
    )
    words = [f"{event.time / 1e9:10.6f} s", event.kind, event.name, details]
    _print_line("  ".join(word for word in words if word))


def _report_json(event: Event) -> None:
    _print_json({"event": event.kind, "time": event.time, "name": event.name, **event.details})


def _print_json(value: dict[str, object]) -> None:
    _print_line(json.dumps(value))


def _print_line(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None
