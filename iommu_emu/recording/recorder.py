"""Write what happens to a machine into a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iommu_emu.core import Journal, JournalEnd, require_range
from iommu_emu.recording.format import CHUNK, Note, RecordingError, Writer, check_notes

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["Recorder", "recording"]

_ENDS = {
    JournalEnd.OPEN: "closed",
    JournalEnd.LIMIT: "limit",
    JournalEnd.TIME: "time",
    JournalEnd.FULL: "full",
}


class Recorder:
    """Records a machine until `close`.

    The machine may have memory, units and devices already, but no unit may have been used: the
    recording has to begin before the first access to a register. Up to 4 million records (192
    MiB) wait in memory for `Machine.service`, which passes them on to the file.

    Args:
        machine: the machine.
        path: the file; written over if there is one.
        notes: what shall be known of the run, text or numbers by name: versions of kernel and
            QEMU, for example.
        max_records: where the recording ends by itself, in front of the call that would pass it;
            None: nowhere.
        max_time: virtual time in ns after which it ends by itself; None: never.

    Attributes:
        path: the file.

    Raises:
        StateError: if the machine has been used, or is being recorded.
        ValueError: if a limit is not positive, or a note neither text nor a number.
        OSError: if the file cannot be created.
        RecordingError: from `close`, if the file is not what was asked for: it could not be
            written, or records were not passed on in time.
    """

    def __init__(
        self,
        machine: Machine,
        path: str | Path,
        *,
        notes: Mapping[str, Note] | None = None,
        max_records: int | None = None,
        max_time: int | None = None,
    ) -> None:
        from iommu_emu import __version__

        notes = notes or {}
        check_notes(notes)
        until = None
        if max_time is not None:
            require_range("max_time", max_time, (1 << 63) - 1, 1)
            until = machine.clock.now + max_time
        self.path = Path(path)
        self._core = machine.core
        self._error: OSError | None = None
        self._journal: Journal | None = Journal(machine.core, max_records, until)
        try:
            self._file = self.path.open("wb")
        except OSError:
            self._journal.stop()
            raise
        self._writer = Writer(self._file, __version__, notes)
        self._core.before_messages = self._pass_on

    @property
    def records(self) -> int:
        """Records so far."""
        waiting = 0 if self._journal is None else len(self._journal)
        return self._writer.records + waiting

    def _pass_on(self) -> None:
        """Write what waits, if it is worth a block; an error is kept for `close`."""
        if self._journal is not None and len(self._journal) >= CHUNK:
            self._write(self._journal)

    def _write(self, journal: Journal) -> None:
        records = journal.take()
        if self._error is None:
            try:
                self._writer.write(records)
            except OSError as error:
                self._error = error

    def close(self) -> None:
        """End the recording; without effect when it is closed already.

        Raises:
            RecordingError: see the class.
        """
        if self._journal is None:
            return
        journal, self._journal = self._journal, None
        self._core.before_messages = None
        self._write(journal)
        journal.stop()
        try:
            if self._error is None:
                self._writer.finish(_ENDS[journal.end])
            self._file.close()  # writes what is still buffered, and is closed even if it cannot
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise RecordingError(f"{self.path}: cannot be written: {self._error}") from self._error
        if journal.end is JournalEnd.FULL:
            raise RecordingError(
                f"{self.path}: the recording ended after {self._writer.records} records, since "
                "too many waited to be written: call Machine.service() more often"
            )


@contextmanager
def recording(machine: Machine, path: str | Path, **options: Any) -> Iterator[Recorder]:
    """Record a machine inside a `with` block; arguments and errors are those of `Recorder`."""
    recorder = Recorder(machine, path, **options)
    try:
        yield recorder
    finally:
        recorder.close()
