"""QEMU's side: one process, reset between programs, that replays what our side did."""

from __future__ import annotations

import re
from collections.abc import Sequence

from iommu_emu.differential import arena
from iommu_emu.differential.accesses import (
    Access,
    BarRead,
    BarWrite,
    ClockStep,
    ConfigWrite,
    MemoryWrite,
    MessageSetup,
    UnitRead,
    UnitWrite,
)
from iommu_emu.differential.configurations import Configuration
from iommu_emu.differential.observation import Observation, Step
from iommu_emu.differential.software import prepare
from iommu_emu.differential.topology import Place
from iommu_emu.qtest import client_pci as pci
from iommu_emu.qtest.client import Batch, Later
from iommu_emu.qtest.client_process import QemuDied, QemuProcess

# Without what no program looks at: each function costs time whenever translation is switched.
MACHINE = f"q35,max-ram-below-4g={arena.RAM_BELOW_4G},sata=off,smbus=off,hpet=off,i8042=off"
MEMORY = arena.RAM_BELOW_4G + arena.RAM_ABOVE_4G
MSI_CAPABILITY = 0x05
CAPABILITIES = 0x34
_REQUESTS = re.compile(r"^IRR\s+(.*)$", re.MULTILINE)
_ASSERTION = re.compile(r"Assertion `(.*)' failed|ERROR:.*assertion failed.*: (.*)")

__all__ = ["Theirs"]


class Theirs:
    """Replays programs on a QEMU; use it as a context manager.

    Attributes:
        process: the QEMU that runs now.
        starts: how many it took so far.

    Args:
        configuration: of the unit.
        command: how to start QEMU, such as `find_qemu().argv`.

    Raises:
        QemuDied: if QEMU does not come up.
    """

    def __init__(self, configuration: Configuration, command: Sequence[str]) -> None:
        self.configuration = configuration
        self._command = command
        self._image = arena.image()
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.process = QemuProcess(
            self._command,
            [
                *("-machine", MACHINE, "-m", f"{MEMORY >> 20}M"),
                *("-device", self.configuration.device),
                *self.configuration.topology.qemu_arguments(),
            ],
        )
        self.starts += 1
        try:
            edus = self.configuration.topology.edus
            with self.process.noticing():
                self._messages = {name: self._find_msi(name) for name in edus}
        except BaseException:
            self.process.close()
            raise

    def close(self) -> None:
        """End QEMU."""
        self.process.close()

    def __enter__(self) -> Theirs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def replay(self, accesses: Sequence[Sequence[Access]], ending: Sequence[Access]) -> Observation:
        """Replay the accesses of a program on a machine as after a reset.

        A QEMU that ends in the middle is part of what is seen, if the next one does so too:
        something else may have ended the first.
        """
        seen = self._replay(accesses, ending)
        return self._replay(accesses, ending) if seen.died else seen

    def _replay(
        self, accesses: Sequence[Sequence[Access]], ending: Sequence[Access]
    ) -> Observation:
        replay = _Replay(self.process.qtest.batch(), self.configuration, self._messages)
        seen: list[tuple[list[Later[int]], list[Later[bytes]]]] = []
        try:
            self._forget()
            self.process.reset()
            self._set_up(replay)
            for operation in accesses:
                for access in operation:
                    replay.do(access)
                seen.append((replay.take_results(), replay.dump()))
            for access in ending:
                replay.do(access)
            memory = [replay.batch.read_block(base, size) for base, size in arena.REGIONS]
            with self.process.noticing():
                replay.batch.run()
            vectors = self._vectors()
        except QemuDied as death:
            self.process.close()
            self._start()
            return Observation(_complete(seen), died=_last_words(death))
        return Observation(_complete(seen), tuple(piece.value for piece in memory), vectors)

    def _forget(self) -> None:
        """Undo what a reset leaves."""
        replay = _Replay(self.process.qtest.batch(), self.configuration, {})
        for access in self.configuration.adapter.forgotten:
            replay.do(access)
        with self.process.noticing():
            replay.batch.run()

    def _set_up(self, replay: _Replay) -> None:
        """Do what firmware would, clear the arenas, and tell the devices what ours were told."""
        for place in self.configuration.topology.places:
            replay.place(place)
        for base, size in arena.RAM:
            replay.batch.fill(base, size)
        for (base, _), piece in zip(arena.REGIONS, self._image, strict=True):
            replay.fill(base, piece)
        prepare(replay)

    def _find_msi(self, name: str) -> int:
        """Return the offset of a device's MSI capability."""
        batch = self.process.qtest.batch()
        replay = _Replay(batch, self.configuration, {})
        for place in self.configuration.topology.places:
            replay.place(place)
        batch.run()
        function = self.configuration.topology.devices[name].requester
        at = self._config(function, CAPABILITIES)
        while at and self._config(function, at) != MSI_CAPABILITY:
            at = self._config(function, at + 1)
        return at

    def _config(self, function: int, offset: int) -> int:
        batch = self.process.qtest.batch()
        byte = pci.config_read(batch, function, offset, 1)
        batch.run()
        return byte.value

    def _vectors(self) -> frozenset[int]:
        requests = _REQUESTS.search(self.process.monitor("info lapic"))
        words = requests[1].replace("(level)", "").split() if requests else []
        return frozenset(int(word) for word in words if word.isdigit())


