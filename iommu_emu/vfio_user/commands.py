"""The commands of one client, carried out on one PCI function."""

from __future__ import annotations

from collections.abc import Callable, Generator
from errno import EINVAL, ENOTSUP
from time import monotonic
from typing import TypeAlias

from iommu_emu.bar_windows import aligned_pieces
from iommu_emu.clock import TURN
from iommu_emu.machine import Machine
from iommu_emu.pci.config_space import SIZE, STANDARD_END
from iommu_emu.pci.function import Function
from iommu_emu.vfio_user.connection import Deferred
from iommu_emu.vfio_user.guest_memory import GuestMemory
from iommu_emu.vfio_user.interrupts import Interrupts
from iommu_emu.vfio_user.protocol import (
    CONFIG_REGION,
    DEVICE_INFO,
    DEVICE_PCI,
    DEVICE_RESETS,
    IRQ_INFO,
    IRQ_SET,
    MAX_TRANSFER,
    REGION_ACCESS,
    REGION_INFO,
    REGION_READABLE,
    REGION_WRITABLE,
    REGION_WRITE_MULTI,
    REGIONS,
    Command,
    Irq,
    Peer,
    ProtocolError,
    negotiate,
    unpack,
)

_MULTI_COUNT = 8  # bytes before the writes of REGION_WRITE_MULTI
# An access piece by piece, and in the end the reply's body.
_Steps: TypeAlias = Generator[None, None, bytes]
_WITH_FDS = (Command.DMA_MAP, Command.DEVICE_SET_IRQS)

__all__ = ["FunctionCommands"]


