"""What every command does when it is ended from outside."""

import signal

import pytest

from iommu_emu.cli.console import refusal
from iommu_emu.cli.main import main
from iommu_emu.cli.signals import ended_by_signals


def test_command_that_is_interrupted_says_so(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("iommu_emu.cli.demo.run", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "iommu-emu: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_unwinds_the_command(number):
    with pytest.raises(SystemExit) as ended, ended_by_signals():
        signal.raise_signal(number)
    assert ended.value.code == 128 + number


def test_signals_do_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with ended_by_signals():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_refusal_names_what_was_worked_on():
    assert refusal(OSError(2, "No such file", "a")) == "a: No such file"
    assert refusal(OSError(28, "No space left")) == "No space left"
    assert refusal(OSError(28, "No space left"), "b") == "b: No space left"
    assert refusal(OSError("odd")) == "odd"
