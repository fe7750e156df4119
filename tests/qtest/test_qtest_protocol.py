"""The qtest protocol: each command's reply, and what malformed ones get."""

import pytest

from iommu_emu.devices import Edu
from iommu_emu.qtest.protocol import LIMIT, Protocol
from iommu_emu.qtest.q35 import Q35

EDU = 0xE000_0000  # where the test puts its BAR


@pytest.fixture
def board():
    return Q35(16 << 20)


@pytest.fixture
def ask(board):
    """Ask for one reply; lines before it are an error."""
    protocol = Protocol(board, lambda: True)

    def ask(line):
        (reply,) = protocol.answer(line)
        return reply

    return ask


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("endianness", "OK little"),
        ("  endianness  ", "OK little"),
        ("readb 0x1000", "OK 0x0000000000000000"),
        ("readw 4096", "OK 0x0000000000000000"),
        ("readl 010000", "OK 0x0000000000000000"),
        ("readq 0x80000000", "OK 0x0000000000000000"),
        ("readl 0xfffffffffffffffe", "OK 0x0000000000000000"),
        ("readl 0xfee00020", "OK 0x00000000ffffffff"),
        ("inb 0x80", "OK 0x00ff"),
        ("inw 0x80", "OK 0xffff"),
        ("inl 0x80", "OK 0xffffffff"),
        ("outb 0x80 1", "OK"),
        ("read 0x1000 3", "OK 0x000000"),
        ("b64read 0x1000 3", "OK AAAA"),
        ("b64read 0x1000 0", "OK "),
        ("memset 0x1000 0 1", "OK"),
        ("set_irq_in ioapic unnamed-gpio-in 3 1", "OK"),
        ("irq_intercept_in ioapic", "OK"),
        ("irq_intercept_in /machine/q35/ioapic", "OK"),
    ],
)
def test_protocol_reply(ask, command, reply):
    assert ask(command) == reply


@pytest.mark.parametrize(
    "command",
    [
        "bogus",
        "READL 0",
        "readl",
        "readl zz",
        "readl 0x",
        "readl 08",
        "readl 1_000",
        "readl 0b1",
        "readl 0x10000000000000000",
        "readl " + "9" * 5000,
        "writel 0x1000",
        "read 0x1000 0",
        f"read 0 {LIMIT + 1}",
        f"b64read 0 {LIMIT + 1}",
        "read 0 0xffffffffffffffff",
        "write 0x1000 2 0xzz00",
        "b64write 0x1000 2 $$$$",
        "inb 0x10000",
        "outl -1 0",
        "clock_step x",
        "clock_set 0x10000000000000000",
        "irq_intercept_in pic",
        "irq_intercept_in ioapic name",
        "irq_intercept_out ioapic",
        "set_irq_in ioapic unnamed-gpio-in 24 1",
        "set_irq_in ioapic unnamed-gpio-in -1 1",
        "set_irq_in ioapic other 1 1",
        "set_irq_in pic unnamed-gpio-in 1 1",
        "module_load a b",
        "\ufffd\0",
    ],
)
def test_protocol_refusal(ask, command):
    assert ask(command).startswith("FAIL")
    assert ask("endianness") == "OK little"


@pytest.mark.parametrize("line", ["", "   "])
def test_protocol_blank_line_has_no_reply(board, line):
    assert Protocol(board, lambda: True).answer(line) == []


@pytest.mark.parametrize(
    ("command", "memory"),
    [
        ("writeb 0x1000 0x1ff", "ffeeeeeeeeeeeeee"),
        ("writew 0x1000 0x12345", "4523eeeeeeeeeeee"),
        ("writel 0x1000 -1", "ffffffffeeeeeeee"),
        ("writeq 0x1000 0x0102030405060708", "0807060504030201"),
        ("write 0x1000 4 0x112233445566", "11223344eeeeeeee"),
        ("write 0x1000 4 0x1122", "11220000eeeeeeee"),
        ("write 0x1000 4 0x112", "11000000eeeeeeee"),
        ("b64write 0x1000 3 AQID", "010203eeeeeeeeee"),
        ("b64write 0x1000 2 AQID", "0102eeeeeeeeeeee"),
        ("b64write 0x1000 6 AQID", "010203eeeeeeeeee"),
        ("memset 0x1000 4 0x1ab", "ababababeeeeeeee"),
    ],
)
def test_protocol_write(ask, command, memory):
    ask("memset 0x1000 8 0xee")
    assert ask(command) == "OK"
    assert ask("read 0x1000 8") == f"OK 0x{memory}"


