"""The other process of the vfio-user benchmark: asks, and waits for each answer.

Its arguments are the descriptors of the server's socket and of an echo's socket, and how many
round trips a burst has. Each byte on standard input is a burst: `s` to the server, `e` to the
echo; each end is a byte on standard output.
"""

import os
import socket
import sys
from struct import pack

REGION_READ = pack("<HHIIIQII", 1, 9, 32, 0, 0, 0, 0, 4)  # BAR 0, offset 0, 4 bytes
VERSION = pack("<HHIIIHH", 0, 1, 20, 0, 0, 0, 0)
ANSWER = 36  # bytes


def main() -> None:
    """Run bursts until standard input ends."""
    server, echo = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    count = int(sys.argv[3])
    server.sendall(VERSION)
    server.recv(4096)
    sockets = {b"s": server, b"e": echo}
    while (which := os.read(0, 1)) in sockets:
        sock = sockets[which]
        for _ in range(count):
            sock.send(REGION_READ)
            if len(sock.recv(4096)) != ANSWER:
                raise SystemExit("an answer of another size")
        os.write(1, b".")


if __name__ == "__main__":
    main()
