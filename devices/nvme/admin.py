"""The admin command set (5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iommu_emu.devices.dma import Work
from iommu_emu.devices.nvme.identify import MAX_TRANSFER_SHIFT
from iommu_emu.devices.nvme.logs import Events, too_warm, wants_temperature
from iommu_emu.devices.nvme.prp import scatter
from iommu_emu.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iommu_emu.devices.nvme.specification import (
    BROADCAST,
    AdminOpcode,
    CommandError,
    Feature,
    LogPage,
    StatusCode,
)
from iommu_emu.devices.nvme.structures import SubmissionEntry

if TYPE_CHECKING:
    from iommu_emu.devices.nvme.controller import Nvme

MAX_ENTRIES = 1024  # of an I/O queue; CAP.MQES
MAX_TRANSFER = 4096 << MAX_TRANSFER_SHIFT
_PHYSICALLY_CONTIGUOUS = 1
_INTERRUPTS_ENABLED = 1 << 1
_RETAIN_EVENT = 1 << 15
_SAVE = 1 << 31
_NOT_ABORTED = 1

__all__ = ["MAX_ENTRIES", "MAX_TRANSFER", "AdminCommands"]


class AdminCommands:
    """Carries out admin commands.

    Args:
        controller: whose queues, features and logs they work on.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._handlers: dict[int, Callable[[SubmissionEntry], int | Work[int] | None]] = {
            AdminOpcode.DELETE_SQ: self._delete_submission_queue,
            AdminOpcode.CREATE_SQ: self._create_submission_queue,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.DELETE_CQ: self._delete_completion_queue,
            AdminOpcode.CREATE_CQ: self._create_completion_queue,
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.SET_FEATURES: self._set_features,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.ASYNC_EVENT: self._async_event,
            AdminOpcode.KEEP_ALIVE: self._keep_alive,
        }

    def execute(self, command: SubmissionEntry) -> int | Work[int] | None:
        """Carry out a command: dword 0 of its completion; None: it completes later.

        Raises:
            CommandError: if it ends with an error.
        """
        handler = self._handlers.get(command.opcode)
        if handler is None:
            raise CommandError(StatusCode.INVALID_OPCODE)
        return handler(command)

    def _send(self, command: SubmissionEntry, data: bytes) -> Work[int]:
        controller = self._controller
        yield from scatter(
            controller.engine.dma, controller.page_size, command.prp1, command.prp2, data
        )
        return 0

    def _identify(self, command: SubmissionEntry) -> Work[int]:
        answer = self._controller.identity.answer(
            command.cdw10 & 0xFF, command.nsid, command.cdw11 >> 24
        )
        return self._send(command, answer)

    def _get_log_page(self, command: SubmissionEntry) -> Work[int]:
        controller = self._controller
        number = command.cdw10 & 0xFF
        length = 4 * ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1)
        offset = command.cdw12 | command.cdw13 << 32
        page = controller.logs.page(number, command.nsid, controller.features, controller.clock.now)
        if length > MAX_TRANSFER or offset % 4 or offset >= len(page):
            raise CommandError(StatusCode.INVALID_FIELD)
        # What is asked for beyond the page's end is not transferred.
        yield from self._send(command, page[offset : offset + length])
        if not command.cdw10 & _RETAIN_EVENT:
            controller.events.cleared(LogPage(number))
        return 0

    # Features.

    def _feature(self, command: SubmissionEntry) -> Feature:
        try:
            return Feature(command.cdw10 & 0xFF)
        except ValueError:
            raise CommandError(StatusCode.INVALID_FIELD) from None

    def _get_features(self, command: SubmissionEntry) -> int:
        feature = self._feature(command)
        return self._controller.features.get(feature, command.cdw10 >> 8 & 7, command.cdw11)

    def _set_features(self, command: SubmissionEntry) -> int:
        controller = self._controller
        feature = self._feature(command)
        if command.cdw10 & _SAVE:
            raise CommandError(StatusCode.FEATURE_NOT_SAVEABLE)
        if command.nsid not in (0, BROADCAST):
            raise CommandError(StatusCode.FEATURE_NOT_OF_NAMESPACE)
        queues_exist = len(controller.engine.completion) > 1
        result = controller.features.set(feature, command.cdw11, queues_exist=queues_exist)
        controller.features_changed()
        features = controller.features
        if too_warm(features) and wants_temperature(features):
            controller.events.happened(Events.HEALTH, Events.TEMPERATURE_THRESHOLD, LogPage.HEALTH)
        return result

    # Queues.

    def _check_new_queue(self, command: SubmissionEntry, taken: bool) -> tuple[int, int]:
        """Return ID and size of a queue to create."""
        qid, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        if taken or not 1 <= qid <= self._controller.features.queues:
            raise CommandError(StatusCode.INVALID_QUEUE_IDENTIFIER)
        if not 2 <= size <= MAX_ENTRIES:
            raise CommandError(StatusCode.INVALID_QUEUE_SIZE)
        if not command.cdw11 & _PHYSICALLY_CONTIGUOUS:  # CAP.CQR
            raise CommandError(StatusCode.INVALID_FIELD)
        if command.prp1 & (self._controller.page_size - 1):
            raise CommandError(StatusCode.PRP_OFFSET_INVALID)
        return qid, size

    def _create_completion_queue(self, command: SubmissionEntry) -> int:
        controller, queues = self._controller, self._controller.engine.completion
        qid, size = self._check_new_queue(command, (command.cdw10 & 0xFFFF) in queues)
        if not controller.completion_entries_fit:
            raise CommandError(StatusCode.INVALID_FIELD)
        vector = command.cdw11 >> 16
        if vector >= controller.vectors:
            raise CommandError(StatusCode.INVALID_INTERRUPT_VECTOR)
        interrupts = bool(command.cdw11 & _INTERRUPTS_ENABLED)
        queues[qid] = CompletionQueue(qid, command.prp1, size, vector, interrupts)
        return 0

    def _create_submission_queue(self, command: SubmissionEntry) -> int:
        controller, engine = self._controller, self._controller.engine
        qid, size = self._check_new_queue(command, (command.cdw10 & 0xFFFF) in engine.submission)
        if not controller.submission_entries_fit:
            raise CommandError(StatusCode.INVALID_FIELD)
        completions = engine.completion.get(command.cdw11 >> 16)
        if completions is None or not completions.qid:
            raise CommandError(StatusCode.COMPLETION_QUEUE_INVALID)
        engine.submission[qid] = SubmissionQueue(qid, command.prp1, size, completions)
        return 0

    def _delete_submission_queue(self, command: SubmissionEntry) -> Work[int]:
        engine = self._controller.engine
        queue = engine.submission.get(command.cdw10 & 0xFFFF)
        if queue is None or not queue.qid or not queue.open:
            raise CommandError(StatusCode.INVALID_QUEUE_IDENTIFIER)
        # What was not fetched is implicitly aborted; what was is completed first (5.6).
        yield from engine.drain(queue)
        del engine.submission[queue.qid]
        queue.completions.users.remove(queue)
        return 0

    def _delete_completion_queue(self, command: SubmissionEntry) -> int:
        queues = self._controller.engine.completion
        queue = queues.get(command.cdw10 & 0xFFFF)
        if queue is None or not queue.qid:
            raise CommandError(StatusCode.INVALID_QUEUE_IDENTIFIER)
        if queue.users:
            raise CommandError(StatusCode.INVALID_QUEUE_DELETION)
        del queues[queue.qid]
        return 0

    # Others.

    def _abort(self, command: SubmissionEntry) -> int:
        """Abort an Asynchronous Event Request; others are under way too far (5.1)."""
        sqid, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
        controller = self._controller
        if sqid or not controller.events.withdraw(cid):
            return _NOT_ABORTED
        admin = controller.engine.submission[0]
        controller.engine.post(admin, cid, 0, StatusCode.ABORT_REQUESTED)
        return 0

    def _async_event(self, command: SubmissionEntry) -> None:
        self._controller.events.request(command.cid)

    def _keep_alive(self, command: SubmissionEntry) -> int:
        self._controller.keep_alive()
        return 0
