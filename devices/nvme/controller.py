"""The NVMe controller: registers, doorbells, enabling and resets (NVM Express 1.4, 3 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.clock import MILLISECOND, Timer
from iommu_emu.devices.base import Bar, Device
from iommu_emu.devices.dma import Work
from iommu_emu.devices.nvme.admin import MAX_ENTRIES, AdminCommands
from iommu_emu.devices.nvme.engine import BURST, Engine
from iommu_emu.devices.nvme.features import Features
from iommu_emu.devices.nvme.identify import VERSION, Identity
from iommu_emu.devices.nvme.logs import Events, Logs
from iommu_emu.devices.nvme.medium import Medium, RamMedium
from iommu_emu.devices.nvme.nvm import NvmCommands
from iommu_emu.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iommu_emu.devices.nvme.specification import (
    CommandError,
    Feature,
    LogPage,
    Register,
    StatusCode,
)
from iommu_emu.devices.nvme.structures import SubmissionEntry

IO_QUEUES = 64  # of each kind
DEFAULT_SIZE = 64 << 20
_MSIX_TABLE = 0x2000  # behind the doorbells, in a page of its own
_READY_TIMEOUT = 15  # CAP.TO: 7.5 s
_LARGEST_PAGE = 4  # CAP.MPSMAX: 64 KiB
_CAPABILITIES = (
    MAX_ENTRIES - 1  # MQES
    | 1 << 16  # CQR: queues are contiguous
    | _READY_TIMEOUT << 24
    | 1 << 37  # CSS: the NVM command set
    | _LARGEST_PAGE << 52
)
_CC_WRITABLE = 0x00FF_FFF1
_ENABLE = 1
_IOSQES, _IOCQES = 6, 4  # log2 of the sizes of entries
_FATAL = 1 << 1  # CSTS.CFS
_SHUTTING_DOWN, _SHUT_DOWN = 1, 2  # CSTS.SHST
_WRONG_FLAGS = 0xC3  # fused operations and SGLs, which are not there
_KEEP_ALIVE_UNIT = 100 * MILLISECOND

__all__ = ["DEFAULT_SIZE", "IO_QUEUES", "Nvme", "Statistics"]


@dataclass
class Statistics:
    """What nobody else counts.

    Attributes:
        doorbell_errors: doorbell writes that were ignored.
        fatal_errors: times that the controller could not reach its queues, or not start.
        function_resets: by software, through the PCI Express capability.
    """

    doorbell_errors: int = 0
    fatal_errors: int = 0
    function_resets: int = 0


class Nvme(Device):
    """An NVMe controller of revision 1.4 with one namespace.

    It has 64 I/O queue pairs of up to 1024 entries, transfers of up to 512 KiB, MSI-X or INTx,
    memory pages of 4..64 KiB, and no SGLs, metadata, fused commands, controller memory buffer or
    namespace management. Aborts end Asynchronous Event Requests alone.

    Args:
        name: for people.
        medium: where its blocks are; None: 64 MiB of RAM. Closing it is its owner's business.
        serial: serial number, 1..20 printable ASCII characters. NQN and UUID follow from it, so
            two controllers in one machine must differ in it.

    Attributes:
        medium: where its blocks are.
        identity: what it tells of itself.
        logs: what happened so far.
        statistics: what happened besides.
        features: their values since the last reset.
        events: asynchronous events since the last reset.
        engine: what carries out commands since it was enabled.
        page_size: bytes of a memory page, as software chose.

    Raises:
        ValueError: if the serial number is not of that form.
    """

    device_id = 0x4E56
    class_code = 0x010802
    revision = 1
    subsystem = (0x1234, 0x4E56)
    bar_layout = (Bar(0, 1 << 14, wide=True),)
    msix_vectors = IO_QUEUES + 1
    msix_bar = 0
    msix_table = _MSIX_TABLE
    interrupt_pin = 1
    flr = True  # mandatory (2.5.3)

    engine: Engine

    def __init__(
        self, name: str = "nvme", *, medium: Medium | None = None, serial: str = "IOMMUEMU0001"
    ) -> None:
        super().__init__(name)
        self.medium = RamMedium(DEFAULT_SIZE) if medium is None else medium
        self.identity = Identity(self.medium, serial, (self.vendor_id, self.subsystem[0]))
        self.logs = Logs()
        self.statistics = Statistics()
        self._admin = AdminCommands(self)
        self._nvm = NvmCommands(self)
        self._ready = False
        self._keep_alive: Timer | None = None
        self._clear()

    # Life.

    def _clear(self) -> None:
        """Forget everything but logs and medium."""
        self._cc = self._aqa = self._asq = self._acq = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Do what a controller reset and a function reset share (7.3.2)."""
        if self._ready:
            self.engine.stop()
        self._ready = False
        self._stopping = False
        self._fatal = False
        self._shutdown = 0
        self._interrupt_mask = 0
        self.page_size = 4096
        self.features = Features(IO_QUEUES, max(self.msix_vectors, self.msi_vectors, 1))
        self.events = Events(self._complete_event)
        self._stop_keep_alive()

    def on_attach(self) -> None:
        """Begin a power cycle."""
        self.logs.power_cycles += 1
        self._clear()

    def on_reset(self) -> None:
        """Reset the function: registers too, and what is in flight is not waited for."""
        self._clear()

    def on_removed(self) -> None:
        """Lose power."""
        if self._ready and self._shutdown != _SHUT_DOWN:
            self.logs.unsafe_shutdowns += 1
        self._clear()

    def apply_bus_master(self, upstream: bool) -> None:
        """Follow the bus-master bit; what was held back meanwhile is sent."""
        super().apply_bus_master(upstream)
        if self._ready and self.dma.blocked is None:
            self.engine.dma.unblocked()

    def function_level_reset(self) -> None:
        """Reset the function because software asks this function alone for it."""
        self.statistics.function_resets += 1
        super().function_level_reset()

    # Registers.

    @property
    def _csts(self) -> int:
        fatal = _FATAL if self._fatal else 0
        return self._ready | fatal | self._shutdown << 2

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read registers, any part of them; doorbells read 0."""
        registers = (
            (Register.CAP, _CAPABILITIES),
            (Register.VS, VERSION),
            (Register.INTMS, self._interrupt_mask),
            (Register.INTMC, self._interrupt_mask),
            (Register.CC, self._cc),
            (Register.CSTS, self._csts),
            (Register.AQA, self._aqa),
            (Register.ASQ, self._asq),
            (Register.ACQ, self._acq),
        )
        file = sum(value << 8 * register for register, value in registers)
        return file >> 8 * offset & ((1 << 8 * size) - 1)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register or ring a doorbell: whole DWORDs, others are dropped (3.1)."""
        if size == 8:
            self.bar_write(bar, offset, 4, value & 0xFFFF_FFFF)
            self.bar_write(bar, offset + 4, 4, value >> 32)
        elif size != 4 or offset % 4:
            return
        elif offset >= Register.DOORBELLS:
            if self._ready and not (self._fatal or self._stopping or self._shutdown):
                self._ring(offset - Register.DOORBELLS >> 2, value)
        elif offset == Register.CC:
            self._write_cc(value & _CC_WRITABLE)
        elif offset == Register.INTMS:
            self._interrupt_mask |= value
            self.update_pin()
        elif offset == Register.INTMC:
            self._interrupt_mask &= ~value
            self.update_pin()
        elif offset == Register.AQA:
            self._aqa = value & 0x0FFF_0FFF
        elif offset == Register.ASQ:
            self._asq = self._asq & ~0xFFFF_FFFF | value & ~0xFFF
        elif offset == Register.ASQ + 4:
            self._asq = self._asq & 0xFFFF_FFFF | value << 32
        elif offset == Register.ACQ:
            self._acq = self._acq & ~0xFFFF_FFFF | value & ~0xFFF
        elif offset == Register.ACQ + 4:
            self._acq = self._acq & 0xFFFF_FFFF | value << 32

    def _write_cc(self, value: int) -> None:
        before, self._cc = self._cc, value
        if value & _ENABLE and not before & _ENABLE:
            if not self._stopping:
                self._enable()
        elif before & _ENABLE and not value & _ENABLE:
            self._disable()
        notify = value >> 14 & 3
        if notify in (1, 2) and notify != before >> 14 & 3 and not self._shutdown:
            self._shut_down()

    def _enable(self) -> None:
        """Become ready, or fatal if the configuration is not possible (7.6.1)."""
        command_set, page_shift = self._cc >> 4 & 7, self._cc >> 7 & 0xF
        arbitration = self._cc >> 11 & 7
        submission_size, completion_size = (self._aqa & 0xFFF) + 1, (self._aqa >> 16) + 1
        page_size = 4096 << page_shift
        possible = (
            not command_set
            and not arbitration
            and page_shift <= _LARGEST_PAGE
            and submission_size > 1
            and completion_size > 1
            and not (self._asq | self._acq) & (page_size - 1)
        )
        if not possible:
            self._fail()
            return
        self.page_size = page_size
        self.engine = engine = Engine(self, self._execute, self._failed, self._notify, self._fail)
        # The Admin Completion Queue has vector 0, and its interrupts are always on (3.1.10).
        completions = CompletionQueue(0, self._acq, completion_size, 0, True)
        engine.completion[0] = completions
        engine.submission[0] = SubmissionQueue(0, self._asq, submission_size, completions)
        self._shutdown = 0  # one that was asked for before there was anything to shut down
        self._ready = True

    def _disable(self) -> None:
        """Reset the controller; it is ready until nothing of it is in flight (3.1.6)."""
        if self._ready and not self._stopping:
            self._stopping = True
            self.update_pin()
            self.engine.stop(self._disabled)
        elif not self._ready:
            self._begin_anew()

    def _disabled(self) -> None:
        self._begin_anew()
        if self._cc & _ENABLE:  # software did not wait for that
            self._enable()

    def _shut_down(self) -> None:
        """Complete what runs, then write the cache back (7.6.2)."""
        self._shutdown = _SHUTTING_DOWN
        if self._ready and not (self._stopping or self._fatal):
            self.engine.quiesce(self._shut_down_complete)
        else:
            self._shut_down_complete()

    def _shut_down_complete(self) -> None:
        try:
            self.medium.flush()
        except OSError:
            self.logs.media_errors += 1
        self._shutdown = _SHUT_DOWN

    def _fail(self) -> None:
        self._fatal = True
        self.statistics.fatal_errors += 1
        if self._shutdown == _SHUTTING_DOWN:  # nothing is left to wait for
            self._shut_down_complete()

    # Doorbells.

    def _ring(self, number: int, value: int) -> None:
        """Take a doorbell write: submission queue tails are even, completion queue heads odd."""
        qid, is_head = number >> 1, number & 1
        known = qid in (self.engine.completion if is_head else self.engine.submission)
        if not known:
            self._wrong_doorbell(Events.INVALID_DOORBELL)
        elif not (self._consumed(qid, value) if is_head else self._submitted(qid, value)):
            self._wrong_doorbell(Events.INVALID_DOORBELL_VALUE)

    def _submitted(self, qid: int, tail: int) -> bool:
        """Take a new tail; False if it is outside the queue, or more than there is room for."""
        queue = self.engine.submission[qid]
        if tail >= queue.size:
            return False
        used = (queue.tail - queue.head) % queue.size
        if used + (tail - queue.tail) % queue.size >= queue.size:
            return False
        queue.tail = tail
        self.engine.offer(queue)
        self.engine.arbitrate()
        return True

    def _consumed(self, qid: int, head: int) -> bool:
        """Take a new head; False if it is outside the queue, or beyond what was posted."""
        queue = self.engine.completion[qid]
        posted = (queue.tail - queue.head) % queue.size
        if head >= queue.size or (head - queue.head) % queue.size > posted:
            return False
        queue.head = head
        self.update_pin()
        self.engine.freed(queue)
        return True

    def _wrong_doorbell(self, information: int) -> None:
        self.statistics.doorbell_errors += 1
        self.logs.doorbell_failed()
        self.events.happened(Events.ERROR, information, LogPage.ERRORS)

    # Commands.

    @property
    def submission_entries_fit(self) -> bool:
        """Whether CC.IOSQES is the size of our entries."""
        return self._cc >> 16 & 0xF == _IOSQES

    @property
    def completion_entries_fit(self) -> bool:
        """Whether CC.IOCQES is the size of our entries."""
        return self._cc >> 20 & 0xF == _IOCQES

    @property
    def vectors(self) -> int:
        """Interrupt vectors that software may use now (5.3)."""
        for messages in (self.msix, self.msi):
            # Behind an interrupt sink it is the client who knows what is enabled.
            if messages is not None and (messages.enabled or self.interrupt_sink is not None):
                return messages.vectors
        return 1

    def _execute(self, command: SubmissionEntry, queue: SubmissionQueue) -> int | Work[int] | None:
        if command.flags & _WRONG_FLAGS:
            raise CommandError(StatusCode.INVALID_FIELD)
        return self._nvm.execute(command) if queue.qid else self._admin.execute(command)

    def _failed(self, queue: SubmissionQueue, command: SubmissionEntry, status: int) -> int:
        return self.logs.command_failed(queue.qid, command, status)

    def _complete_event(self, cid: int, result: int) -> None:
        self.engine.post(self.engine.submission[0], cid, result)

    def features_changed(self) -> None:
        """Follow features that something works by."""
        burst = self.features.value(Feature.ARBITRATION) & 7
        self.engine.burst = BURST if burst == 7 else min(1 << burst, BURST)
        self.keep_alive()

    def keep_alive(self) -> None:
        """Start the Keep Alive Timer anew, if it is on (7.12)."""
        self._stop_keep_alive()
        timeout = self.features.value(Feature.KEEP_ALIVE_TIMER) * MILLISECOND
        if timeout:
            # Rounded up to the granularity (5.21.1.15).
            timeout = -(-timeout // _KEEP_ALIVE_UNIT) * _KEEP_ALIVE_UNIT
            self._keep_alive = self.call_later(timeout, self._keep_alive_expired)

    def _stop_keep_alive(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None

    def _keep_alive_expired(self) -> None:
        self._keep_alive = None
        self.engine.stop()
        self._fail()

    # Interrupts.

    def _notify(self, queue: CompletionQueue) -> None:
        if not self.interrupt(queue.vector):
            self.update_pin()

    def update_pin(self) -> None:
        """Let INTx follow the completion queues and the mask, unless there are messages (7.5.1)."""
        level = (
            not self.messages_enabled
            and self._ready
            and not self._stopping
            and not self._interrupt_mask & 1
            and any(
                queue.interrupts and queue.head != queue.tail
                for queue in self.engine.completion.values()
            )
        )
        if level != self.interrupt_status:
            self.set_intx(level)
