"""The part of QEMU's command line that we take."""

import shlex

import pytest

from iommu_emu.qtest.command_line import Channel, UsageError, parse
from iommu_emu.qtest.options import OptionError, integer, properties, size, switch


def line(text):
    return parse(shlex.split(text), "version", "help")


def test_command_line_of_libqtest():
    parsed = line(
        "-qtest unix:/tmp/q.sock -qtest-log /dev/null -chardev socket,path=/tmp/q.qmp,id=char0 "
        "-mon chardev=char0,mode=control -display none -audio none "
        "-run-with exit-with-parent=on -machine q35 -smp 1 -m 512 -net none "
        "-device intel-iommu -device iommu-testdev -accel qtest"
    )
    assert parsed.machine == "pc-q35-11.1"
    assert parsed.memory == 512 << 20
    assert parsed.qtest == Channel("/tmp/q.sock")
    assert parsed.qmp == [Channel("/tmp/q.qmp")]
    assert parsed.exit_with_parent
    assert [properties["driver"] for _, properties in parsed.devices] == [
        "intel-iommu",
        "iommu-testdev",
    ]


def test_command_line_takes_a_monitor_object():
    parsed = line("-chardev socket,path=/a,id=c -object monitor-qmp,id=m,chardev=c")
    assert parsed.qmp == [Channel("/a")]


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("unix:/a", Channel("/a")),
        ("unix:/a,server=on,wait=off", Channel("/a", server=True)),
        ("unix:/a,server", Channel("/a", server=True)),
        ("unix:/a,server,nowait", Channel("/a", server=True)),
        ("unix:/a,noserver", Channel("/a")),
        ("unix:/a,,b", Channel("/a,b")),
        ("stdio", Channel(None)),
    ],
)
def test_command_line_channel(text, channel):
    assert line(f"-qtest {text}").qtest == channel


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("q35", "pc-q35-11.1"),
        ("type=none", "none"),
        ("q35,accel=qtest,usb=off", "pc-q35-11.1"),
        ("q35,kernel-irqchip=split", "pc-q35-11.1"),
    ],
)
def test_command_line_machine(text, machine):
    assert line(f"-M {text}").machine == machine


@pytest.mark.parametrize(
    ("text", "memory"), [("64", 64), ("size=1G", 1024), ("2g", 2048), ("0", 128), ("1024k", 1)]
)
def test_command_line_memory(text, memory):
    assert line(f"-m {text}").memory == memory << 20


def test_command_line_memory_below_4_gib():
    assert line("-M q35,max-ram-below-4g=2M").memory_below_4g == 2 << 20
    assert line("-M q35,max-ram-below-4g=1048576").memory_below_4g == 1 << 20


def test_command_line_takes_two_dashes():
    assert line("--machine none").machine == "none"


def test_command_line_default_devices_keep_their_places():
    assert (line("").default_vga, line("").default_network) == (True, True)
    assert not line("-net none").default_network
    assert not line("-vga none").default_vga
    parsed = line("-nodefaults")
    assert (parsed.default_vga, parsed.default_network) == (False, False)


@pytest.mark.parametrize(("text", "answer"), [("-version", "version"), ("--help", "help")])
def test_command_line_question(text, answer):
    assert line(text).answer == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-bogus", "-bogus: invalid option"),
        ("-m", "-m: requires an argument"),
        ("disk.img", "disk.img: disk images are not supported"),
        ("-kernel x", "-kernel: invalid option"),
        ("-machine pc", "unsupported machine type"),
        ("-machine q35,bogus=1", "Invalid parameter 'bogus'"),
        ("-machine q35,default-bus-bypass-iommu=on", "Invalid parameter"),
        ("-machine q35,accel=kvm", "the accelerator must be qtest"),
        ("-accel tcg", "the accelerator must be qtest"),
        ("-m x", "expects a non-negative number"),
        ("-m 1K", "size must be a multiple of 1M"),
        ("-m 100T", "up to 256G"),
        ("-m 4G,slots=2", "Invalid parameter 'slots'"),
        ("-smp 0", "must be greater than zero"),
        ("-smp x", "expects integer"),
        ("-net user", "only 'none' is supported"),
        ("-vga std", "only 'none' is supported"),
        ("-device ''", "Parameter 'driver' is missing"),
        ("-device '{'", "JSON parse error"),
        ('-device \'{"driver": ["edu"]}\'', "values must be"),
        ("-run-with chroot=/", "Invalid parameter 'chroot'"),
        ("-qtest tcp:localhost:1", "only UNIX sockets"),
        ("-qtest unix:", "only UNIX sockets"),
        ("-chardev socket,path=/a", "no id specified"),
        ("-chardev stdio,id=a -chardev stdio,id=a", "Duplicate ID 'a'"),
        ("-mon chardev=a,mode=control", 'chardev "a" not found'),
        ("-chardev stdio,id=a -mon chardev=a", "only mode=control"),
        ("-object rng-random,id=r", "only objects of type monitor-qmp"),
        ("-qtest stdio -qmp stdio", "cannot use stdio by multiple character devices"),
        ("-record-seconds 0", "must be 1.."),
        ("-machine none -record x", "nothing to record"),
    ],
)
def test_command_line_refusal(text, reason):
    with pytest.raises(UsageError) as caught:
        line(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("edu", {"driver": "edu"}),
        ("edu,addr=4.0,id=a", {"driver": "edu", "addr": "4.0", "id": "a"}),
        ("driver=edu", {"driver": "edu"}),
        ("edu,name=a,,b", {"driver": "edu", "name": "a,b"}),
        ("edu,flag", {"driver": "edu", "flag": "on"}),
        ('{"driver": "edu", "x": true, "n": 3}', {"driver": "edu", "x": "on", "n": "3"}),
    ],
)
def test_options_properties(text, found):
    assert properties(text, "driver") == found


@pytest.mark.parametrize(("text", "value"), [("on", True), ("yes", True), ("false", False)])
def test_options_switch(text, value):
    assert switch("x", text) is value


@pytest.mark.parametrize(("text", "value"), [("10", 10), ("0x10", 16), ("010", 8), ("0", 0)])
def test_options_integer(text, value):
    assert integer("x", text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1_0x", str(1 << 64)])
def test_options_integer_refusal(text):
    with pytest.raises(OptionError, match="'x'"):
        integer("x", text)


@pytest.mark.parametrize(("text", "value"), [("1", 1 << 20), ("3k", 3 << 10), ("2GiB", 2 << 30)])
def test_options_size(text, value):
    assert size("x", text, "m") == value
