"""The qtest client: against a scripted server, and against a real QEMU."""

from __future__ import annotations

import base64
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iommu_emu.qtest import client_pci as pci
from iommu_emu.qtest.client import Batch, DisconnectedError, Later, QtestClient, QtestError
from iommu_emu.qtest.client_process import QemuDied, QemuProcess
from iommu_emu.qtest.client_qmp import QmpClient

DOCUMENT = Path(__file__).parents[2] / "docs" / "qtest-client.md"
Q35 = ["-machine", "q35", "-m", "64M"]
EDU = 5 << 3  # 00:05.0
EDU_BAR = 0xE000_0000
LIVENESS = 0x04


class Server:
    """The other end of a connection: answers each line as told, and keeps what was asked."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.asked: list[str] = []
        self.mine, theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(theirs, answer))
        self._thread.start()

    def _serve(self, connection: socket.socket, answer: Callable[[str], str]) -> None:
        received = b""
        with connection:
            while data := connection.recv(1 << 16):
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    self.asked.append(line.decode())
                    reply = answer(self.asked[-1])
                    if not reply:
                        return
                    connection.sendall(reply.encode() + b"\n")

    def join(self) -> None:
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Server, QtestClient]]]:
    open_ones: list[tuple[Server, QtestClient]] = []

    def start(answer: Callable[[str], str], **options) -> tuple[Server, QtestClient]:
        server = Server(answer)
        open_ones.append((server, QtestClient(server.mine, **options)))
        return open_ones[-1]

    yield start
    for server, client in open_ones:
        client.close()
        server.join()


# ---- the protocol -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "line", "reply", "value"),
    [
        (lambda c: c.read(0x10, 4), "readl 0x10", "OK 0x0000000000000007", 7),
        (lambda c: c.read(0x10, 8), "readq 0x10", "OK 0xffffffffffffffff", (1 << 64) - 1),
        (lambda c: c.write(0x10, 2, 9), "writew 0x10 0x9", "OK", None),
        (lambda c: c.read_block(0x10, 3), "b64read 0x10 0x3", "OK AQID", b"\1\2\3"),
        (lambda c: c.write_block(0x10, b"\1\2\3"), "b64write 0x10 0x3 AQID", "OK", None),
        (lambda c: c.port_read(0xCFC, 1), "inb 0xcfc", "OK 0x00ff", 255),
        (lambda c: c.port_write(0xCF8, 4, 1), "outl 0xcf8 0x1", "OK", None),
        (lambda c: c.clock_step(5), "clock_step 5", "OK 12", 12),
        (lambda c: c.clock_step(), "clock_step", "OK 12", 12),
        (lambda c: c.clock_set(20), "clock_set 20", "OK 20", 20),
        (lambda c: c.intercept_interrupts("ioapic"), "irq_intercept_in ioapic", "OK", None),
    ],
)
def test_client_speaks_the_protocol(serve, act, line, reply, value):
    server, client = serve(lambda asked: reply)
    assert act(client) == value
    assert server.asked == [line]


def test_client_does_not_ask_for_nothing(serve):
    server, client = serve(lambda asked: "OK")
    assert client.read_block(0, 0) == b""
    client.write_block(0, b"")
    assert server.asked == []


def test_client_batch_sends_all_and_settles_all(serve):
    server, client = serve(lambda asked: f"OK {int(asked.split()[1], 0) + 1:#x}")
    batch = client.batch()
    found = [batch.read(n, 4) for n in range(2000)]
    assert len(batch) == 2000
    batch.run()
    assert [each.value for each in found] == list(range(1, 2001))
    assert (len(batch), len(server.asked)) == (0, 2000)


def test_client_batch_survives_replies_larger_than_any_buffer(serve):
    big = base64.b64encode(bytes(1 << 18)).decode()
    _, client = serve(lambda asked: f"OK {big}")
    batch = client.batch()
    found = [batch.read_block(0, 1 << 18) for _ in range(40)]
    batch.run()
    assert {each.value for each in found} == {bytes(1 << 18)}


def test_client_result_of_a_batch_that_has_not_run_is_refused():
    later: Later[int] = Later()
    assert not later.ready
    with pytest.raises(QtestError, match="has not run"):
        _ = later.value


def test_client_refused_command_is_an_error_with_its_words(serve):
    _, client = serve(lambda asked: "FAIL Unknown command 'readl'")
    with pytest.raises(QtestError, match=r"\['readl', '0x0'\] was refused: FAIL Unknown"):
        client.read(0, 4)


def test_client_notices_a_server_that_closes(serve):
    answers = iter(["OK 0x1", ""])
    _, client = serve(lambda asked: next(answers))
    batch = client.batch()
    first, second = batch.read(0, 4), batch.read(4, 4)
    with pytest.raises(DisconnectedError):
        batch.run()
    assert (first.value, second.ready) == (1, False)


def test_client_gives_up_on_a_silent_server():
    mine, theirs = socket.socketpair()
    with (
        theirs,
        QtestClient(mine, timeout=0.05) as client,
        pytest.raises(QtestError, match=r"in 0\.05 s"),
    ):
        client.read(0, 4)


def test_client_keeps_interrupts_apart_from_replies(serve):
    _, client = serve(lambda asked: "IRQ raise 3\nIRQ lower 3\nIRQ raise 4\nOK 0x5")
    assert client.read(0, 4) == 5
    assert client.interrupts == [("raise", 3), ("lower", 3), ("raise", 4)]
    assert client.levels == {3: False, 4: True}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda b: b.read(0, 3), r"size must be one of \[1, 2, 4, 8\], not 3"),
        (lambda b: b.port_read(0, 8), r"size must be one of \[1, 2, 4\], not 8"),
        (lambda b: b.write(0, 1, 256), "value must fit in 1 bytes, not 0x100"),
        (lambda b: pci.enable_ecam(b, 0x1000), "base must be a multiple of 0x10000000"),
    ],
)
def test_client_arguments_out_of_range_are_refused(serve, act, message):
    _, client = serve(lambda asked: "OK")
    with pytest.raises(ValueError, match=message):
        act(Batch(client))


# ---- QMP -----------------------------------------------------------------------------------------

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}}}


def qmp(*messages: object) -> tuple[socket.socket, QmpClient]:
    """Return a QMP client whose server says all its messages at once."""
    mine, theirs = socket.socketpair()
    said = [GREETING, {"return": {}}, *messages]
    theirs.sendall("".join(json.dumps(each) + "\r\n" for each in said).encode())
    return theirs, QmpClient(mine, timeout=5)


def test_qmp_client_keeps_events_that_come_before_a_result():
    theirs, client = qmp({"event": "RESET"}, {"return": {"status": "running"}})
    with theirs:
        assert client.version == (11, 1, 3)
        assert client.execute("query-status") == {"status": "running"}
        assert client.wait_event("RESET") == {"event": "RESET"}
        assert client.events == []
        client.close()


def test_qmp_client_error_has_the_command_and_the_reason():
    theirs, client = qmp({"error": {"class": "GenericError", "desc": "no such thing"}})
    with theirs:
        with pytest.raises(QtestError, match="stop: no such thing"):
            client.execute("stop")
        client.close()


def test_qmp_client_refuses_what_is_no_greeting():
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall(b'{"hello": 1}\n')
        with pytest.raises(QtestError, match="not the greeting of a QMP server"):
            QmpClient(mine, timeout=5)


# ---- a real QEMU ---------------------------------------------------------------------------------


def test_qemu_memory_is_what_was_written(qemu):
    with QemuProcess(qemu.argv, Q35) as process:
        process.qtest.write_block(0x10_0000, bytes(range(256)))
        assert process.qtest.read(0x10_0010, 4) == 0x13121110
        assert process.qmp.version == qemu.version


def test_qemu_function_is_found_placed_and_used(qemu):
    with QemuProcess(qemu.argv, [*Q35, "-device", "edu,addr=5.0"]) as process:
        assert pci.bar_size(process.qtest, EDU) == 1 << 20
        batch = process.qtest.batch()
        identity = pci.config_read(batch, EDU, 0, 4)
        pci.place_bar(batch, EDU, 0, EDU_BAR)
        pci.turn_on(batch, EDU)
        batch.write(EDU_BAR + LIVENESS, 4, 0x1234)
        alive = batch.read(EDU_BAR + LIVENESS, 4)
        batch.run()
        assert (identity.value, alive.value) == (0x11E8_1234, 0xFFFF_EDCB)


def test_qemu_configuration_space_is_in_memory_where_ecam_is(qemu):
    with QemuProcess(qemu.argv, [*Q35, "-device", "edu,addr=5.0"]) as process:
        batch = process.qtest.batch()
        pci.enable_ecam(batch, 0xB000_0000)
        identity = batch.read(pci.ecam_address(0xB000_0000, EDU, 0), 4)
        batch.run()
        assert identity.value == 0x11E8_1234


def test_qemu_interrupts_of_a_device_are_intercepted(qemu):
    with QemuProcess(qemu.argv, [*Q35, "-device", "edu,addr=5.0"]) as process:
        process.qtest.intercept_interrupts("ioapic")
        batch = process.qtest.batch()
        pci.place_bar(batch, EDU, 0, EDU_BAR)
        pci.turn_on(batch, EDU)
        batch.write(EDU_BAR + 0x60, 4, 1)
        batch.write(EDU_BAR + 0x64, 4, 1)
        batch.read(EDU_BAR, 4)
        batch.run()
        assert [change for change, _ in process.qtest.interrupts] == ["raise", "lower"]


def test_qemu_clock_moves_only_when_told(qemu):
    with QemuProcess(qemu.argv, Q35) as process:
        before = process.qtest.clock_step(1000)
        assert process.qtest.clock_step(1000) == before + 1000
        assert process.qtest.clock_set(before + 5000) == before + 5000


def test_qemu_reset_forgets_registers(qemu):
    with QemuProcess(qemu.argv, [*Q35, "-device", "intel-iommu"]) as process:
        process.qtest.write(0xFED9_0040, 4, 0xFEE0_0000)
        process.reset()
        assert process.qtest.read(0xFED9_0040, 4) == 0


def test_qemu_that_does_not_start_says_why(qemu):
    with pytest.raises(QemuDied, match=r"ended with status 1: .*no-such-device") as death:
        QemuProcess(qemu.argv, [*Q35, "-device", "no-such-device"])
    assert death.value.status == 1


def test_qemu_that_is_killed_is_an_error_with_the_signal(qemu):
    with QemuProcess(qemu.argv, Q35) as process:
        process.kill()
        with pytest.raises(QemuDied, match="ended with SIGKILL") as death, process.noticing():
            process.qtest.read(0, 4)
        assert death.value.status == -9


def test_qemu_command_that_never_connects_is_an_error():
    with pytest.raises(QemuDied, match="status 3: I am no QEMU"):
        QemuProcess(
            [
                sys.executable,
                "-c",
                "import sys; print('I am no QEMU', file=sys.stderr); sys.exit(3)",
            ]
        )


def test_document_example_runs_as_shown(qemu, capsys):
    text = DOCUMENT.read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    shown = text.partition("It prints\n\n")[2].partition("\n\n")[0]
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == [line[4:] for line in shown.splitlines()]
