"""Interrupts of a served function: event descriptors, masks, pending bits (linux/vfio.h).

The client keeps the guest's view: it emulates MSI-X table, MSI messages and the INTx pin, and is
told of each interrupt through an event descriptor.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from errno import EINVAL, EMFILE, ENOTTY

from iommu_emu.pci.function import Function
from iommu_emu.vfio_user.descriptors import is_event
from iommu_emu.vfio_user.event_fd import signal_event
from iommu_emu.vfio_user.protocol import (
    IRQ_SET,
    Irq,
    IrqAction,
    IrqData,
    IrqFlag,
    ProtocolError,
    unpack,
)

_DATA, _ACTION = 0x07, 0x38

__all__ = ["Interrupts"]


class _Line:
    """Vectors of one interrupt type."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.triggers: dict[int, int] = {}  # vector: event descriptor
        self.masked: set[int] = set()
        self.pending: set[int] = set()


class Interrupts:
    """The interrupt types of one function, and where its interrupts go (`InterruptSink`).

    A vector that the client has masked or given no descriptor stays pending until it has one and
    is not masked. INTx is a level and masks itself when it is signalled; unmasking signals it
    again if it is still asserted.

    An interrupt takes as long as a write of the function takes to memory, so that it does not
    overtake the data that it speaks of (PCI Express keeps messages behind posted writes).

    Args:
        function: whose interrupts they are.
        watch: calls back when a descriptor becomes readable.
        unwatch: ends that.
    """

    def __init__(
        self,
        function: Function,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._function = function
        self._watch = watch
        self._unwatch = unwatch
        self._watched: dict[IrqAction, tuple[int, select.epoll]] = {}  # of INTx
        self._closed = False
        self._lines = {
            Irq.INTX: _Line(1 if function.config.get(0x3D, 1) else 0),
            Irq.MSI: _Line(0 if function.msi is None else function.msi.vectors),
            Irq.MSIX: _Line(0 if function.msix is None else function.msix.vectors),
            Irq.ERROR: _Line(1),  # QEMU warns about a device without it, PCI Express or not
            Irq.REQUEST: _Line(1),
        }

    def __repr__(self) -> str:
        enabled = ", ".join(
            f"{irq.name} {sorted(line.triggers)}"
            for irq, line in self._lines.items()
            if line.triggers
        )
        return f"<Interrupts of {self._function.name}: {enabled or 'none enabled'}>"

    def info(self, index: int) -> tuple[IrqFlag, int]:
        """Return flags and number of vectors of an interrupt type.

        Raises:
            ProtocolError: if there is no such type.
        """
        flags = IrqFlag.EVENTFD
        if index == Irq.INTX:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        elif index in (Irq.MSI, Irq.MSIX):
            flags |= IrqFlag.MASKABLE
        return flags, self._line(index).count

    # From the model.

    def message(self, vector: int) -> bool:
        """Signal an MSI-X or MSI vector; False if the client has enabled neither."""
        function = self._function
        irq, line = Irq.MSIX, self._lines[Irq.MSIX]
        if not line.triggers and (function.msix is None or not function.msix.enabled):
            irq, line = Irq.MSI, self._lines[Irq.MSI]
            if not line.triggers and (function.msi is None or not function.msi.enabled):
                return False
        if not 0 <= vector < line.count:
            raise ValueError(f"vector must be in 0..{line.count - 1}, not {vector}")
        if irq is Irq.MSI and line.triggers:
            # With fewer vectors enabled than asked for, several share one (pci 7).
            vector %= max(line.triggers) + 1
        self._behind_writes(lambda: self._set_pending(irq, vector))
        return True

    def set_intx(self, level: bool) -> None:
        """Take the level of the INTx pin."""
        if level:
            self._behind_writes(lambda: self._set_pending(Irq.INTX, 0))
        else:
            self._behind_writes(self._lines[Irq.INTX].pending.clear)

    def _behind_writes(self, action: Callable[[], None]) -> None:
        """Do something when all that the function has sent is there."""
        function = self._function
        delay = sum(function.dma.latency) if function.attached else 0
        if not delay:
            action()
            return

        def arrive() -> None:
            if not self._closed:
                action()

        function.machine.clock.call_later(delay, arrive)

    def _set_pending(self, irq: Irq, vector: int) -> None:
        self._lines[irq].pending.add(vector)
        self._deliver(irq)

    def request_removal(self) -> None:
        """Ask the client to let go of the device."""
        self._signal(self._lines[Irq.REQUEST], 0)

    def _deliver(self, irq: Irq) -> None:
        """Signal what is pending and neither masked nor without a descriptor."""
        line = self._lines[irq]
        ready = sorted((line.pending & line.triggers.keys()) - line.masked)
        for vector in ready:
            self._signal(line, vector)
        if irq is Irq.INTX:
            line.masked.update(ready)  # the level stays
        else:
            line.pending.difference_update(ready)
        if irq is Irq.MSIX and self._function.msix is not None:
            # The guest reads its pending bits from us.
            self._function.msix.pending = sum(1 << vector for vector in line.pending)

    def _signal(self, line: _Line, vector: int) -> None:
        fd = line.triggers.get(vector)
        if fd is not None:
            signal_event(fd)

    # From the client.

    def set(self, body: bytes, fds: list[int]) -> None:
        """Carry out DEVICE_SET_IRQS; descriptors that are kept are taken out of `fds`.

        Raises:
            ProtocolError: EINVAL for what cannot be meant, ENOTTY for an action that the
                interrupt type does not have.
        """
        _, flags, index, start, count = unpack(IRQ_SET, body)
        data = body[IRQ_SET.size :]
        try:
            kind, action = IrqData(flags & _DATA), IrqAction(flags & _ACTION)
        except ValueError:
            raise ProtocolError(EINVAL, f"interrupt flags {flags:#x}") from None
        line = self._line(index)
        irq = Irq(index)
        if flags & ~(_DATA | _ACTION):
            raise ProtocolError(EINVAL, f"interrupt flags {flags:#x}")
        if start + count > line.count or (not count and start):
            raise ProtocolError(EINVAL, f"vectors {start}+{count} of {line.count}")
        if not count and (kind, action) != (IrqData.NONE, IrqAction.TRIGGER):
            raise ProtocolError(EINVAL, "no vectors")
        if fds and (kind is not IrqData.EVENTFD or len(fds) != count):
            raise ProtocolError(EINVAL, f"{len(fds)} descriptors for {count} vectors")
        if kind is IrqData.BOOL and len(data) < count:
            raise ProtocolError(EINVAL, f"{len(data)} booleans for {count} vectors")
        if action is not IrqAction.TRIGGER and irq in (Irq.ERROR, Irq.REQUEST):
            raise ProtocolError(ENOTTY, f"{irq.name} cannot be masked")
        if not count:
            self._disable(irq)
            return
        vectors = range(start, start + count)
        if kind is IrqData.EVENTFD:
            self._set_fds(irq, action, vectors, fds)
        else:
            chosen = [v for i, v in enumerate(vectors) if kind is IrqData.NONE or data[i]]
            self._act(irq, action, chosen)

    def _line(self, index: int) -> _Line:
        if index not in self._lines:
            raise ProtocolError(EINVAL, f"interrupt type {index}")
        return self._lines[Irq(index)]

    def _act(self, irq: Irq, action: IrqAction, vectors: list[int]) -> None:
        line = self._lines[irq]
        if action is IrqAction.TRIGGER:
            for vector in vectors:
                self._signal(line, vector)
        elif action is IrqAction.MASK:
            line.masked.update(vectors)
        else:
            line.masked.difference_update(vectors)
            self._deliver(irq)

    def _set_fds(self, irq: Irq, action: IrqAction, vectors: range, fds: list[int]) -> None:
        if not all(map(is_event, fds)):
            raise ProtocolError(EINVAL, "a descriptor that is no event descriptor")
        if action is not IrqAction.TRIGGER:
            self._set_remote_action(irq, action, fds)
            return
        line = self._lines[irq]
        for vector in vectors:
            old = line.triggers.pop(vector, None)
            if old is not None:
                os.close(old)
        line.triggers.update(zip(vectors, fds, strict=False))
        fds.clear()
        self._deliver(irq)

    def _set_remote_action(self, irq: Irq, action: IrqAction, fds: list[int]) -> None:
        """Mask or unmask INTx whenever the client signals a descriptor."""
        if irq is not Irq.INTX:
            raise ProtocolError(ENOTTY, f"{irq.name} has no descriptors for that")
        self._forget_remote_action(action)
        if not fds:
            return
        # Each write is an edge. The counter is never read: that would block if the client cleared
        # O_NONBLOCK and read it before us.
        try:
            edges = select.epoll()
        except OSError as error:
            raise ProtocolError(error.errno or EMFILE, "no descriptor is left to watch") from None
        edges.register(fds[0], select.EPOLLIN | select.EPOLLET)

        def signalled() -> None:
            if edges.poll(0):
                self._act(irq, action, [0])

        self._watch(edges.fileno(), signalled)
        self._watched[action] = fds.pop(), edges

    def _forget_remote_action(self, action: IrqAction) -> None:
        watched = self._watched.pop(action, None)
        if watched is not None:
            fd, edges = watched
            self._unwatch(edges.fileno())
            edges.close()
            os.close(fd)

    def _disable(self, irq: Irq) -> None:
        line = self._lines[irq]
        for fd in line.triggers.values():
            os.close(fd)
        line.triggers.clear()
        line.masked.clear()
        if irq is Irq.INTX:
            for action in list(self._watched):
                self._forget_remote_action(action)
        else:
            line.pending.clear()
            self._deliver(irq)

    def reset(self) -> None:
        """Forget what is pending, as a reset of the function does; descriptors stay."""
        for line in self._lines.values():
            line.pending.clear()

    def close(self) -> None:
        """Disable everything."""
        self._closed = True
        for irq in self._lines:
            self._disable(irq)
