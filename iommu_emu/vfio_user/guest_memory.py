"""The guest's memory, as its devices' clients map it into the machine.

Each device of a guest sends a DMA_MAP of the same memory, and while firmware moves memory about,
their views differ for a moment. A machine has one memory: what at least one client has mapped.
Maps that overlap must agree which byte of which file an address is.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from errno import EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC

from iommu_emu.core import FullError, OverlapError, Port
from iommu_emu.machine import Machine
from iommu_emu.vfio_user.descriptors import is_memory
from iommu_emu.vfio_user.protocol import (
    DMA_MAP,
    DMA_UNMAP,
    MAP_READABLE,
    MAP_WRITABLE,
    MAX_DMA_MAPS,
    PAGE,
    UNMAP_ALL,
    ProtocolError,
    unpack,
)

UNMAP_PATIENCE = 1.0  # s of the host's time that readers have to let go; QEMU waits 5 s
_MOST_FILES = 64  # of one client: each takes a file descriptor of ours
_MOST_TOLD = 256  # different things that are told about the memory of one guest
_NOT_WRITABLE = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE, which Python does not name
# What the core says of memory that it cannot place: too much of it at once is a ValueError.
_REFUSALS = {FullError: ENOSPC, MemoryError: ENOMEM, ValueError: EINVAL}

__all__ = ["GuestMemory", "Unmapping"]


@dataclass
class _File:
    """A client's memory file, which other clients may have sent as well."""

    key: tuple[int, int]  # device and inode
    fd: int  # ours
    users: int = 0


@dataclass(frozen=True)
class _Map:
    """One DMA_MAP, or the union of several that overlap. Without a file nobody reaches it."""

    base: int
    size: int
    offset: int
    file: tuple[int, int] | None  # key

    @property
    def end(self) -> int:
        return self.base + self.size

    def overlaps(self, other: _Map) -> bool:
        return self.base < other.end and other.base < self.end

    def agrees(self, other: _Map) -> bool:
        """Whether both put the same byte of the same file at the same address."""
        return (self.file, self.offset - self.base) == (other.file, other.offset - other.base)