class FunctionCommands:
    """Answers the commands of one connection (`Handler`).

    Args:
        machine: where the function is.
        function: what the client sees.
        memory: what its DMA maps go to.
        interrupts: the function's interrupt types.
        client: whose maps they are.
        negotiated: called once the version is agreed on, with what the client said.
        present: whether the function is still there.
    """

    def __init__(
        self,
        machine: Machine,
        function: Function,
        memory: GuestMemory,
        interrupts: Interrupts,
        *,
        client: object,
        negotiated: Callable[[Peer], None],
        present: Callable[[], bool],
    ) -> None:
        self._machine = machine
        self._function = function
        self._memory = memory
        self._interrupts = interrupts
        self._client = client
        self._negotiated = negotiated
        self._present = present
        self._agreed = False
        self._commands: dict[int, Callable[[bytes], bytes]] = {
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_RESET: self._reset,
        }
        self._accesses: dict[int, Callable[[bytes], _Steps]] = {
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
        }

    def handle(self, command: int, body: bytes, fds: list[int]) -> bytes | Deferred:
        """Carry out one command and return the reply's body; see `Handler`."""
        if not self._agreed:
            return self._version(command, body, fds)
        if fds and command not in _WITH_FDS:
            raise ProtocolError(EINVAL, f"command {command} takes no descriptors")
        access = self._accesses.get(command)
        if access is not None:
            slices = _InSlices(access(body))
            reply = slices.poll()
            return slices if reply is None else reply
        carry_out = self._commands.get(command)
        if carry_out is not None:
            return carry_out(body)
        if command == Command.DMA_MAP:
            self._memory.map(self._client, body, fds)
            return b""
        if command == Command.DMA_UNMAP:
            return self._memory.unmap(self._client, body)
        if command == Command.DEVICE_SET_IRQS:
            return self._set_irqs(body, fds)
        if command in (Command.VERSION, Command.DMA_READ, Command.DMA_WRITE):
            raise ProtocolError(EINVAL, f"command {command} is not the client's to send now")
        if command in list(Command):
            raise ProtocolError(ENOTSUP, f"{Command(command).name} is not supported")
        raise ProtocolError(EINVAL, f"unknown command {command}")

    def _version(self, command: int, body: bytes, fds: list[int]) -> bytes:
        if command != Command.VERSION or fds:
            raise ProtocolError(EINVAL, "the first message must be VERSION", fatal=True)
        reply, peer = negotiate(body)
        self._negotiated(peer)
        self._agreed = True
        return reply

    # What there is.

    def _device_info(self, body: bytes) -> bytes:
        _require_room(unpack(DEVICE_INFO, body)[0], DEVICE_INFO.size)
        flags = DEVICE_RESETS | DEVICE_PCI
        return DEVICE_INFO.pack(DEVICE_INFO.size, flags, REGIONS, len(Irq))

    def _region_info(self, body: bytes) -> bytes:
        # Only argsz and index need be there ("VFIO_USER_DEVICE_GET_REGION_INFO").
        argsz, _, index, _, _, _ = unpack(REGION_INFO, body)
        _require_room(argsz, REGION_INFO.size)
        if index >= REGIONS:
            raise ProtocolError(EINVAL, f"region {index}")
        size = self._size(index)
        flags = REGION_READABLE | REGION_WRITABLE if size else 0
        return REGION_INFO.pack(REGION_INFO.size, flags, index, 0, size, 0)

    def _irq_info(self, body: bytes) -> bytes:
        argsz, _, index, _ = unpack(IRQ_INFO, body)
        _require_room(argsz, IRQ_INFO.size)
        flags, count = self._interrupts.info(index)
        return IRQ_INFO.pack(IRQ_INFO.size, flags, index, count)

    def _size(self, region: int) -> int:
        if region == CONFIG_REGION:
            return STANDARD_END if self._function.kind is None else SIZE
        bar = self._function.bars.get(region)
        return 0 if bar is None else bar.size

    # Region accesses.

    def _region_read(self, body: bytes) -> _Steps:
        offset, region, count = unpack(REGION_ACCESS, body)
        self._require_inside(region, offset, count)
        head = body[: REGION_ACCESS.size]
        function = self._function
        if not self._present():
            return head + b"\xff" * count
        if region == CONFIG_REGION:
            return head + function.config.get(offset, count).to_bytes(count, "little")
        data = bytearray(head)
        for at, size in aligned_pieces(offset, count):
            data += function.access_read(region, at, size).to_bytes(size, "little")
            yield
            if not self._present():
                return bytes(data).ljust(len(head) + count, b"\xff")
        self._machine.service()
        return bytes(data)

    def _region_write(self, body: bytes) -> _Steps:
        offset, region, count = unpack(REGION_ACCESS, body)
        if len(body) != REGION_ACCESS.size + count:
            raise ProtocolError(EINVAL, f"{count} bytes to write in a body of {len(body)}")
        yield from self._write(region, offset, body[REGION_ACCESS.size :])
        return body[: REGION_ACCESS.size]

    def _region_write_multi(self, body: bytes) -> _Steps:
        head, size = body[:_MULTI_COUNT], REGION_WRITE_MULTI.size
        count = int.from_bytes(head, "little")
        if len(head) < _MULTI_COUNT or len(body) != _MULTI_COUNT + count * size:
            raise ProtocolError(EINVAL, f"{count} writes in a body of {len(body)} bytes")
        for offset, region, length, data in REGION_WRITE_MULTI.iter_unpack(body[_MULTI_COUNT:]):
            if length > 8:
                raise ProtocolError(EINVAL, f"one of several writes with {length} bytes")
            yield from self._write(region, offset, data.to_bytes(8, "little")[:length])
        return head

    def _write(self, region: int, offset: int, data: bytes) -> Generator[None, None, None]:
        self._require_inside(region, offset, len(data))
        if not self._present():
            return
        function, config = self._function, region == CONFIG_REGION
        for at, size in aligned_pieces(offset, len(data), 4 if config else 8):
            value = int.from_bytes(data[at - offset : at - offset + size], "little")
            if config:
                function.config.write(at, size, value)
            else:
                function.access_write(region, at, size, value)
            yield
            if not self._present():
                return
        self._machine.service()

    def _require_inside(self, region: int, offset: int, count: int) -> None:
        if region >= REGIONS or count > MAX_TRANSFER or offset + count > self._size(region):
            raise ProtocolError(EINVAL, f"access to {offset:#x}+{count:#x} of region {region}")

    # Interrupts and reset.

    def _set_irqs(self, body: bytes, fds: list[int]) -> bytes:
        _require_room(unpack(IRQ_SET, body)[0], IRQ_SET.size)
        self._interrupts.set(body, fds)
        return b""

    def _reset(self, body: bytes) -> bytes:
        if self._present():
            self._function.reset()
            self._interrupts.reset()
            self._machine.service()
        return b""


class _InSlices:
    """A region access on its way: a large one takes several turns (`Deferred`)."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    def poll(self) -> bytes | None:
        """Go on with it until the turn is over; return the reply's body once it is done.

        Raises:
            ProtocolError: if it cannot be meant.
        """
        deadline = monotonic() + TURN
        try:
            next(self._steps)
            while monotonic() < deadline:
                next(self._steps)
        except StopIteration as end:
            reply: bytes = end.value
            return reply
        return None


def _require_room(argsz: int, needed: int) -> None:
    if argsz < needed:
        raise ProtocolError(EINVAL, f"argsz of {argsz} bytes, {needed} are needed")
