"""A vfio-user client for tests: speaks the protocol to a server whose loop it turns itself."""

import array
import fcntl
import json
import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field

HEADER = struct.Struct("<HHIII")
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS = range(1, 7)
GET_IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET = range(7, 14)
DIRTY_PAGES, WRITE_MULTI, FEATURE, MIG_READ, MIG_WRITE = range(14, 19)
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
CONFIG = 7
INTX, MSI, MSIX, ERR, REQ = range(5)
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
PATIENCE = 10  # s

# What QEMU 11.1 proposes.
QEMU_CAPABILITIES = {
    "migration": {"pgsize": 4096, "max_bitmap_size": 268435456},
    "max_msg_fds": 16,
    "max_data_xfer_size": 1048576,
    "pgsizes": 4096,
    "max_dma_maps": 65535,
    "write_multiple": True,
}


def sealed_memory(size, seals=0x2):
    """Return a memory file of `size` bytes, sealed against shrinking unless told otherwise."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS
    return fd


def descriptors(expected=0):
    """Return how many descriptors this process has; if some are expected, once there are so few.

    What a server does not take is closed in a thread of its own.
    """
    deadline = time.monotonic() + PATIENCE
    while (number := len(os.listdir("/proc/self/fd"))) > expected > 0:
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    return number


@dataclass
class Message:
    id: int
    command: int
    flags: int
    error: int
    body: bytes
    fds: list = field(default_factory=list)


class Refused(Exception):  # noqa: N818 - reads as what it is
    """An error reply; `errno` is its code."""

    def __init__(self, errno):
        super().__init__(os.strerror(errno))
        self.errno = errno


class Client:
    """One connection to an endpoint of `server`, whose loop runs while a reply is awaited."""

    def __init__(self, server, sock):
        self.server = server
        self.sock = sock
        sock.setblocking(False)
        self._next_id = 0x100
        self._received = b""

    # Messages.

    def send_raw(self, data, fds=()):
        """Send bytes, with descriptors beside the first one; the server reads in between."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        data = memoryview(data)
        while data:
            try:
                sent = self.sock.sendmsg([data], ancillary)
            except BlockingIOError:
                self.server.run_once(0.01)
                continue
            data, ancillary = data[sent:], []

    def send(self, command, body=b"", fds=(), flags=0):
        """Send a command; returns its message ID."""
        self._next_id = (self._next_id + 1) & 0xFFFF
        header = HEADER.pack(self._next_id, command, HEADER.size + len(body), flags, 0)
        self.send_raw(header + body, fds)
        return self._next_id

    def receive(self):
        """Return the next message; None if the server has closed the connection."""
        head = self._take(HEADER.size)
        if head is None:
            return None
        message_id, command, size, flags, error = HEADER.unpack(head)
        body = self._take(size - HEADER.size)
        return Message(message_id, command, flags, error, body)

    def _take(self, count):
        deadline = time.monotonic() + PATIENCE
        while len(self._received) < count:
            self.server.run_once(0)
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                assert time.monotonic() < deadline, "no answer"
                self.server.run_once(0.01)
                continue
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._received += data
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    @property
    def silent(self):
        """Whether nothing comes from the server."""
        for _ in range(3):
            self.server.run_once(0)
        with suppress(BlockingIOError):
            self._received += self.sock.recv(1 << 20)
        return not self._received

    @property
    def ended(self):
        """Whether the server has closed the connection."""
        while (message := self.receive()) is not None:
            assert message.flags & REPLY
        return True

    def call(self, command, body=b"", fds=()):
        """Send a command and return the body of its reply.

        Raises:
            Refused: if it is an error.
        """
        message_id = self.send(command, body, fds)
        reply = self.receive()
        assert reply is not None, "the server closed the connection"
        assert (reply.id, reply.command) == (message_id, command)
        if reply.flags & ERROR:
            assert reply.body == b""
            raise Refused(reply.error)
        assert reply.flags == REPLY
        return reply.body

    # Commands.

    def negotiate(self, capabilities=None, major=0, minor=0):
        """Agree on a version; returns the server's capabilities."""
        text = json.dumps({"capabilities": capabilities or QEMU_CAPABILITIES}).encode() + b"\0"
        reply = self.call(VERSION, struct.pack("<HH", major, minor) + text)
        assert reply[:4] == struct.pack("<HH", 0, 0)
        return json.loads(reply[4:-1])["capabilities"]

    def map(self, base, size, fd=None, offset=0, flags=3):
        body = struct.pack("<IIQQQ", 32, flags, offset, base, size)
        return self.call(DMA_MAP, body, () if fd is None else (fd,))

    def unmap(self, base, size, flags=0):
        return self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, flags, base, size))

    def read(self, region, offset, count):
        head = struct.pack("<QII", offset, region, count)
        reply = self.call(REGION_READ, head)
        assert reply[:16] == head
        return reply[16:]

    def write(self, region, offset, data):
        head = struct.pack("<QII", offset, region, len(data))
        assert self.call(REGION_WRITE, head + data) == head

    def read32(self, region, offset):
        return int.from_bytes(self.read(region, offset, 4), "little")

    def write32(self, region, offset, value):
        self.write(region, offset, value.to_bytes(4, "little"))

    def region_info(self, index):
        """Return flags and size of a region."""
        reply = self.call(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
        argsz, flags, got, cap_offset, size, offset = struct.unpack("<IIIIQQ", reply)
        assert (argsz, got, cap_offset, offset) == (32, index, 0, 0)
        return flags, size

    def irq_info(self, index):
        """Return flags and count of an interrupt type."""
        argsz, flags, got, count = struct.unpack(
            "<IIII", self.call(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        )
        assert (argsz, got) == (16, index)
        return flags, count

    def set_irqs(self, index, flags, start=0, count=1, data=b"", fds=()):
        body = struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data
        assert self.call(SET_IRQS, body, fds) == b""

    def close(self):
        self.sock.close()
        for _ in range(3):
            self.server.run_once(0)