class GuestMemory:
    """The DMA maps of all clients of one machine.

    A map without a file, or one that is not both readable and writable (a ROM), is remembered,
    but devices do not reach it. The same goes for one that lies over registers or a BAR, until
    they move.

    Args:
        machine: what clients map becomes its RAM.
        note: told what a person should know: a kind, and details.
    """

    def __init__(self, machine: Machine, note: Callable[..., None] | None = None) -> None:
        self._machine = machine
        self._note = note or (lambda kind, **details: None)
        self._maps: dict[Hashable, dict[int, _Map]] = {}
        self._files: dict[tuple[int, int], _File] = {}
        self._placed: dict[int, _Map] = {}
        self._told: set[tuple[int, int, str]] = set()

    def __repr__(self) -> str:
        ranges = ", ".join(f"{m.base:#x}..{m.end - 1:#x}" for m in self._placed.values())
        return f"<GuestMemory {ranges or 'empty'}>"

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Base and size of what devices reach, ascending."""
        return sorted((m.base, m.size) for m in self._placed.values())

    # Mapping.

    def map(self, client: Hashable, body: bytes, fds: list[int]) -> None:
        """Carry out DMA_MAP; a descriptor that is kept is taken out of `fds`.

        Raises:
            ProtocolError: EINVAL for numbers that are no map and for a file that is too short,
                EACCES for a file that can shrink or must not be written, EEXIST for addresses
                that are mapped already, ENOSPC for one map too many, ENOMEM if the host
                cannot map it.
        """
        argsz, flags, offset, base, size = unpack(DMA_MAP, body)
        if argsz < DMA_MAP.size or len(fds) > 1:
            raise ProtocolError(EINVAL, f"map of {argsz} bytes with {len(fds)} descriptors")
        if not flags or flags & ~(MAP_READABLE | MAP_WRITABLE):
            raise ProtocolError(EINVAL, f"map flags {flags:#x}")
        if not size or (base | size | offset) % PAGE or base + size > 1 << 64:
            raise ProtocolError(EINVAL, f"map of {base:#x}+{size:#x} at offset {offset:#x}")
        key = _checked_file(fds[0], offset + size) if fds else None
        usable = flags == MAP_READABLE | MAP_WRITABLE
        new = _Map(base, size, offset, key if usable else None)
        self._require_room(client, new)
        if usable and not fds:
            self._tell(new, "it came without a file")
        if new.file is not None and new.file not in self._files:
            self._files[new.file] = _File(new.file, fds.pop())
        self._maps.setdefault(client, {})[base] = new
        if new.file is None:
            return
        self._files[new.file].users += 1
        _, refused = self._place()
        for each, refusal in refused.items():
            if each.overlaps(new):
                self._forget(client, new)
                self._place()
                raise refusal
            self._tell(each, str(refusal))

    def _require_room(self, client: Hashable, new: _Map) -> None:
        mine = self._maps.get(client, {})
        if len(mine) >= MAX_DMA_MAPS:
            raise ProtocolError(ENOSPC, f"more than {MAX_DMA_MAPS} maps")
        what = f"map of {new.base:#x}+{new.size:#x}"
        files = {old.file for old in mine.values()} - {None}
        if new.file is not None and len(files | {new.file}) > _MOST_FILES:
            raise ProtocolError(ENOSPC, f"more than {_MOST_FILES} files")
        if any(new.overlaps(old) for old in mine.values()):
            raise ProtocolError(EEXIST, f"{what} overlaps another one")
        if new.file is not None and any(
            new.overlaps(old) and not new.agrees(old) for old in self._reachable()
        ):
            raise ProtocolError(EEXIST, f"{what}: other memory of another client is there")

    def _reachable(self) -> list[_Map]:
        return [
            each for maps in self._maps.values() for each in maps.values() if each.file is not None
        ]

    def _wanted(self) -> dict[int, _Map]:
        """Return the memory there is to be: maps that overlap become one."""
        wanted: list[_Map] = []
        for each in sorted(self._reachable(), key=lambda m: m.base):
            last = wanted[-1] if wanted else None
            if last is not None and each.base < last.end:
                size = max(last.end, each.end) - last.base
                wanted[-1] = _Map(last.base, size, last.offset, last.file)
            else:
                wanted.append(each)
        return {each.base: each for each in wanted}

    def _place(self) -> tuple[list[weakref.ref[object]], dict[_Map, ProtocolError]]:
        """Give the machine the memory there is to be.

        Returns:
            References to the mappings of what was removed, dead once nobody has a view left;
            and what could not be placed, with the reason. What lies over registers or a BAR,
            which may move, is left out as well, but is no error.
        """
        wanted = self._wanted()
        removed = []
        for base, placed in list(self._placed.items()):
            if wanted.get(base) != placed:
                removed.append(weakref.ref(self._machine.memory.remove(base).handle))
                del self._placed[base]
        refused = {}
        for base, each in wanted.items():
            if base in self._placed or each.file is None:
                continue
            fd = self._files[each.file].fd
            try:
                self._machine.memory.add_shared(base, fd, each.size, each.offset)
            except OverlapError as error:
                self._tell(each, str(error))
            except tuple(_REFUSALS) as error:
                refused[each] = ProtocolError(_REFUSALS.get(type(error), EINVAL), str(error))
            else:
                self._placed[base] = each
        return removed, refused

    def _tell(self, each: _Map, reason: str) -> None:
        """Say, once a guest, that devices do not reach what a client takes to be mapped."""
        message = each.base, each.size, reason
        if message not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(message)
            self._note("unreachable", base=each.base, size=each.size, reason=reason)

    def _forget(self, client: Hashable, gone: _Map) -> None:
        """Drop one map from the books; `_place` follows."""
        del self._maps[client][gone.base]
        if not self._maps[client]:
            del self._maps[client]
        if gone.file is None:
            return
        file = self._files[gone.file]
        file.users -= 1
        if not file.users:
            os.close(file.fd)
            del self._files[gone.file]

    # Unmapping.

    def unmap(self, client: Hashable, body: bytes) -> Unmapping:
        """Carry out DMA_UNMAP; the reply waits until nobody uses the memory.

        Raises:
            ProtocolError: EINVAL for a message that is none, ENOENT if that is not mapped.
        """
        argsz, flags, base, size = unpack(DMA_UNMAP, body)
        if argsz < DMA_UNMAP.size or flags & ~UNMAP_ALL:
            raise ProtocolError(EINVAL, f"unmap of {argsz} bytes, flags {flags:#x}")
        mine = self._maps.get(client, {})
        if flags & UNMAP_ALL:
            if base or size:
                raise ProtocolError(EINVAL, f"unmap of everything at {base:#x}+{size:#x}")
            gone = list(mine.values())
        else:
            if base not in mine or mine[base].size != size:
                raise ProtocolError(ENOENT, f"no map of {base:#x}+{size:#x}")
            gone = [mine[base]]
        return Unmapping(self, client, gone, body[: DMA_UNMAP.size])

    def finish_unmap(self, client: Hashable, gone: list[_Map]) -> list[weakref.ref[object]]:
        """Take maps away; return references to the mappings that were removed."""
        for each in gone:
            self._forget(client, each)
        removed, refused = self._place()
        for each, refusal in refused.items():
            self._tell(each, str(refusal))
        return removed

    def busy_ports(self) -> list[Port]:
        """Return the ports with transactions on their way to memory."""
        return [port for port in self._machine.ports if port.in_flight[1]]

    def drop(self, client: Hashable) -> None:
        """Take every map of a client away that is gone itself."""
        self.finish_unmap(client, list(self._maps.get(client, {}).values()))
        if not self._maps:
            self._told.clear()


class Unmapping:
    """A DMA_UNMAP on its way: transactions land, then views go, then the client is answered.

    Transactions that are past the IOMMU land while the memory is still there. Waiting for either
    has a limit: a transaction that has not landed by then finds no memory, and a view that is
    still there makes the unmap fail with EBUSY.
    """

    def __init__(
        self, memory: GuestMemory, client: Hashable, gone: list[_Map], reply: bytes
    ) -> None:
        self._memory = memory
        self._client = client
        self._gone = gone
        self._reply = reply
        self._deadline = time.monotonic() + UNMAP_PATIENCE
        self._busy = memory.busy_ports()
        self._views: list[weakref.ref[object]] | None = None

    def poll(self) -> bytes | None:
        """Return the reply's body, or None while somebody uses the memory.

        Raises:
            ProtocolError: EBUSY if a view of the memory does not go away.
        """
        late = time.monotonic() >= self._deadline
        if self._views is None:
            self._busy = [port for port in self._busy if port.in_flight[1]]
            if self._busy and not late:
                return None
            self._views = self._memory.finish_unmap(self._client, self._gone)
        if all(view() is None for view in self._views):
            return self._reply
        if late:
            raise ProtocolError(EBUSY, "a view of the memory is still in use")
        return None


def _checked_file(fd: int, end: int) -> tuple[int, int]:
    """Return device and inode of a file that can be shared up to `end`.

    Raises:
        ProtocolError: if it can shrink under us, must not be written, or is too short.
    """
    if not is_memory(fd):
        raise ProtocolError(EINVAL, "no memory file")
    # Its owner may give a huge page back, and if none is left then, our next access is a SIGBUS.
    if os.fstatvfs(fd).f_bsize != PAGE:
        raise ProtocolError(EACCES, "the memory's file has huge pages")
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ProtocolError(EACCES, "the memory's file is not sealed against shrinking")
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if seals & _NOT_WRITABLE or mode != os.O_RDWR:
        raise ProtocolError(EACCES, "the memory's file must not be written")
    status = os.fstat(fd)
    if status.st_size < end:
        raise ProtocolError(EINVAL, f"the file has {status.st_size:#x} bytes, {end:#x} are mapped")
    return status.st_dev, status.st_ino
