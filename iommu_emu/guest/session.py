"""One run of the check: a guest is started, watched, helped along, and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iommu_emu import __version__
from iommu_emu.guest.board import Board
from iommu_emu.guest.check import (
    ALLOWED,
    FORBIDDEN_READ,
    FORBIDDEN_WRITE,
    LAZY,
    PASSTHROUGH,
    POLICIES,
    STRICT,
    batches_flushes,
    compare_faults,
    compare_medium,
    judge_policy,
    judge_trouble,
    judge_window,
)
from iommu_emu.guest.console import Check, Console, Line
from iommu_emu.guest.errors import GuestError
from iommu_emu.guest.helper import compile_helper
from iommu_emu.guest.initramfs import build_initramfs
from iommu_emu.guest.kernel import GuestKernel
from iommu_emu.guest.mappings import mappings_of
from iommu_emu.guest.observer import Observer
from iommu_emu.guest.report import Report, Versions
from iommu_emu.guest.virtual_machine import VirtualMachine
from iommu_emu.guest.window import Window
from iommu_emu.qemu import Qemu, find_busybox, find_qemu
from iommu_emu.recording import recording

KERNEL_OPTIONS = (
    "console=ttyS0 ignore_loglevel printk.devkmsg=on panic=-1 random.trust_cpu=on"
    # An emulated CPU stands still when its host is busy: that is no fault of the guest's.
    " rcupdate.rcu_cpu_stall_suppress=1 nosoftlockup no_timer_check tsc=reliable"
)
POLICY_OPTIONS = {
    STRICT: "intel_iommu=on iommu.passthrough=0 iommu.strict=1",
    LAZY: "intel_iommu=on iommu.passthrough=0 iommu.strict=0",
    PASSTHROUGH: "intel_iommu=on iommu=pt",
}
GENERIC_STRICT = (5, 14)  # the first Linux whose Intel driver obeys iommu.strict
OLD_STRICT = "intel_iommu=on,strict iommu.passthrough=0"
DRIVERS = ("nvme",)
VFIO_DRIVERS = ("vfio-pci", "vfio_iommu_type1")  # a kernel may have neither, or the first alone
PHASES = ("facts", "nvme", "rebind", "hotplug", "fault", "vfio", "window")
MEMORY_MIB = 512
_LAST_LINES = 15

__all__ = ["Options", "Progress", "Session", "settings_of"]

Progress = Callable[[str, float], None]  # what is going on, and for how many s


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        kernel: the guest's kernel.
        policy: "strict", "lazy" or "passthrough".
        append: further words for the kernel's command line.
        preset: the unit's preset.
        phases: what the guest does, see init.sh.
        blocks: of 64 KiB that one transfer of the check has.
        rounds: of the phase "window".
        memory_mib: the guest's RAM.
        patience: s that each phase may take.
        record: file into which the run is recorded; None: it is not.

    Raises:
        ValueError: if there is no such policy.
    """

    kernel: GuestKernel
    policy: str = STRICT
    append: str = ""
    preset: str = "default"
    phases: tuple[str, ...] = PHASES
    blocks: int = 16
    rounds: int = 12
    memory_mib: int = MEMORY_MIB
    patience: float = 90.0
    record: Path | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {self.policy!r}")

    @property
    def command_line(self) -> str:
        """The kernel's command line; what the user appends comes last, and wins."""
        policy = POLICY_OPTIONS[self.policy]
        if self.policy == STRICT and self.kernel.version < GENERIC_STRICT:
            policy = OLD_STRICT
        return f"{KERNEL_OPTIONS} {policy} {self.append}".strip()


def settings_of(options: Options) -> dict[str, str]:
    """Return the shell variables that init.sh reads."""
    return {
        "PHASES": " ".join(options.phases),
        "POLICY": options.policy,
        "NVME": "0000:01:00.0",
        "ATTACKER": "0000:02:00.0",
        "PLUGGABLE": "0000:03:00.0",
        "BLOCKS": str(options.blocks),
        "ROUNDS": str(options.rounds),
        "FORBIDDEN_WRITE": f"{FORBIDDEN_WRITE:#x}",
        "FORBIDDEN_READ": f"{FORBIDDEN_READ:#x}",
        "ALLOWED": f"{ALLOWED:#x}",
    }