@pytest.mark.parametrize("command", ["write 0x1000 4 0x", "b64write 0x1000 4 AA"])
def test_protocol_short_data_is_an_err(ask, command):
    assert ask(command) == "ERR invalid argument size"


def test_protocol_without_memory(ask):
    protocol = Protocol(None, lambda: True)
    assert protocol.answer("readl 0")[0].startswith("FAIL there is no memory")
    assert protocol.answer("irq_intercept_in ioapic") == ["FAIL Unknown device"]
    assert protocol.answer("endianness") == ["OK little"]


def test_protocol_memset_of_more_than_16_mib_is_clipped_to_what_is_there(board, ask):
    assert ask(f"memset 0 {1 << 40} 0x5a") == "OK"
    assert board.read(0, 1) == board.read((16 << 20) - 1, 1) == b"\x5a"


def test_protocol_memset_of_more_than_16_mib_of_registers_is_refused(board, ask):
    ask("outl 0xcf8 0x80000060")
    ask("outl 0xcfc 0xb0000001")
    assert ask(f"memset 0xb0000000 {LIMIT + 1} 0").startswith("FAIL at most 0x1000000 bytes")
    assert ask("readl 0xb0000000") == "OK 0x0000000029c08086"


def test_protocol_clock_step_goes_to_the_next_deadline(board, ask):
    board.machine.clock.call_at(700, lambda: None)
    assert ask("clock_step") == "OK 700"


def test_protocol_clock_step_finds_the_interval_timer_where_nothing_else_is(ask):
    assert [ask("clock_step") for _ in range(3)] == ["OK 27462700", "OK 54925401", "OK 82388101"]


def test_protocol_clock_step_by_a_number(ask):
    assert ask("clock_step 50") == "OK 50"
    assert ask("clock_step 0") == "FAIL could not advance time"
    assert ask("clock_step -5") == "FAIL could not advance time"
    assert ask("clock_step 0x7fffffffffffffff") == "FAIL could not advance time"


def test_protocol_clock_set_never_goes_back(ask):
    assert ask("clock_set 100") == "OK 100"
    assert ask("clock_set 100") == "OK 100"
    assert ask("clock_set 50") == "FAIL 100"


def test_protocol_time_is_set_but_has_no_deadline_while_paused(board):
    protocol = Protocol(board, lambda: False)
    assert protocol.answer("clock_step")[0].startswith("FAIL cannot advance clock to the next")
    assert protocol.answer("clock_step 50") == ["OK 50"]
    assert protocol.answer("clock_set 60") == ["OK 60"]


def test_protocol_irq_lines_precede_the_reply(board):
    protocol = Protocol(board, lambda: True)
    assert protocol.answer("set_irq_in ioapic unnamed-gpio-in 5 1") == ["OK"]
    assert protocol.answer("irq_intercept_in ioapic") == ["IRQ raise 5", "OK"]
    assert protocol.answer("irq_intercept_out ioapic") == ["OK"]
    assert protocol.answer("set_irq_in ioapic unnamed-gpio-in 5 0") == ["IRQ lower 5", "OK"]


@pytest.mark.parametrize(("device", "line"), [(1, 21), (4, 20), (0x18, 20), (0x1D, 16), (0x1E, 20)])
def test_protocol_intx_comes_out_where_qemu_has_it(board, device, line):
    edu = board.attach(Edu(), device << 3)
    edu.place_bar(0, EDU)
    edu.config.write(0x04, 2, 2)
    protocol = Protocol(board, lambda: True)
    protocol.answer("irq_intercept_in ioapic")
    assert protocol.answer(f"writel {EDU + 0x60:#x} 1") == [f"IRQ raise {line}", "OK"]
    assert protocol.answer(f"writel {EDU + 0x64:#x} 1") == [f"IRQ lower {line}", "OK"]
