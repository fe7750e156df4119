"""Log pages (5.14.1), and the asynchronous events that point to them (5.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from iommu_emu.clock import SECOND
from iommu_emu.devices.nvme.features import Features
from iommu_emu.devices.nvme.identify import ERROR_ENTRIES, EVENT_REQUESTS, FIRMWARE
from iommu_emu.devices.nvme.specification import (
    BROADCAST,
    MORE,
    AdminOpcode,
    CommandError,
    Feature,
    LogPage,
    NvmOpcode,
    StatusCode,
)
from iommu_emu.devices.nvme.structures import (
    CommandEffects,
    ErrorEntry,
    FirmwareSlots,
    Health,
    SubmissionEntry,
)

TEMPERATURE = 310  # kelvins, always
_HOUR = 3600 * SECOND
_WARNING_TEMPERATURE = 1 << 1  # of the critical warnings
_UNIT = 512_000  # bytes of a data unit
_SUPPORTED = 1  # of a command's effects (5.14.1.5)
_CHANGES_CONTENT = 1 << 1
_NOWHERE = 0xFFFF  # the parameter's location is not known

__all__ = ["TEMPERATURE", "Events", "Logs", "too_warm", "wants_temperature"]


class Events:
    """Asynchronous events: reported when software has a request outstanding (5.2).

    Args:
        complete: completes an Asynchronous Event Request: command ID, dword 0.
    """

    ERROR = 0
    HEALTH = 1
    INVALID_DOORBELL = 0
    INVALID_DOORBELL_VALUE = 1
    TEMPERATURE_THRESHOLD = 1

    def __init__(self, complete: Callable[[int, int], None]) -> None:
        self._complete = complete
        self._requests: deque[int] = deque()  # command IDs
        self._waiting: dict[tuple[int, int], LogPage] = {}  # (type, information): log page
        self._masked: dict[int, LogPage] = {}  # type: the log page that clears it

    def request(self, cid: int) -> None:
        """Keep an Asynchronous Event Request until there is an event.

        Raises:
            CommandError: Asynchronous Event Request Limit Exceeded.
        """
        if len(self._requests) == EVENT_REQUESTS:
            raise CommandError(StatusCode.ASYNC_EVENT_LIMIT_EXCEEDED)
        self._requests.append(cid)
        self._report()

    def withdraw(self, cid: int) -> bool:
        """Forget a request; False if there is none with this command ID."""
        if cid not in self._requests:
            return False
        self._requests.remove(cid)
        return True

    def happened(self, kind: int, information: int, page: LogPage) -> None:
        """Report an event, or keep it; one that waits already is not kept twice."""
        self._waiting.setdefault((kind, information), page)
        self._report()

    def cleared(self, page: LogPage) -> None:
        """Unmask the events of a log page that has been read."""
        self._masked = {kind: masking for kind, masking in self._masked.items() if masking != page}
        self._report()

    def _report(self) -> None:
        for (kind, information), page in list(self._waiting.items()):
            if not self._requests:
                return
            if kind not in self._masked:
                del self._waiting[kind, information]
                self._masked[kind] = page
                self._complete(self._requests.popleft(), kind | information << 8 | page << 16)


class Logs:
    """What happened so far; only a new controller begins anew.

    Attributes:
        bytes_read: by the host.
        bytes_written: by the host.
        reads: commands.
        writes: commands.
        media_errors: commands that the medium failed.
        errors: commands and doorbell writes that ended with an error.
        power_cycles: times that it was put on a bus.
        unsafe_shutdowns: times that it was removed without being shut down.
    """

    def __init__(self) -> None:
        self.bytes_read = self.bytes_written = 0
        self.reads = self.writes = 0
        self.media_errors = self.errors = 0
        self.power_cycles = self.unsafe_shutdowns = 0
        self._entries: deque[bytes] = deque(maxlen=ERROR_ENTRIES)

    def command_failed(self, qid: int, command: SubmissionEntry, status: int) -> int:
        """Log a command's error; return its status with the bit that says so."""
        status |= MORE
        lba = command.cdw10 | command.cdw11 << 32 if qid else 0
        self._error(sqid=qid, cid=command.cid, status=status << 1, lba=lba, nsid=command.nsid)
        return status

    def doorbell_failed(self) -> None:
        """Log an error that belongs to no command."""
        self._error(sqid=0xFFFF, cid=0xFFFF)

    def _error(self, **fields: int) -> None:
        self.errors += 1
        self._entries.appendleft(
            ErrorEntry.build({"count": self.errors, "location": _NOWHERE, **fields})
        )

    def page(self, page: int, nsid: int, features: Features, now: int) -> bytes:
        """Return a log page.

        Args:
            page: log page identifier.
            nsid: namespace that it is asked for.
            features: the temperature threshold is among them.
            now: ns.

        Raises:
            CommandError: Invalid Log Page, or Invalid Field in Command.
        """
        if page == LogPage.ERRORS:
            return b"".join(self._entries).ljust(ErrorEntry.sizeof() * ERROR_ENTRIES, b"\0")
        if page == LogPage.HEALTH:
            # LPA bit 0 is 0: it is not kept by namespace (5.14.1.2).
            if nsid not in (0, BROADCAST):
                raise CommandError(StatusCode.INVALID_FIELD)
            return self._health(features, now)
        if page == LogPage.FIRMWARE_SLOTS:
            data: bytes = FirmwareSlots.build({"afi": 1, "frs1": FIRMWARE.encode().ljust(8)})
            return data
        if page == LogPage.COMMAND_EFFECTS:
            return _effects()
        raise CommandError(StatusCode.INVALID_LOG_PAGE)

    def _health(self, features: Features, now: int) -> bytes:
        data: bytes = Health.build(
            {
                "critical_warning": _WARNING_TEMPERATURE if too_warm(features) else 0,
                "temperature": TEMPERATURE,
                "available_spare": 100,
                "available_spare_threshold": 10,
                "data_units_read": -(-self.bytes_read // _UNIT),
                "data_units_written": -(-self.bytes_written // _UNIT),
                "host_reads": self.reads,
                "host_writes": self.writes,
                "power_cycles": self.power_cycles,
                "power_on_hours": now // _HOUR,
                "unsafe_shutdowns": self.unsafe_shutdowns,
                "media_errors": self.media_errors,
                "error_entries": self.errors,
            }
        )
        return data


def too_warm(features: Features) -> bool:
    """Whether the temperature is beyond a threshold, so that software wants to know."""
    over, under = features.temperature_thresholds
    return not under < TEMPERATURE < over


def wants_temperature(features: Features) -> bool:
    """Whether software has asked for events of the temperature."""
    return bool(features.value(Feature.ASYNC_EVENTS) & _WARNING_TEMPERATURE)


def _effects() -> bytes:
    admin, io = [0] * 256, [0] * 256
    for opcode in AdminOpcode:
        admin[opcode] = _SUPPORTED
    changing = (NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT)
    for command in NvmOpcode:
        io[command] = _SUPPORTED | (_CHANGES_CONTENT if command in changing else 0)
    data: bytes = CommandEffects.build({"admin": admin, "io": io})
    return data
