"""The server's process: how it starts, whom it serves, and how it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from installed_command import IOMMU_EMU
from qtest_peer import SERVER, TIMEOUT, EndedError, Line, Peer, accept, listen, run

ROOT = Path(__file__).parents[2]


def connect(path):
    """Connect to a server that is about to listen."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(TIMEOUT)
    try:
        stream.connect(str(path))
    except OSError:
        stream.close()
        raise
    return stream


def test_server_connects_to_both_sockets_and_greets():
    with Peer("-machine none") as peer:
        assert peer.ask("endianness") == "OK little"
        version = peer.qmp_receive()["QMP"]["version"]
        assert version["qemu"] == {"major": 11, "minor": 1, "micro": 0}


def test_server_sigterm_is_a_shutdown_with_status_0():
    with Peer("-machine q35") as peer:
        peer.qmp_negotiate()
        peer.process.send_signal(signal.SIGTERM)
        event = json.loads(peer.qmp.receive())
        assert event["data"] == {"guest": False, "reason": "host-signal"}
        assert peer.end() == (0, "")


def test_server_quit_is_answered_and_ends_with_status_0():
    with Peer("-machine none") as peer:
        peer.qmp_negotiate()
        assert peer.execute("quit") == {"return": {}}
        assert peer.events[-1]["event"] == "SHUTDOWN"
        peer.process.send_signal(signal.SIGTERM)  # as libqtest does, without waiting
        assert peer.end() == (0, "")


def test_server_ends_with_its_clients():
    with Peer("-machine q35") as peer:
        peer.qtest.send("writel 0x1000 ")
        peer.qtest.stream.close()
        peer.qmp.stream.close()
        assert peer.end() == (0, "")


def test_server_goes_on_while_the_monitor_is_connected():
    with Peer("-machine q35") as peer:
        peer.qtest.stream.close()
        peer.qmp_negotiate()
        assert peer.execute("query-status")["return"]["running"] is True


def test_server_ends_with_its_parent(tmp_path):
    listeners = [listen(tmp_path / "qtest"), listen(tmp_path / "qmp")]
    line = [
        *SERVER,
        *("-machine", "none", "-qtest", f"unix:{tmp_path}/qtest", "-qmp", f"unix:{tmp_path}/qmp"),
        *("-run-with", "exit-with-parent=on", "-qtest-log", "none"),
    ]
    code = f"import subprocess; subprocess.Popen({line!r}); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    ends = [Line(accept(listener)) for listener in listeners]
    try:
        ends[0].send("endianness\n")
        assert ends[0].receive() == "OK little"
        parent.kill()
        parent.communicate()
        ends[0].wait_for_end()
    finally:
        parent.kill()
        parent.communicate()
        for end in ends:
            end.stream.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("-machine q35 -bogus", "-bogus: invalid option"),
        ("-machine pc -qtest stdio", '-machine pc: unsupported machine type: "pc"'),
        ("-machine q35", "nobody to serve"),
        ("-machine q35 -qtest unix:/nowhere/socket", "Failed to connect to '/nowhere/socket'"),
        ("-machine q35 -qtest stdio -device nvme", "'nvme' is not a valid device model name"),
        ("-machine q35 -qtest stdio -device edu,x=1", "Property 'edu.x' not found"),
        (
            "-machine q35 -qtest stdio -device intel-iommu,scalable-mode=on",
            "Property 'intel-iommu.scalable-mode' cannot be 'on': "
            "scalable mode (ECAP.SMTS) is not implemented",
        ),
    ],
)
def test_server_refuses_with_status_1_and_the_reason(arguments, reason):
    status, output, error = run(arguments)
    assert (status, output) == (1, "")
    assert reason in error.splitlines()[-1]


def test_server_connects_before_it_refuses_a_device():
    with Peer("-machine q35 -device bogus") as peer:
        with pytest.raises(EndedError):
            peer.ask("endianness")
        status, error = peer.end()
        assert status == 1
        assert "'bogus' is not a valid device model name" in error


def test_server_version_names_qemu_and_us():
    status, output, _ = run("-version")
    assert status == 0
    assert output.startswith("QEMU emulator version 11.1.0 (iommu-emu ")


def test_server_help_names_every_device():
    _, output, _ = run("-help")
    for name in ("intel-iommu", "amd-iommu", "edu", "iommu-testdev"):
        assert f"-device {name}" in output


def test_server_that_listens_takes_one_client_after_another(tmp_path):
    path = tmp_path / "qtest"
    process = subprocess.Popen(
        [
            *(*SERVER, "-machine", "q35", "-qtest", f"unix:{path},server=on,wait=off"),
            *("-qtest-log", "none", "-qmp", "stdio"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdout.readline()  # the greeting: it listens by now
        for value in (1, 2):
            client = Line(connect(path))
            client.send(f"writel 0x1000 {value}\nreadl 0x1000\n")
            assert client.receive() == "OK"
            assert client.receive() == f"OK {value:#018x}"
            client.stream.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.communicate()


def test_server_survives_a_client_that_does_not_read(tmp_path):
    with Peer("-machine q35") as peer:
        peer.qtest.send("read 0 0x80000\n" * 16)
        for _ in range(16):
            assert len(peer.qtest.receive()) == len("OK 0x") + (1 << 20)


def test_server_answers_a_line_that_is_too_long():
    with Peer("-machine q35") as peer:
        chunk = "0" * (1 << 20)
        for _ in range(34):
            peer.qtest.send(chunk)
        assert peer.ask("").startswith("FAIL a line must be at most")
        assert peer.ask("endianness") == "OK little"


def test_server_log_has_both_directions(tmp_path):
    log = tmp_path / "log"
    with Peer(f"-machine q35 -qtest-log {log}") as peer:
        peer.ask("endianness")
        peer.qtest.stream.close()
        peer.qmp.stream.close()
        peer.end()
    marks = [line.split("] ")[1] for line in log.read_text().splitlines()]
    assert marks == ["OPENED", "endianness", "OK little", "CLOSED"]


def test_server_records_a_run(tmp_path):
    from iommu_emu.recording import read, replay

    path = tmp_path / "run.iemu"
    with Peer(f"-machine q35 -device intel-iommu -record {path}") as peer:
        assert peer.read(0xFED9_0000, 4) == 0x10
        peer.process.send_signal(signal.SIGTERM)
        assert peer.end() == (0, "")
    assert replay(read(path)).same


def test_server_refuses_a_recording_that_cannot_be_written(tmp_path):
    status, _, error = run(f"-machine q35 -qtest stdio -record {tmp_path}/none/run.iemu")
    assert status == 1
    assert "No such file or directory" in error


def test_shim_runs_the_iommu_emu_of_its_prefix(tmp_path):
    shim = tmp_path / "libexec/iommu-emu/qemu-system-x86_64"
    shim.parent.mkdir(parents=True)
    shutil.copy(ROOT / "iommu_emu/qtest/shim/qemu-system-x86_64", shim)
    program = tmp_path / "bin/iommu-emu"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {IOMMU_EMU} "$@"\n')
    program.chmod(0o755)
    link = tmp_path / "qemu-system-x86_64"
    os.symlink(shim, link)
    with Peer("-machine none", command=[str(link)]) as peer:
        assert peer.ask("endianness") == "OK little"
