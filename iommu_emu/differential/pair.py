"""Both sides of one configuration: run a program on each, compare, shrink what differs."""

from __future__ import annotations

from collections.abc import Sequence

from iommu_emu.differential.compare import Verdict, compare
from iommu_emu.differential.configurations import configuration
from iommu_emu.differential.entries import Entry, load
from iommu_emu.differential.ours import Ours, Recording
from iommu_emu.differential.program import Operation
from iommu_emu.differential.shrink import shrink
from iommu_emu.differential.theirs import Theirs

__all__ = ["Pair"]


class Pair:
    """A machine of ours and a QEMU of the same configuration; a context manager.

    Attributes:
        adapter: of the kind of unit.
        recording: what our side did and saw in the last run.

    Args:
        name: of the configuration.
        command: how to start QEMU, such as `find_qemu().argv`.
        entries: the known differences; those of the package by default.

    Raises:
        ValueError: if there is no such configuration.
        QemuDied: if QEMU does not come up.
    """

    def __init__(
        self, name: str, command: Sequence[str], entries: Sequence[Entry] | None = None
    ) -> None:
        chosen = configuration(name)
        self.adapter = chosen.adapter
        self.name = name
        self.entries = load() if entries is None else tuple(entries)
        self.ours = Ours(chosen)
        self.theirs = Theirs(chosen, command)
        self.recording = Recording()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU."""
        self.theirs.close()

    def run(self, operations: Sequence[Operation], *, exact: bool = False) -> Verdict:
        """Run a program on both sides and compare.

        Args:
            operations: of the program.
            exact: it invalidates what it owes (VT-d 9.4) before every use, if not everything.

        Raises:
            OperationError: if an operation cannot be done.
        """
        self.recording = self.ours.run(operations)
        seen = self.theirs.replay(self.recording.accesses, self.recording.ending)
        ours = self.recording.observation
        return compare(operations, ours, seen, self.entries, self.adapter, exact=exact)

    def shrink(self, operations: Sequence[Operation]) -> tuple[Operation, ...]:
        """Return a small program with the same unexplained difference."""
        signature = self.run(operations).signature

        def shows(candidate: Sequence[Operation]) -> bool:
            return self.run(candidate).signature == signature

        return shrink(operations, shows)
