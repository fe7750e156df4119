"""Handle on a port of the core: where one PCI function's requests enter the fabric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from iommu_emu._core import ffi, lib
from iommu_emu.core.device_tlb import DeviceTlb
from iommu_emu.core.enums import Access, AddressType, Answer, AtomicKind, RequestFlag, Status
from iommu_emu.core.errors import (
    MAX_TRANSFER,
    U16,
    U32,
    U64,
    StateError,
    check,
    range_text,
    require_range,
)
from iommu_emu.core.records import Completion, CompletionDetails, PortRule, pasid_flags
from iommu_emu.core.tables import faults

if TYPE_CHECKING:
    from iommu_emu.core.machine import CoreMachine

BytesLike: TypeAlias = "bytes | bytearray | memoryview | NDArray[Any]"


_SUCCESS = Completion()
_SMALL = 4096  # bytes of the buffer that reads of this size and less share
_dma_read = lib.iemu_dma_read
_dma_write = lib.iemu_dma_write
_unpack = ffi.unpack


@dataclass(slots=True)
class _InFlight:
    completion: Completion
    buffer: Any
    length: int  # bytes to read; 0 for a write
    on_done: Callable[[Completion], None] | None


class Port:
    """Where one PCI function's requests enter the fabric.

    A transfer that passes at once returns a finished `Completion`; one that is in flight
    returns a pending one, which `poll` fills in. `blocked` is the status that every new
    transfer gets while the function must not send; None: it may. A transfer that runs past the
    end of the 64-bit address space is an Unsupported Request. `rules` are what the fabric
    decides before any IOMMU. `device_tlb` is the function's, None without ATS; while it is
    enabled, untranslated transfers go through it.
    """

    def __init__(self, machine: CoreMachine, segment: int, requester: int) -> None:
        require_range("segment", segment, U16)
        require_range("requester", requester, U16)
        error = ffi.new("int *")
        handle = lib.iemu_port_create(machine.handle, segment, requester, error)
        if not handle:
            check(error[0], f"port of {segment:04x}:{requester:#06x}")
        self.machine = machine
        self.segment = segment
        self.requester = requester
        self.blocked: Status | None = None
        self.latency = (0, 0)  # ns to the IOMMU, and from there to memory
        self.rules: tuple[PortRule, ...] = ()
        self.device_tlb: DeviceTlb | None = None
        self._handle = handle
        self._buffer = ffi.new("char[]", _SMALL)
        self._bytes = ffi.buffer(self._buffer)
        self._in_flight: dict[int, _InFlight] = {}

    def __repr__(self) -> str:
        state = "" if self.blocked is None else f", {self.blocked.name}"
        return f"<Port {self.segment:04x}:{self.requester:#06x}{state}>"

    def read(
        self, address: int, length: int, on_done: Callable[[Completion], None] | None = None
    ) -> Completion:
        """Read memory: untranslated, no PASID.

        Args:
            address: IOVA, 64 bits.
            length: bytes, 0..16 MiB; 0 is a zero-length read.
            on_done: called with the completion once it is there, before the return of this
                method if the read passes at once.

        Raises:
            ValueError: if address or length is outside its range.
        """
        if self.blocked is not None:
            return self._refused(self.blocked, address, on_done)
        if length > _SMALL:
            return self.transfer(Access.READ, address, length, on_done=on_done)
        try:
            status = _dma_read(self._handle, address, self._buffer, length)
        except OverflowError:
            raise _overflow(address, length) from None
        if status:
            return self._unfinished(status, address, length, length, on_done, self._buffer)
        completion = Completion(self._bytes[:length])
        if on_done is not None:
            on_done(completion)
        return completion

    def write(
        self, address: int, data: BytesLike, on_done: Callable[[Completion], None] | None = None
    ) -> Completion:
        """Write memory: untranslated, no PASID.

        Args:
            address: IOVA, 64 bits.
            data: 1 byte..16 MiB.
            on_done: called with the completion once it is there, before the return of this
                method if the write passes at once.

        Raises:
            ValueError: if address or the length of data is outside its range.
        """
        if self.blocked is not None:
            return self._refused(self.blocked, address, on_done)
        if type(data) is not bytes:
            data = ffi.from_buffer(data)
        length = len(data)
        try:
            status = _dma_write(self._handle, address, data, length)
        except OverflowError:
            raise _overflow(address, length) from None
        if status:
            if not 0 < length <= MAX_TRANSFER:
                require_range("length", length, MAX_TRANSFER, 1)
            return self._unfinished(status, address, length, 0, on_done, None)
        if on_done is not None:
            on_done(_SUCCESS)
        return _SUCCESS

    def transfer(
        self,
        access: Access,
        address: int,
        data: BytesLike | int,
        *,
        pasid: int | None = None,
        at: AddressType = AddressType.UNTRANSLATED,
        flags: RequestFlag = RequestFlag.NONE,
        posted: bool = False,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Read or write memory with any attributes of a request.

        Args:
            access: READ or WRITE.
            address: IOVA, or host physical address if `at` is TRANSLATED.
            data: what is written, or the number of bytes to read; at most 16 MiB.
            pasid: 20 bits; None: no PASID prefix.
            at: address type; a translation request reads 8 bytes (VT-d 6.1).
            flags: further attributes.
            posted: a write whose outcome nobody will ask for.
            on_done: called with the completion once it is there.

        Raises:
            ValueError: if an argument is outside its range.
        """
        if access is Access.READ:
            if not isinstance(data, int):
                raise ValueError("data of a read must be the number of bytes to read")
            require_range("length", data, MAX_TRANSFER)
            length = data
            buffer = ffi.new("char[]", max(length, 1))
        elif access is Access.WRITE:
            if isinstance(data, int):
                raise ValueError("data of a write must be bytes")
            buffer = ffi.from_buffer(data)
            length = len(buffer)
            require_range("length", length, MAX_TRANSFER, 1)
        else:
            raise ValueError(f"access must be READ or WRITE, not {access!r}")
        reads = access is Access.READ
        return self._transfer(
            buffer, length, reads, on_done, access, address, pasid, at, flags, posted=posted
        )

    def atomic(
        self,
        kind: AtomicKind,
        address: int,
        operand: int,
        compare: int | None = None,
        *,
        size: int = 8,
        pasid: int | None = None,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Do an AtomicOp; the completion's data is the old value, little endian.

        Args:
            kind: FETCH_ADD, SWAP or COMPARE_SWAP.
            address: IOVA, a multiple of `size`.
            operand: what is added, or swapped in.
            compare: COMPARE_SWAP only: swapped in if memory holds this.
            size: bytes, 4 or 8.
            pasid: 20 bits; None: no PASID prefix.
            on_done: called with the completion once it is there.

        Raises:
            ValueError: if an argument is outside its range.
        """
        if size not in (4, 8):
            raise ValueError(f"size must be 4 or 8, not {size}")
        if address % size:
            raise ValueError(f"address must be a multiple of {size}, not {address:#x}")
        limit = (1 << 8 * size) - 1
        require_range("operand", operand, limit)
        operands = operand.to_bytes(size, "little")
        if (kind is AtomicKind.COMPARE_SWAP) != (compare is not None):
            raise ValueError("compare belongs to COMPARE_SWAP, and to nothing else")
        if compare is not None:
            require_range("compare", compare, limit)
            operands = compare.to_bytes(size, "little") + operands
        buffer = ffi.new("char[]", operands.ljust(16, b"\0"))
        at, flags = AddressType.UNTRANSLATED, RequestFlag.NONE
        return self._transfer(
            buffer, size, True, on_done, Access.ATOMIC, address, pasid, at, flags, atomic=kind
        )

    def translation_request(
        self,
        address: int,
        *,
        no_write: bool = False,
        pasid: int | None = None,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Ask the IOMMU for one translation; `Translation.decode` reads the data that comes.

        Args:
            address: IOVA; it is the page around it that is asked for.
            no_write: the function will only read (NW).
            pasid: 20 bits; None: no PASID prefix.
            on_done: called with the completion once it is there.

        Raises:
            ValueError: if an argument is outside its range.
        """
        flags = RequestFlag.NO_WRITE if no_write else RequestFlag.NONE
        at = AddressType.TRANSLATION_REQUEST
        return self.transfer(
            Access.READ, address, 8, pasid=pasid, at=at, flags=flags, on_done=on_done
        )

    def _transfer(
        self,
        buffer: Any,
        length: int,
        reads: bool,
        on_done: Callable[[Completion], None] | None,
        access: Access,
        address: int,
        pasid: int | None,
        at: AddressType,
        flags: RequestFlag,
        *,
        posted: bool = False,
        atomic: int = 0,
    ) -> Completion:
        require_range("address", address, U64)
        if self.blocked is not None:
            return self._refused(self.blocked, address, on_done)
        transfer = ffi.new("struct iemu_transfer *")
        transfer.address = address
        transfer.length = length
        transfer.pasid, transfer.flags = pasid_flags(pasid, flags)
        transfer.access = access
        transfer.at = at
        transfer.atomic = atomic
        transfer.posted = posted
        details = ffi.new("struct iemu_completion *")
        status = lib.iemu_dma(self._handle, transfer, buffer, details)
        if status == lib.IEMU_PENDING and posted:
            return _SUCCESS
        if status:
            expected = length if reads else 0
            return self._unfinished(status, address, length, expected, on_done, buffer)
        completion = Completion(_unpack(buffer, length)) if reads else _SUCCESS
        if on_done is not None:
            on_done(completion)
        return completion

    def _refused(
        self, status: Status, address: int, on_done: Callable[[Completion], None] | None
    ) -> Completion:
        """Return the completion of a transfer that was not sent."""
        completion = Completion(b"", CompletionDetails(status, address, 0, self.machine.now))
        if on_done is not None:
            on_done(completion)
        return completion

    def _unfinished(
        self,
        status: int,
        address: int,
        length: int,
        expected: int,
        on_done: Callable[[Completion], None] | None,
        so_far: Any,
    ) -> Completion:
        """Return the completion of the last transfer, which failed or is in flight.

        `expected` is the number of bytes that will come back; those of the parts that passed
        at once are in `so_far`.
        """
        if status < 0:
            # A guest may tell a device any address: what runs past 2**64 is no user's mistake.
            if address + length > U64:
                return self._refused(Status.UNSUPPORTED_REQUEST, address, on_done)
            check(status, f"transfer of {range_text(address, length)}")
        struct = ffi.new("struct iemu_completion *")
        lib.iemu_dma_last(self._handle, struct)
        completion = Completion(b"", self._details(status, struct))
        if status == lib.IEMU_PENDING:
            buffer = ffi.new("char[]", max(expected, 16))
            if expected:
                ffi.memmove(buffer, so_far, expected)
            self._in_flight[struct.token] = _InFlight(completion, buffer, expected, on_done)
            self.machine.waiting[self] = None
        elif on_done is not None:
            on_done(completion)
        return completion

    def _details(self, status: int, struct: Any) -> CompletionDetails:
        cause = None
        if struct.diagnostic:
            unit = self.machine.routed_unit(self.segment, self.requester)
            if unit is not None:
                cause = faults(unit.vendor)[struct.diagnostic]
        return CompletionDetails(
            status=Status(status),
            address=struct.address,
            done=struct.done,
            time=struct.time,
            fault=struct.fault,
            diagnostic=struct.diagnostic,
            recorded=bool(struct.recorded),
            cause=cause,
        )

    def poll(self) -> int:
        """Fill in the completions that have arrived; return how many."""
        arrived = 0
        struct = ffi.new("struct iemu_completion *")
        for token, transfer in list(self._in_flight.items()):
            status = check(
                lib.iemu_dma_take(self._handle, token, transfer.buffer, struct), f"token {token}"
            )
            if status == lib.IEMU_PENDING:
                continue
            del self._in_flight[token]
            arrived += 1
            completion = transfer.completion
            if status == lib.IEMU_DONE:
                completion.data = _unpack(transfer.buffer, transfer.length)
            completion.details = self._details(status, struct)
            if transfer.on_done is not None:
                transfer.on_done(completion)
        if not self._in_flight:
            self.machine.waiting.pop(self, None)
        return arrived

    def set_latency(self, fabric: int, memory: int) -> None:
        """Set the latencies to the IOMMU and from there to memory, in ns."""
        require_range("fabric", fabric, U64 >> 1)
        require_range("memory", memory, U64 >> 1)
        lib.iemu_port_set_latency(self._handle, fabric, memory)
        self.latency = (fabric, memory)

    def set_requester(self, requester: int) -> None:
        """Set the requester ID with which later requests reach the IOMMU."""
        require_range("requester", requester, U16)
        if self._handle is not None:
            lib.iemu_port_set_requester(self._handle, requester)
        self.requester = requester

    def set_rules(self, rules: Sequence[PortRule]) -> None:
        """Set what the fabric decides before any IOMMU; the first rule that matches counts.

        Raises:
            ValueError: if a range of a rule is empty, or it is about no address type.
            FullError: if there are more than 4096.
        """
        self.rules = tuple(rules)
        if self._handle is None:
            return
        lib.iemu_port_clear_rules(self._handle)
        for rule in self.rules:
            types = sum(1 << at for at in rule.address_types)
            place = (rule.first, rule.last, *rule.requesters)
            struct = ffi.new("struct iemu_port_rule *", (*place, types, rule.verdict))
            code = lib.iemu_port_add_rule(self._handle, struct)
            if code:
                check(code, f"{rule}")

    def add_device_tlb(
        self,
        geometry: Mapping[str, int],
        answer: Answer = Answer.AFTER,
        delay: int = 0,
        owner: int = 0,
    ) -> DeviceTlb:
        """Give the function a device-TLB, empty and with ATS disabled.

        Args:
            geometry: values of `struct iemu_geometry`.
            answer: what it does when it is asked to invalidate.
            delay: ns from that to its answer.
            owner: of its messages, if `answer` is ASK; 32 bits.

        Raises:
            StateError: if it has one.
            ValueError: if an argument is outside its range.
        """
        self.device_tlb = DeviceTlb(self, geometry, answer, delay, owner)
        return self.device_tlb

    def complete_invalidation(self, tags: int, count: int = 1) -> Status:
        """Send an Invalidation Completion, asked for or not.

        Args:
            tags: ITag vector, 32 bits: a bit for each ITag.
            count: messages that have to name an ITag until it is done, 1..8.

        Returns:
            DONE; UNSUPPORTED_REQUEST if nobody takes it; REMOVED.

        Raises:
            ValueError: if an argument is outside its range.
        """
        require_range("tags", tags, U32)
        require_range("count", count, 8, 1)
        if self._handle is None:
            return Status.REMOVED
        return Status(check(lib.iemu_ats_complete(self._handle, tags, count), "completion"))

    @property
    def handle(self) -> Any:
        """The port on the C side.

        Raises:
            StateError: if the port was destroyed.
        """
        if self._handle is None:
            raise StateError(f"{self!r} was destroyed")
        return self._handle

    @property
    def in_flight(self) -> tuple[int, int]:
        """Transactions in the fabric (untranslated), and translated but not yet landed."""
        if self._handle is None:
            return 0, 0
        fabric, translated = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        lib.iemu_port_in_flight(self._handle, fabric, translated)
        return fabric[0], translated[0]

    def remove(self) -> None:
        """Remove the function by surprise (pci 8).

        Nothing new is sent. What was sent still arrives and is translated, its completions are
        discarded: the pending `Completion`s become REMOVED, and nobody is called.
        """
        if self._handle is None:
            return
        lib.iemu_port_remove(self._handle)
        self.blocked = Status.REMOVED
        for transfer in self._in_flight.values():
            address, now = transfer.completion.details, self.machine.now
            where = 0 if address is None else address.address
            transfer.completion.details = CompletionDetails(Status.REMOVED, where, 0, now)
        self._in_flight.clear()
        self.machine.waiting.pop(self, None)

    def destroy(self) -> None:
        """Remove the function and free the port on the C side; later calls are refused."""
        if self._handle is not None:
            self.remove()
            lib.iemu_port_destroy(self._handle)
            self._handle = None


def _overflow(address: int, length: int) -> ValueError:
    name, value, last = "length", length, MAX_TRANSFER
    if not 0 <= address <= U64:
        name, value, last = "address", address, U64
    return ValueError(f"{name} must be in 0x0..{last:#x}, not {value:#x}")