@dataclass
class Session:
    """Runs a guest and answers what it asks for.

    Args:
        options: what to run.
        progress: told what is going on, often.
        on_line: takes each line of the console.

    Attributes:
        console: what the guest said so far.
        board: our side of its devices.
        observer: what the emulator saw so far.
        window: the device that keeps using what was unmapped.
        phases: seconds of each phase that is over.
    """

    options: Options
    progress: Progress = lambda what, seconds: None
    on_line: Callable[[Line], None] = lambda line: None
    console: Console = field(default_factory=Console)
    phases: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.board = Board.build(self.options.preset)
        self.observer = Observer(self.board.machine, self.board.unit)
        self.window = Window(self.board.nvme, self.observer)
        self._checks: list[Check] = []
        self._compared = 0
        self._phase = "start"
        self._began = time.monotonic()

    def run(self) -> Report:
        """Run the check to its end.

        Raises:
            GuestError: if the guest cannot be started, or does not come to its end.
            NotAvailable: if something that it needs is not on this machine.
        """
        qemu = find_qemu()
        with self.started(qemu) as machine:
            self.boot(machine)
            devices = {name: self.board.address(name) for name in self.board.devices()}
            while not self.console.ended:
                self._step(machine)
            self.observer.poll()
            mappings = {
                name: mappings_of(self.board.unit, self.board.machine.memory, requester)
                for name, requester in devices.items()
            }
            self.begin("power-off")
            machine.wait(lambda: machine.output_ended, self.options.patience, "the power-off")
            clean = machine.clean_exit
            self.observer.poll()
        self._end_phase()
        report = Report(
            versions=self.versions(qemu),
            policy=self.options.policy,
            console=self.console,
            observer=self.observer,
            counters=self.board.unit.counters,
            mappings=mappings,
            devices=devices,
            checks=self._checks,
            window=self.window.rounds,
            phases=self.phases,
        )
        self._judge(devices["attacker"])
        self._checks.append(Check("clean-exit", clean, "powered off" if clean else "QEMU failed"))
        return report

    @contextmanager
    def started(self, qemu: Qemu) -> Iterator[VirtualMachine]:
        """Start QEMU; end it when the block is left. Errors get the console's last lines."""
        options = self.options
        self.progress("preparing the guest", 0)
        initramfs = build_initramfs(
            find_busybox().read_bytes(),
            compile_helper(),
            options.kernel.drivers(DRIVERS, VFIO_DRIVERS if "vfio" in options.phases else ()),
            settings_of(options),
        )
        self._began = time.monotonic()
        try:
            with (
                self._recorded(qemu),
                VirtualMachine(
                    qemu,
                    self.board,
                    kernel=options.kernel.image,
                    initramfs=initramfs,
                    command_line=options.command_line,
                    memory_mib=options.memory_mib,
                    on_output=self._output,
                    on_tick=self._tick,
                ) as machine,
            ):
                yield machine
        except GuestError as error:
            raise type(error)(f"in phase {self._phase}: {error}\n{self._last_words()}") from error

    def _last_words(self) -> str:
        """Return what the guest complained about, and the end of what it said."""
        lines = [line.text for line in self.console.lines][-_LAST_LINES:]
        if not lines:
            return "its console printed nothing"
        failed = [check for check in self.console.checks if not check.ok]
        complaints = [f"check {check.name} failed: {check.detail}" for check in failed]
        complaints += [f"the guest complained: {text}" for text in self.console.trouble[:3]]
        return "\n  ".join([*complaints, "its console's last lines:", *lines])

    @contextmanager
    def _recorded(self, qemu: Qemu) -> Iterator[None]:
        """Record everything inside the block, if that is wanted."""
        options = self.options
        if options.record is None:
            yield
            return
        notes = {
            "kernel": options.kernel.release,
            "policy": options.policy,
            "phases": " ".join(options.phases),
            "command line": options.command_line,
            "qemu": qemu.build,
        }
        with recording(self.board.machine, options.record, notes=notes):
            yield

    # Phases.

    def boot(self, machine: VirtualMachine) -> None:
        """Let the guest run until its kernel is up and its first phase begins."""
        self.begin("firmware")
        machine.run()
        patience = self.options.patience
        machine.wait(self._kernel_runs, patience, "the kernel's first words on ttyS0")
        machine.follow_buses()
        self.begin("kernel")
        machine.wait(lambda: bool(self.console.phases), patience, "the kernel to come up")

    def _kernel_runs(self) -> bool:
        return any(line.time is not None for line in self.console.lines)

    def _step(self, machine: VirtualMachine) -> None:
        """Do what the guest asks for, or wait until something happens."""
        console = self.console
        phases = len(console.phases)
        if console.phases[-1] != self._phase:
            self.begin(console.phases[-1])
        if console.asked:
            self._answer(machine, console.asked.popleft())
            return
        machine.wait(
            lambda: bool(console.asked) or console.ended or len(console.phases) > phases,
            self.options.patience,
            f"the guest's phase {self._phase}",
        )

    def _answer(self, machine: VirtualMachine, asked: str) -> None:
        if asked == "unplug":
            machine.unplug("pluggable", self.options.patience)
        elif asked == "plug":
            machine.plug("pluggable")
        elif asked.startswith("look ") and asked[5:].isdecimal():
            self.window.look(int(asked[5:]))

    def begin(self, phase: str) -> None:
        """Begin a phase: its time counts from now on."""
        self._end_phase()
        self._phase = phase
        if phase != "window":
            self.window.stop()
        elif self.options.policy == LAZY and batches_flushes(self.console):
            self.window.expect()
        self._tick()

    def _end_phase(self) -> None:
        now = time.monotonic()
        self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._began
        self._began = now

    # What goes on all the time.

    def _output(self, data: bytes) -> None:
        for line in self.console.feed(data):
            self.on_line(line)
        for check in self.console.checks[self._compared :]:
            disk = self.board.pluggable if check.name.startswith("pluggable") else self.board.nvme
            own = compare_medium(check, disk.medium)
            if own is not None:
                self._checks.append(own)
        self._compared = len(self.console.checks)

    def _tick(self) -> None:
        self.observer.poll()
        self.progress(self._phase, time.monotonic() - self._began)

    def plain(self) -> dict[str, Any]:
        """Return what is known so far, for programs."""
        return {
            "policy": self.options.policy,
            "phase": self._phase,
            "checks": [asdict(check) for check in self.console.checks],
            "console": [line.text for line in self.console.lines],
        }

    # The end.

    def _judge(self, attacker: int) -> None:
        options, checks = self.options, self._checks
        checks.append(judge_policy(options.policy, self.console))
        checks += compare_faults(attacker, self.console, self.observer)
        if "window" in self.console.phases:
            policy = options.policy if batches_flushes(self.console) else STRICT
            checks.append(judge_window(policy, self.window.rounds))
        checks.append(judge_trouble(self.console))

    def versions(self, qemu: Qemu) -> Versions:
        """Return what takes part in the run."""
        release = self.console.fact("kernel") or self.options.kernel.release
        return Versions(__version__, qemu.build, release, self.options.kernel.name)
