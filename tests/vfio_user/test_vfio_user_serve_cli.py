"""`iommu-emu serve`."""

import json
import signal
import socket
import subprocess
import time

import pytest
from installed_command import IOMMU_EMU
from vfio_user_client import Client

from iommu_emu import acpi
from iommu_emu.cli.main import main

PATIENCE = 30  # s


class NoLoop:
    """Stands for the server's loop, which another process runs."""

    def run_once(self, timeout=None):
        time.sleep(0.001)
        return False


@pytest.fixture
def serve(tmp_path):
    """Starts `iommu-emu serve --json` with further arguments; returns it and what it says first."""
    processes = []

    def serve(*arguments):
        process = subprocess.Popen(
            [IOMMU_EMU, "serve", "--json", *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, json.loads(process.stdout.readline())

    yield serve
    for process in processes:
        process.kill()
        process.communicate()


def connected(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    client = Client(NoLoop(), sock)
    client.negotiate()
    return client


def test_serve_serves_what_it_is_told(serve, tmp_path):
    serve("--unit", "0=unit.sock", "--device", "edu@00:05.0=edu.sock")
    edu, unit = connected(tmp_path / "edu.sock"), connected(tmp_path / "unit.sock")
    assert edu.read32(0, 0) == 0x0100_00ED
    assert unit.read32(0, 0) == 0x10
    edu.sock.close()
    unit.sock.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_cleanly_with_a_signal(serve, tmp_path, number):
    process, _ = serve("--unit", "0=unit.sock", "--device", "edu@00:05.0=edu.sock")
    client = connected(tmp_path / "edu.sock")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == [
        "connected",
        "disconnected",
    ]
    assert list(tmp_path.iterdir()) == []
    client.sock.close()


def test_serve_ends_cleanly_when_nobody_reads_its_output(serve, tmp_path):
    process, _ = serve("--unit", "0=unit.sock", "--device", "edu@00:05.0=edu.sock")
    process.stdout.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "edu.sock"))
        assert process.wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_serve_says_when_its_output_is_full(tmp_path, arguments):
    command = [IOMMU_EMU, "serve", "--unit", "0=unit.sock"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.stderr.startswith("iommu-emu serve: standard output: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


def test_serve_says_what_is_in_a_sockets_place(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["serve", "--unit", f"0={tmp_path}/file"]) == 2
    assert "something that is no socket is in the way" in capsys.readouterr().err


def test_serve_says_what_qemu_needs(serve, tmp_path):
    _, told = serve("--unit", "0=u.sock", "--device", "nvme@01:00.0=n.sock", "--write-acpi", "t")
    assert told["event"] == "serving"
    sockets = [{"type": "unix", "path": str(tmp_path / name)} for name in ("n.sock", "u.sock")]
    devices = [
        value
        for option, value in zip(told["qemu"], told["qemu"][1:], strict=False)
        if option == "-device"
    ]
    assert devices[0] == "pcie-root-port,id=port1,bus=pcie.0,addr=0x10.0x0,chassis=1,slot=1"
    driver = {"driver": "vfio-user-pci"}
    assert [json.loads(device) for device in devices[1:]] == [
        {**driver, "socket": sockets[0], "bus": "port1", "addr": "0x0.0x0"},
        {**driver, "socket": sockets[1], "bus": "pcie.0", "addr": "0x1e.0x1"},
    ]
    assert "memory-backend-memfd,id=ram,size=1G,share=on" in told["qemu"]
    assert told["monitor"] == [
        "o/4 0xcf8 0x8000f110",
        "o/4 0xcfc 0xfed90000",
        "o/4 0xcf8 0x8000f104",
        "o/2 0xcfc 0x6",
        "cont",
    ]


def test_serve_writes_a_table_with_its_devices_alone(serve, tmp_path):
    devices = ["--device", "edu@00:05.0=e.sock", "--device", "nvme@01:00.0=n.sock"]
    serve("--unit", "0=u.sock", *devices, "--write-acpi", "dmar.bin")
    unit = acpi.parse((tmp_path / "dmar.bin").read_bytes()).units()[0]
    assert (unit.base_address, unit.include_pci_all) == (0xFED9_0000, False)
    assert [list(scope.path) for scope in unit.scopes] == [[(5, 0)], [(0x10, 0), (0, 0)]]


def test_serve_takes_a_built_in_platform(serve, tmp_path):
    serve("--platform", "q35-vtd", "--device", "nvme@01:00.0=n.sock", "--unit", "0=u.sock")
    client = connected(tmp_path / "n.sock")
    assert client.read(7, 8, 4)[1:] == bytes.fromhex("020801")
    client.sock.close()


def test_serve_records(serve, tmp_path):
    process, _ = serve("--unit", "0=u.sock", "--record", "run.iemu")
    client = connected(tmp_path / "u.sock")
    assert client.read32(0, 0) == 0x10
    client.sock.close()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert main(["replay", str(tmp_path / "run.iemu")]) == 0


def test_serve_keeps_a_disk_in_a_file(serve, tmp_path):
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    serve("--device", "nvme:disk.img@00:05.0=n.sock")
    client = connected(tmp_path / "n.sock")
    assert client.region_info(0)[1] >= 4096
    client.sock.close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "serve: nothing to serve: give --device or --unit"),
        (["--platform", "no-such"], "serve: no-such: no built-in platform of that name"),
        (["--unit", "1=u.sock"], r"unit must be in 0..0, not 1"),
        (["--unit", "0=a", "--unit", "0=b"], "is served already"),
        (["--unit", "0=a", "--device", "edu@00:05.0=no/b", "--record", "r"], "No such file"),
        (["--device", "edu@02:00.0=e.sock"], "are 1, 2, 3, ... in this order"),
        (["--device", "edu@00:05.0=a", "--device", "nvme@00:05.0=b"], "00:05.0 is taken"),
        (["--device", "edu@00:10.0=a", "--device", "nvme@01:00.0=b"], "00:10.0 is taken"),
        (["--device", "edu:file@00:05.0=a"], "only nvme keeps anything in a file"),
        (["--device", "nvme:no-such-file@00:05.0=a"], "No such file"),
        (["--device", "edu@0001:00:05.0=a"], "segment 0 only"),
        (["--platform", "no-such", "--unit", "0=u"], "no built-in platform of that name"),
        (["--platform", "q35-amdvi", "--unit", "0=u"], "is no VT-d unit"),
        (["--platform", "q35-vtd", "--device", "edu@09:00.0=a"], "no such bus"),
        (["--acpi", "no-such-file", "--unit", "0=u"], "neither a file nor"),
        (["--preset", "no-such", "--unit", "0=u"], "no-such"),
        (["--record-seconds", "1", "--unit", "0=u"], "with --record only"),
    ],
)
def test_serve_refuses_what_it_cannot_serve(arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("iommu-emu serve: ")
    assert reason in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "edu"], "'edu' is not KIND@ADDRESS=SOCKET"),
        (["--device", "edu@00:05.0"], "'edu@00:05.0' is not KIND@ADDRESS=SOCKET"),
        (["--device", "edu@00:05.0="], "'edu@00:05.0=' is not KIND@ADDRESS=SOCKET"),
        (["--device", "toaster@00:05.0=t"], "'toaster' is none of nvme, edu"),
        (["--device", "edu@5=t"], "must look like 03:00.0"),
        (["--unit", "zero=u"], "'zero=u' is not NUMBER=SOCKET"),
        (["--unit", "0"], "'0' is not NUMBER=SOCKET"),
        (["--record-seconds", "0"], "'0' is no number of seconds"),
    ],
)
def test_serve_explains_its_arguments(arguments, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_serve_prints_for_people(serve_text):
    text = serve_text("--unit", "0=unit.sock", "--device", "edu@00:05.0=edu.sock")
    assert "-object memory-backend-memfd,id=ram,size=1G,share=on" in text
    assert "o/4 0xcfc 0xfed90000" in text


@pytest.fixture
def serve_text(tmp_path):
    """Runs `iommu-emu serve` until it serves; returns what it printed."""

    def serve_text(*arguments):
        with subprocess.Popen(
            [IOMMU_EMU, "serve", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("serving"):
                    break
            process.terminate()
        return "".join(lines)

    return serve_text
