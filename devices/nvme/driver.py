"""A small software driver for an NVMe controller: queues in RAM, commands, completions."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommu_emu.devices.driver import Buffer, DeviceDriver
from iommu_emu.devices.nvme.controller import Nvme
from iommu_emu.devices.nvme.specification import AdminOpcode, NvmOpcode, Register, StatusCode
from iommu_emu.devices.nvme.structures import COMPLETION, SUBMISSION, Completion, SubmissionEntry

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

PAGE = 4096
_ENABLE = 6 << 16 | 4 << 20 | 1  # sizes of entries, and EN
_CONTIGUOUS = 1
_INTERRUPTS = 1 << 1

__all__ = ["NvmeDriver", "QueuePair", "Reply"]


@dataclass(frozen=True)
class Reply:
    """A completion, as software reads it.

    Attributes:
        cid: of the command.
        status: status code type and status code.
        result: dword 0.
        head: submission queue head.
        queue: submission queue ID.
        more: the error log tells more.
        dnr: do not retry.
    """

    cid: int
    status: StatusCode
    result: int
    head: int
    queue: int
    more: bool
    dnr: bool

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return self.status is StatusCode.SUCCESS


class QueuePair:
    """A submission queue and its completion queue.

    Attributes:
        qid: ID of both.
        size: entries of both.
        submission: its memory.
        completion: its memory.
        tail: where the next command goes.
        head: where the next completion is looked for.
        phase: phase tag that tells a new completion.
    """

    def __init__(self, qid: int, size: int, submission: Buffer, completion: Buffer) -> None:
        self.qid = qid
        self.size = size
        self.submission = submission
        self.completion = completion
        self.tail = self.head = 0
        self.phase = 1
        self.next_cid = 0


class NvmeDriver(DeviceDriver[Nvme]):
    """Programs one controller.

    Args:
        machine: the machine.
        device: the controller.
        memory: RAM for queues and buffers, as physical addresses; both ends multiples of 4096.
        iova: where the controller sees `memory`; None: at its physical addresses.

    Attributes:
        admin: the admin queues, once enabled.
        io: the I/O queue pairs by ID.
    """

    def __init__(
        self, machine: Machine, device: Nvme, memory: range, iova: int | None = None
    ) -> None:
        super().__init__(machine, device)
        self.admin: QueuePair | None = None
        self.io: dict[int, QueuePair] = {}
        self._memory = memory
        self._offset = 0 if iova is None else iova - memory.start
        self._next = memory.start
        self._page_size = PAGE

    # Doorbells and memory.

    def ring_tail(self, qid: int, value: int) -> None:
        """Write the tail doorbell of a submission queue."""
        self.write(Register.DOORBELLS + 8 * qid, value)

    def ring_head(self, qid: int, value: int) -> None:
        """Write the head doorbell of a completion queue."""
        self.write(Register.DOORBELLS + 8 * qid + 4, value)

    def allocate(self, size: int) -> Buffer:
        """Return memory of its own pages; there is no way to give it back.

        Raises:
            MemoryError: if the driver's memory is used up.
        """
        start = -(-self._next // self._page_size) * self._page_size
        self._next = start + size
        if self._next > self._memory.stop:
            raise MemoryError(f"no {size} bytes left of {self._memory}")
        return Buffer(start, start + self._offset, size)

    # Enabling, and the way back.

    def enable(self, entries: int = 32, *, page_shift: int = 12, check: bool = True) -> None:
        """Set the admin queues up and enable the controller.

        Args:
            entries: of each admin queue, 2..4096.
            page_shift: log2 of the memory page size.
            check: raise if the controller does not become ready.

        Raises:
            RuntimeError: if it does not become ready.
        """
        self._page_size = 1 << page_shift
        self.admin = QueuePair(0, entries, *self._queue_memory(entries))
        self.io.clear()
        self.write(Register.AQA, (entries - 1) * 0x10001)
        self.write(Register.ASQ, self.admin.submission.iova, 8)
        self.write(Register.ACQ, self.admin.completion.iova, 8)
        self.write(Register.CC, _ENABLE | page_shift - 12 << 7)
        if check and self.read(Register.CSTS) != 1:
            raise RuntimeError(f"not ready: CSTS is {self.read(Register.CSTS):#x}")

    def disable(self) -> None:
        """Reset the controller; it is over when CSTS.RDY is 0."""
        self.write(Register.CC, self.read(Register.CC) & ~1)

    def shut_down(self) -> None:
        """Ask for a normal shutdown; it is over when CSTS.SHST is 2."""
        self.write(Register.CC, self.read(Register.CC) | 1 << 14)

    def _queue_memory(self, entries: int) -> tuple[Buffer, Buffer]:
        submission = self.allocate(SUBMISSION.size * entries)
        completion = self.allocate(COMPLETION.size * entries)
        # A phase tag that was there before would be taken for that of a completion.
        self.machine.memory.write(completion.physical, bytes(completion.size))
        return submission, completion

    def create_queues(self, qid: int = 1, entries: int = 32, *, vector: int = 0) -> QueuePair:
        """Create an I/O queue pair.

        Raises:
            RuntimeError: if the controller refuses.
        """
        submission, completion = self._queue_memory(entries)
        pair = QueuePair(qid, entries, submission, completion)
        size = (entries - 1) << 16 | qid
        for opcode, memory, dword11 in (
            (AdminOpcode.CREATE_CQ, completion, vector << 16 | _INTERRUPTS | _CONTIGUOUS),
            (AdminOpcode.CREATE_SQ, submission, qid << 16 | _CONTIGUOUS),
        ):
            reply = self.execute(opcode, prp1=memory.iova, cdw10=size, cdw11=dword11)
            if not reply.ok:
                raise RuntimeError(f"{opcode.name} of queue {qid}: {reply.status.name}")
        self.io[qid] = pair
        return pair

    # Commands.

    def put(self, pair: QueuePair, opcode: int, *, cid: int | None = None, **fields: int) -> int:
        """Put a command into a queue, without the doorbell; return its command ID."""
        if cid is None:
            cid = pair.next_cid
            pair.next_cid = (cid + 1) & 0xFFFF
        entry = SUBMISSION.pack(*SubmissionEntry(opcode, cid=cid, **fields))
        address = pair.submission.physical + SUBMISSION.size * pair.tail
        self.machine.memory.write(address, entry)
        pair.tail = (pair.tail + 1) % pair.size
        return cid

    def submit(self, pair: QueuePair, opcode: int, **fields: int) -> int:
        """Put a command into a queue and ring its doorbell; return its command ID."""
        cid = self.put(pair, opcode, **fields)
        self.ring_tail(pair.qid, pair.tail)
        return cid

    def peek(self, pair: QueuePair) -> Reply | None:
        """Return the next completion, and leave it there; None: there is none."""
        address = pair.completion.physical + COMPLETION.size * pair.head
        entry = Completion._make(
            COMPLETION.unpack(self.machine.memory.read(address, COMPLETION.size))
        )
        if entry.status & 1 != pair.phase:
            return None
        status = entry.status >> 1
        return Reply(
            cid=entry.cid,
            status=StatusCode(status & 0x7FF),
            result=entry.result,
            head=entry.head,
            queue=entry.queue,
            more=bool(status >> 13 & 1),
            dnr=bool(status >> 14 & 1),
        )

    def take(self, pair: QueuePair, *, ring: bool = True) -> Reply | None:
        """Consume the next completion; None: there is none.

        Args:
            pair: whose.
            ring: tell the controller by the doorbell.
        """
        reply = self.peek(pair)
        if reply is None:
            return None
        pair.head += 1
        if pair.head == pair.size:
            pair.head = 0
            pair.phase ^= 1
        if ring:
            self.ring_head(pair.qid, pair.head)
        return reply

    def wait(self, pair: QueuePair) -> Reply:
        """Consume the next completion, and let virtual time pass until it is there.

        Raises:
            TimeoutError: if nothing is left that could bring it.
        """
        while (reply := self.take(pair)) is None:
            if not self.machine.clock.run_to_next_event():
                raise TimeoutError(f"no completion in queue {pair.qid}, and no event is due")
        return reply

    def execute(self, opcode: int, pair: QueuePair | None = None, **fields: int) -> Reply:
        """Do one command and wait for its completion.

        Args:
            opcode: what to do.
            pair: the queue; None: the admin queue.
            **fields: of the submission queue entry.

        Raises:
            RuntimeError: if the controller has not been enabled.
            TimeoutError: if nothing is left that could complete it.
        """
        pair = pair or self.admin
        if pair is None:
            raise RuntimeError("enable the controller first")
        self.submit(pair, opcode, **fields)
        return self.wait(pair)

    def transfer(
        self, opcode: NvmOpcode, first: int, blocks: int, buffer: Buffer, **fields: int
    ) -> Reply:
        """Read, write or compare blocks by I/O queue 1, with a PRP list where one is needed.

        Args:
            opcode: of a command with data.
            first: block.
            blocks: how many, 1..65536.
            buffer: where the data is, at the start of a page.
            **fields: of the submission queue entry, beside.
        """
        size = blocks * self.device.medium.block_size
        pages = range(buffer.iova + PAGE, buffer.iova + size, PAGE)
        second = pages[0] if len(pages) == 1 else self._list(pages) if pages else 0
        values = {
            "nsid": 1,
            "prp1": buffer.iova,
            "prp2": second,
            "cdw10": first & 0xFFFF_FFFF,
            "cdw11": first >> 32,
            "cdw12": blocks - 1,
        }
        return self.execute(opcode, self.io[1], **values | fields)

    def _list(self, pages: range) -> int:
        """Store a PRP list of up to 512 entries, in one page; return its IOVA."""
        memory = self.allocate(PAGE)
        self.machine.memory.write(memory.physical, struct.pack(f"<{len(pages)}Q", *pages))
        return memory.iova
