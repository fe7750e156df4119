"""The NVM command set: what a host does with its blocks (6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iommu_emu.devices.dma import Work
from iommu_emu.devices.nvme.admin import MAX_TRANSFER
from iommu_emu.devices.nvme.identify import NAMESPACE
from iommu_emu.devices.nvme.prp import gather, scatter
from iommu_emu.devices.nvme.specification import (
    BROADCAST,
    CommandError,
    Feature,
    NvmOpcode,
    StatusCode,
)
from iommu_emu.devices.nvme.structures import DATASET_RANGE, SubmissionEntry

if TYPE_CHECKING:
    from iommu_emu.devices.nvme.controller import Nvme

_FORCE_UNIT_ACCESS = 1 << 30
_DEALLOCATE = 1 << 2

__all__ = ["NvmCommands"]


class NvmCommands:
    """Carries out I/O commands.

    Args:
        controller: whose medium they read and write.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._medium = controller.medium
        self._handlers: dict[int, Callable[[SubmissionEntry], int | Work[int]]] = {
            NvmOpcode.FLUSH: self._flush,
            NvmOpcode.WRITE: self._write,
            NvmOpcode.READ: self._read,
            NvmOpcode.COMPARE: self._compare,
            NvmOpcode.WRITE_ZEROES: self._write_zeroes,
            NvmOpcode.DATASET_MANAGEMENT: self._dataset_management,
        }

    def execute(self, command: SubmissionEntry) -> int | Work[int]:
        """Carry out a command: dword 0 of its completion.

        Raises:
            CommandError: if it ends with an error.
        """
        handler = self._handlers.get(command.opcode)
        if handler is None:
            raise CommandError(StatusCode.INVALID_OPCODE)
        if command.nsid != NAMESPACE and (
            command.nsid != BROADCAST or command.opcode != NvmOpcode.FLUSH
        ):
            raise CommandError(StatusCode.INVALID_NAMESPACE)
        return handler(command)

    def _extent(self, command: SubmissionEntry, most: int | None = MAX_TRANSFER) -> tuple[int, int]:
        """Return offset and length in bytes of the blocks that a command is about."""
        size = self._medium.block_size
        first, count = command.cdw10 | command.cdw11 << 32, (command.cdw12 & 0xFFFF) + 1
        if most is not None and count * size > most:
            raise CommandError(StatusCode.INVALID_FIELD)
        if first + count > self._medium.blocks:
            raise CommandError(StatusCode.LBA_OUT_OF_RANGE)
        return first * size, count * size

    def _check_writable(self) -> None:
        if self._medium.read_only:
            raise CommandError(StatusCode.WRITE_PROTECTED)

    def _read_medium(self, offset: int, length: int) -> bytes:
        try:
            return self._medium.read(offset, length)
        except OSError:
            raise self._media_error(StatusCode.UNRECOVERED_READ_ERROR) from None

    def _media_error(self, code: StatusCode) -> CommandError:
        self._controller.logs.media_errors += 1
        return CommandError(code)

    def _settle(self, command: SubmissionEntry) -> None:
        """Flush what a command wrote if it must survive a power loss (6.15, 5.21.1.6)."""
        cached = self._controller.features.value(Feature.VOLATILE_WRITE_CACHE)
        if command.cdw12 & _FORCE_UNIT_ACCESS or not cached:
            self._medium.flush()

    def _read(self, command: SubmissionEntry) -> Work[int]:
        controller = self._controller
        offset, length = self._extent(command)
        data = self._read_medium(offset, length)
        yield from scatter(
            controller.engine.dma, controller.page_size, command.prp1, command.prp2, data
        )
        controller.logs.reads += 1
        controller.logs.bytes_read += length
        return 0

    def _gather(self, command: SubmissionEntry, length: int) -> Work[bytes]:
        controller = self._controller
        return gather(
            controller.engine.dma, controller.page_size, command.prp1, command.prp2, length
        )

    def _write(self, command: SubmissionEntry) -> Work[int]:
        offset, length = self._extent(command)
        self._check_writable()
        # All of it is here before a byte is written, so no block is ever torn by a fault.
        data = yield from self._gather(command, length)
        try:
            self._medium.write(offset, data)
            self._settle(command)
        except OSError:
            raise self._media_error(StatusCode.WRITE_FAULT) from None
        self._controller.logs.writes += 1
        self._controller.logs.bytes_written += length
        return 0

    def _compare(self, command: SubmissionEntry) -> Work[int]:
        offset, length = self._extent(command)
        expected = yield from self._gather(command, length)
        if self._read_medium(offset, length) != expected:
            raise CommandError(StatusCode.COMPARE_FAILURE)
        return 0

    def _write_zeroes(self, command: SubmissionEntry) -> int:
        offset, length = self._extent(command, None)  # MDTS is about data that is transferred
        self._check_writable()
        try:
            self._medium.zero(offset, length)
            self._settle(command)
        except OSError:
            raise self._media_error(StatusCode.WRITE_FAULT) from None
        return 0

    def _flush(self, command: SubmissionEntry) -> int:
        try:
            self._medium.flush()
        except OSError:
            raise self._media_error(StatusCode.WRITE_FAULT) from None
        return 0

    def _dataset_management(self, command: SubmissionEntry) -> Work[int]:
        """Deallocate ranges; the other attributes are hints (6.7)."""
        data = yield from self._gather(command, DATASET_RANGE.size * ((command.cdw10 & 0xFF) + 1))
        if not command.cdw11 & _DEALLOCATE:
            return 0
        self._check_writable()
        ranges = [(first, count) for _, count, first in DATASET_RANGE.iter_unpack(data)]
        if any(first + count > self._medium.blocks for first, count in ranges):
            raise CommandError(StatusCode.LBA_OUT_OF_RANGE)
        size = self._medium.block_size
        for first, count in ranges:
            self._medium.deallocate(first * size, count * size)
        return 0
