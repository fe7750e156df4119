"""What a region read costs a vfio-user client, beside the bare echo of two processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from iommu_emu.devices import Bar, Device
from iommu_emu.machine import Machine
from iommu_emu.vfio_user import Server

BURST = 500  # round trips
ROUNDS = 30
REQUEST, ANSWER = 32, 36  # bytes


class Register(Device):
    """A device with one register."""

    bar_layout = (Bar(0, 4096),)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Return the register."""
        return 0x12345678


@pytest.fixture
def bursts() -> Iterator[dict[str, Callable[[], None]]]:
    """Bursts of round trips with another process: "subject" by our server, "floor" by an echo."""
    with Server(Machine(memory=())) as server:
        endpoint = server.serve(Register(), None, "00:05.0")
        ours, theirs = socket.socketpair()
        echo, their_echo = socket.socketpair()
        script = Path(__file__).parent / "vfio_user_asker.py"
        numbers = [str(number) for number in (theirs.fileno(), their_echo.fileno(), BURST)]
        process = subprocess.Popen(
            [sys.executable, str(script), *numbers],
            pass_fds=[theirs.fileno(), their_echo.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        theirs.close()
        their_echo.close()
        assert process.stdin is not None
        assert process.stdout is not None
        start, end = process.stdin.fileno(), process.stdout.fileno()
        ended: list[bytes] = []
        endpoint.connect(ours)
        server.watch(end, lambda: ended.append(os.read(end, 1)))
        server.run_until(lambda: endpoint.plugged, 10)

        def subject() -> None:
            ended.clear()
            os.write(start, b"s")
            while not ended:
                server.run_once()

        def floor() -> None:
            os.write(start, b"e")
            answer = bytes(ANSWER)
            for _ in range(BURST):
                echo.recv(REQUEST)
                echo.send(answer)
            os.read(end, 1)

        yield {"subject": subject, "floor": floor}
        server.unwatch(end)
        process.stdin.close()
        process.stdout.close()
        process.wait(10)
        echo.close()


@pytest.mark.parametrize("which", ["subject", "floor"])
def test_region_read(
    which: str, bursts: dict[str, Callable[[], None]], benchmark: BenchmarkFixture
) -> None:
    """One region read after the other: request, model, answer."""
    timed = bursts[which]
    other = bursts["floor" if which == "subject" else "subject"]
    times: list[int] = []

    def run() -> None:
        started = perf_counter_ns()
        timed()
        times.append(perf_counter_ns() - started)

    benchmark.group = f"vfio_user_region_read: {BURST} operations"
    benchmark.pedantic(run, setup=lambda: other(), rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["operations"] = BURST
    benchmark.extra_info["ns_per_operation"] = median(times) / BURST
