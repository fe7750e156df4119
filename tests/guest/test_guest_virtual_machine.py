"""What happens when QEMU does not behave; tests/live has those where it does."""

import os
import sys

import pytest

from iommu_emu.guest import virtual_machine
from iommu_emu.guest.board import Board
from iommu_emu.guest.errors import GuestError
from iommu_emu.guest.virtual_machine import VirtualMachine
from iommu_emu.qemu import Qemu

GREETING = '{"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}}}'
# Speaks QMP over the descriptor that it was given, and does everything that it is told.
OBEDIENT = f"""
import json, re, socket, sys
fd = int(re.search(r"id=qmp,fd=(\\d+)", " ".join(sys.argv))[1])
qmp = socket.socket(fileno=fd).makefile("rw")
def say(text):
    qmp.write(text + chr(10)); qmp.flush()
say({GREETING!r})
for line in qmp:
    command = json.loads(line)["execute"]
    print("did", command, flush=True)
    if command == "cont":
        sys.exit(3)
    say('{{"return": {{}}}}')
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, watched."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(temporary):
    """Start a program in QEMU's place; everything is gone again afterwards."""
    before = len(os.listdir("/proc/self/fd"))
    output = bytearray()

    def start(*argv):
        machine = VirtualMachine(
            Qemu(list(argv), (11, 1, 0), "environment", "QEMU emulator version 11.1.0"),
            Board.build(),
            kernel=temporary / "kernel",
            initramfs=b"initramfs",
            command_line="console=ttyS0",
            memory_mib=64,
            on_output=output.extend,
        )
        machine.collected = output
        return machine

    yield start
    assert list(temporary.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_virtual_machine_that_ends_at_once_is_quoted(start):
    with pytest.raises(GuestError, match=r"^QEMU does not start: .*; QEMU said: no such machine$"):
        start("/bin/sh", "-c", "echo no such machine >&2; exit 1")


def test_virtual_machine_that_is_killed_is_named_with_the_signal(start):
    with pytest.raises(GuestError, match=r"; QEMU was killed by SIGSEGV$"):
        start("/bin/sh", "-c", "kill -SEGV $$")


def test_virtual_machine_that_says_nothing_is_given_up(start, monkeypatch):
    monkeypatch.setattr(virtual_machine, "_QMP_TIMEOUT", 0.2)
    with pytest.raises(GuestError, match=r"^QEMU does not start: no QMP message in 0\.2 s"):
        start("/bin/sh", "-c", "exec sleep 60")


def test_virtual_machine_socket_with_too_long_a_path_is_named(start, temporary, monkeypatch):
    deep = temporary / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(GuestError, match=r"^socket .*/nvme: .*; is TMPDIR too long\?$"):
        start("/bin/true")
    deep.rmdir()


def test_virtual_machine_program_that_is_not_there_is_an_error(start):
    with pytest.raises(FileNotFoundError):
        start("/nonexistent/qemu")


def test_virtual_machine_gets_its_register_page_before_it_runs(start):
    with start(sys.executable, "-c", OBEDIENT) as machine:
        machine.wait(lambda: machine.collected.count(b"\n") >= 5, 5, "five commands")
        said = machine.collected.decode().split("\n")
    assert said[:5] == ["did qmp_capabilities", *["did human-monitor-command"] * 4]


def test_virtual_machine_that_ends_while_something_is_awaited_is_an_error(start):
    with start(sys.executable, "-c", OBEDIENT) as machine:
        with pytest.raises(GuestError, match=r"^cont: the QMP server "):
            machine.run()
        with pytest.raises(GuestError, match=r"^the guest ended while we waited for rain"):
            machine.wait(lambda: False, 5, "rain")
        assert not machine.clean_exit


def test_virtual_machine_waits_no_longer_than_it_was_told(start):
    with (
        start(sys.executable, "-c", OBEDIENT) as machine,
        pytest.raises(GuestError, match=r"^rain took more than 0\.2 s$"),
    ):
        machine.wait(lambda: False, 0.2, "rain")


def test_virtual_machine_passes_initramfs_and_table_without_files(start):
    program = """
import re, sys
for option in ("-initrd ", "-acpitable file="):
    path = re.search(option + r"(\\S+)", " ".join(sys.argv))[1]
    print(open(path, "rb").read()[:9], file=sys.stderr, end=" ")
"""
    with pytest.raises(GuestError, match=r"QEMU said: b'initramfs' b'DMAR"):
        start(sys.executable, "-c", program)