class _Replay:
    """Turns accesses into commands of a batch."""

    def __init__(
        self, batch: Batch, configuration: Configuration, messages: dict[str, int]
    ) -> None:
        self.batch = batch
        self.topology = topology = configuration.topology
        self._window = configuration.adapter.window
        self._ranges = configuration.adapter.ranges
        self._messages = messages
        self._results: list[Later[int]] = []
        self._numbers = {name: place.secondary for name, place in topology.bridges.items()}

    def do(self, access: Access) -> None:
        batch = self.batch
        match access:
            case MemoryWrite(address, data):
                batch.write_block(address, data)
            case UnitWrite(offset, size, value):
                batch.write(self._window + offset, size, value)
            case UnitRead(offset, size):
                self._results.append(batch.read(self._window + offset, size))
            case BarWrite(device, offset, size, value):
                batch.write(self.topology.devices[device].bar + offset, size, value)
            case BarRead(device, offset, size):
                self._results.append(batch.read(self.topology.devices[device].bar + offset, size))
            case ConfigWrite(name, offset, size, value):
                pci.config_write(batch, self._function(name), offset, size, value)
                if offset == pci.BUS_NUMBERS + 1:
                    self._numbers[name] = value
            case MessageSetup(device, address, data):
                function, at = self._function(device), self._messages[device]
                pci.config_write(batch, function, at + 4, 4, address & 0xFFFFFFFF)
                pci.config_write(batch, function, at + 8, 4, address >> 32)
                pci.config_write(batch, function, at + 12, 2, data & 0xFFFF)
                pci.config_write(batch, function, at + 2, 2, 1)
            case ClockStep(duration):
                batch.clock_step(duration)

    def peek(self, offset: int, size: int) -> int:
        raise TypeError("QEMU's side replays; it does not decide")

    def take_results(self) -> list[Later[int]]:
        results, self._results = self._results, []
        return results

    def dump(self) -> list[Later[bytes]]:
        return [self.batch.read_block(self._window + base, size) for base, size in self._ranges]

    def place(self, place: Place) -> None:
        function = self._function(place.name)
        if place.secondary:
            pci.number_bridge(self.batch, function, place.secondary, place.subordinate)
            first, last = place.window
            window = first >> 16 | last & 0xFFF00000
            pci.config_write(self.batch, function, pci.MEMORY_WINDOW, 4, window)
        if place.bar:
            pci.place_bar(self.batch, function, 0, place.bar)
        pci.turn_on(self.batch, function)

    def fill(self, base: int, piece: bytes) -> None:
        """Write a cleared region, page by page where a page is one byte repeated."""
        for at in range(0, len(piece), arena.PAGE):
            page = piece[at : at + arena.PAGE]
            if page == page[:1] * arena.PAGE:
                if page[0]:
                    self.batch.fill(base + at, arena.PAGE, page[0])
            else:
                self.batch.write_block(base + at, page)

    def _function(self, name: str) -> int:
        place = self.topology.bridges.get(name) or self.topology.devices[name]
        bus = 0 if place.under is None else self._numbers[place.under]
        return bus << 8 | place.devfn


def _complete(seen: list[tuple[list[Later[int]], list[Later[bytes]]]]) -> list[Step]:
    """Return the steps whose replies are all there."""
    steps = []
    for results, dumps in seen:
        if not all(each.ready for each in results) or not all(each.ready for each in dumps):
            break
        steps.append(
            Step([later.value for later in results], b"".join(later.value for later in dumps))
        )
    return steps


def _last_words(death: QemuDied) -> str:
    """Return what an aborted QEMU asserted, or how it ended."""
    found = _ASSERTION.search(death.stderr)
    return f"{death.cause}: {found[1] or found[2]}" if found else str(death)
