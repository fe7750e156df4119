"""The loop that serves functions and register pages of one machine to vfio-user clients."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from iommu_emu.core import StateError
from iommu_emu.machine import Interrupt, Machine
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.function import Function
from iommu_emu.unit import Unit
from iommu_emu.vfio_user import event_fd
from iommu_emu.vfio_user.endpoint import Endpoint
from iommu_emu.vfio_user.guest_memory import GuestMemory
from iommu_emu.vfio_user.unit_page import UnitPage

_log = logging.getLogger(__name__)
_LONGEST_WAIT = 3600.0  # s; a guest's timer may be further away than epoll can wait
_POLL_STALLED = 0.001  # s between two looks at what a reply waits for

__all__ = ["Event", "Server"]


@dataclass(frozen=True)
class Event:
    """Something that happened to the server, for people and logs.

    Attributes:
        time: ns of the machine's clock.
        kind: "connected", "disconnected", "refused", "error", "unreachable" (memory that
            devices cannot reach), "interrupt" (a message interrupt that was sent to the
            client), "interrupt-refused", "interrupt-lost".
        name: of the function; "" if it is about none.
        details: the rest, by name.
    """

    time: int
    kind: str
    name: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Server:
    """Serves functions and units of one machine, each on a socket of its own.

    The machine's RAM is what the clients map, so make it without any: `Machine(memory=())`.
    With a clock source (`monotonic_source()`) the loop lets virtual time follow it. Message
    interrupts that reach the machine's interrupt controller go to a client as DMA_WRITE: to the
    one that has the register page of the sender's unit, else to the sender's own.

    Nothing in it blocks but `run_once`. From another loop: wait until `fileno()` is readable or
    `timeout()` is over, then call `run_once(0)`.

    Args:
        machine: what is served; the server takes its `on_interrupt`.
        on_event: told what happens. If it raises, `run_once` or `close` does once everything is
            in order, and it is not called again.

    Attributes:
        machine: what is served.
        memory: the clients' memory.
        endpoints: what is served, in the order in which it was added.

    Raises:
        StateError: if somebody else has the machine's interrupts.
    """

    def __init__(self, machine: Machine, on_event: Callable[[Event], None] | None = None) -> None:
        if machine.on_interrupt is not None:
            raise StateError("machine has an on_interrupt already: one server a machine")
        self.machine = machine
        self.memory = GuestMemory(machine, self._note_memory)
        self.endpoints: list[Endpoint] = []
        self._on_event = on_event
        self._listener_error: Exception | None = None
        self._selector = selectors.EpollSelector()
        self._interests: dict[Endpoint, int] = {}
        self._closed = False
        self._spare = _spare()
        event_fd.prepare()
        machine.on_interrupt = self._interrupt

    def __repr__(self) -> str:
        return f"<Server of {self.machine!r}, {len(self.endpoints)} sockets>"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What is served.

    def serve(
        self, function: Function, path: str | os.PathLike[str] | None, address: str | int
    ) -> Endpoint:
        """Serve a device model on a socket.

        Args:
            function: not attached; a client's connection attaches it.
            path: of the socket that is made; None: `Endpoint.connect` is called instead.
            address: where it appears, "01:00.0": the guest's bus number, which the bus of one
                of the machine's bridges must have when a client connects.

        Raises:
            StateError: if the function is attached, or served already.
            ValueError: if the path is too long.
            OSError: if the socket cannot be made.
        """
        if function.attached:
            raise StateError(f"{function!r} is attached already: serve() does it")
        return self._add(function, path, address)

    def serve_unit(self, unit: Unit, path: str | os.PathLike[str] | None) -> Endpoint:
        """Serve a unit's register page on a socket, as BAR 0 of a function (`UnitPage`).

        Raises:
            StateError: if the unit is served already.
            ValueError: if the unit is another machine's, or the path is too long.
            OSError: if the socket cannot be made.
        """
        if unit not in self.machine.units:
            raise ValueError(f"{unit!r} is not in {self.machine!r}")
        if any(_unit_number(endpoint) == unit.number for endpoint in self.endpoints):
            raise StateError(f"{unit!r} is served already")
        return self._add(UnitPage(self.machine, unit), path, None)

    def _add(
        self,
        function: Function,
        path: str | os.PathLike[str] | None,
        address: str | int | None,
    ) -> Endpoint:
        if self._closed:
            raise StateError("the server is closed")
        if any(endpoint.function is function for endpoint in self.endpoints):
            raise StateError(f"{function!r} is served already")
        endpoint = Endpoint(self, function, path, address)
        self.endpoints.append(endpoint)
        if endpoint.listener is not None:
            self._selector.register(endpoint.listener, selectors.EVENT_READ, endpoint)
        return endpoint

    # The loop.

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to do."""
        return self._selector.fileno()

    def timeout(self) -> float | None:
        """Return the s until there is something to do without a client; None: nothing is known."""
        if self.machine.core.outbox_size:
            return 0.0
        if any(e.connection is not None and e.connection.stalled for e in self.endpoints):
            return _POLL_STALLED
        clock = self.machine.clock
        if clock.source is None or clock.next_event is None:
            return None
        return max(0, clock.next_event - clock.source()) / 1e9

    def run_once(self, timeout: float | None = None) -> bool:
        """Wait for something to do, and do it.

        Args:
            timeout: s to wait at most; None: as long as it takes.

        Returns:
            Whether a client or descriptor had something.
        """
        due = self.timeout()
        if due is not None:
            timeout = due if timeout is None else min(timeout, due)
        ready = self._selector.select(None if timeout is None else min(timeout, _LONGEST_WAIT))
        try:
            if self.machine.clock.source is None:
                self.machine.service()
            else:
                self.machine.clock.follow()
        except Exception as error:
            connected = [e for e in self.endpoints if e.connection is not None]
            if not connected:
                raise
            self.blame(error, connected)
        accepting: list[Endpoint] = []
        for key, mask in ready:
            if callable(key.data):
                # What came before may have ended the watch, and closed the descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            elif key.fileobj is key.data.listener:
                accepting.append(key.data)
            else:
                endpoint = key.data
                endpoint.attempt(partial(self._serve_client, endpoint, mask))
        for endpoint in self.endpoints:
            endpoint.settle()
        # Behind the clients: one that has gone makes room for the next one.
        for endpoint in accepting:
            endpoint.accept()
        self._raise_listener_error()
        return bool(ready)

    def run_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Run until a condition holds; False if it does not after `timeout` s."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.run_once(left)
        return True

    def _serve_client(self, endpoint: Endpoint, mask: int) -> None:
        connection = endpoint.connection
        if connection is None:
            return
        if mask & selectors.EVENT_WRITE:
            connection.flush()
        if mask & selectors.EVENT_READ:
            connection.receive()

    def update(self, endpoint: Endpoint) -> None:
        """Wait for what an endpoint's connection wants; called when that may have changed."""
        connection = endpoint.connection
        if connection is None:
            return
        wanted = connection.wants_read * selectors.EVENT_READ
        wanted |= connection.wants_write * selectors.EVENT_WRITE
        before = self._interests.get(endpoint, 0)
        if wanted == before:
            return
        if not wanted:
            self._selector.unregister(connection.sock)
            del self._interests[endpoint]
            return
        if before:
            self._selector.modify(connection.sock, wanted, endpoint)
        else:
            self._selector.register(connection.sock, wanted, endpoint)
        self._interests[endpoint] = wanted

    def turn_away(self, listener: socket.socket) -> None:
        """Hang up on who waits, with the descriptor that is kept for it: we have no other."""
        os.close(self._spare)
        with suppress(OSError):
            listener.accept()[0].close()
        self._spare = _spare()

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Call `action` whenever a descriptor is readable, from within the loop."""
        self._selector.register(fd, selectors.EVENT_READ, action)

    def unwatch(self, fd: int) -> None:
        """End that."""
        self._selector.unregister(fd)

    def blame(self, error: Exception, otherwise: Sequence[Endpoint]) -> None:
        """Log an error that should not be, and end the connection of the client it comes from.

        A device model's mistake ends its own client's connection, whoever made it happen.

        Args:
            error: with its traceback.
            otherwise: whose connections end if it comes from no model that is served.
        """
        _log.error("a mistake in what is served ends a connection", exc_info=error)
        culprit = self._culprit(error)
        for endpoint in otherwise if culprit is None else [culprit]:
            endpoint.fail(error)

    def _culprit(self, error: Exception) -> Endpoint | None:
        """Return the endpoint whose function is the innermost one in an error's traceback."""
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        for frame in reversed(frames):
            caller = frame.f_locals.get("self")
            for endpoint in self.endpoints:
                if endpoint.owns(caller):
                    return endpoint
        return None

    # Interrupts and events.

    def _interrupt(self, interrupt: Interrupt) -> None:
        details = {
            "address": interrupt.address,
            "data": interrupt.data,
            "source": interrupt.source,
            "requester": format_requester(interrupt.requester, interrupt.segment),
        }

        def answered(error: int, body: bytes) -> None:
            if error:
                reason = os.strerror(error)
                self.note(endpoint, "interrupt-refused", reason=reason, **details)

        data = interrupt.data.to_bytes(4, "little")
        for endpoint in self._ways_to_guest(interrupt):
            if endpoint.write_memory(interrupt.address, data, answered):
                self.note(endpoint, "interrupt", **details)
                return
        self.note(None, "interrupt-lost", reason="no client takes it", **details)

    def _ways_to_guest(self, interrupt: Interrupt) -> list[Endpoint]:
        """Return the endpoints that can tell the guest of an interrupt, the best one first."""
        number = interrupt.source
        if number == "device":
            unit = self.machine.core.routed_unit(interrupt.segment, interrupt.requester)
            number = "none" if unit is None else unit.number
        pages = [e for e in self.endpoints if _unit_number(e) == number]
        own = [
            e
            for e in self.endpoints
            if e.function.attached
            and e.function.segment == interrupt.segment
            and e.function.dma.requester == interrupt.requester
        ]
        return pages + own

    def _note_memory(self, kind: str, **details: Any) -> None:
        self.note(None, kind, **details)

    def note(self, endpoint: Endpoint | None, kind: str, **details: Any) -> None:
        """Report an event."""
        if self._on_event is None:
            return
        name = "" if endpoint is None else endpoint.function.name
        try:
            self._on_event(Event(self.machine.clock.now, kind, name, details))
        except Exception as error:
            self._on_event, self._listener_error = None, error

    def _raise_listener_error(self) -> None:
        error, self._listener_error = self._listener_error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """End every connection, remove the sockets, let go of the machine."""
        if self._closed:
            return
        self._closed = True
        for endpoint in self.endpoints:
            if endpoint.listener is not None:
                self._selector.unregister(endpoint.listener)
            endpoint.close()
        self._selector.close()
        os.close(self._spare)
        self.machine.on_interrupt = None
        self._raise_listener_error()


def _spare() -> int:
    """Return a descriptor of nothing."""
    return os.eventfd(0, os.EFD_CLOEXEC)


def _unit_number(endpoint: Endpoint) -> int | None:
    function = endpoint.function
    return function.unit.number if isinstance(function, UnitPage) else None
