"""Many programs on both sides: what was covered, and what differed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count

from iommu_emu.differential.compare import Verdict
from iommu_emu.differential.configurations import configuration
from iommu_emu.differential.entries import Entry
from iommu_emu.differential.generator import generate, generate_exact, generate_partial
from iommu_emu.differential.pair import Pair
from iommu_emu.differential.program import Operation, Submit, format_program, kind
from iommu_emu.differential.stale import OracleRun
from iommu_emu.differential.vtd import register_names
from iommu_emu.qtest.client import QtestError

# Of so many seeds one makes an under-invalidated program, which is held to the oracle, and two
# make exactly invalidated ones.
CYCLE, PARTIAL, EXACT = 8, (7,), (1, 4)
MOST_FAILURES = 20  # that are shrunk and kept; more are only counted

_DESCRIPTORS = {
    1: "context-cache",
    2: "iotlb",
    3: "device-tlb",
    4: "interrupt-entry",
    5: "wait",
    6: "pasid-iotlb",
    7: "pasid-cache",
    8: "pasid-device-tlb",
    9: "page-group-response",
}

__all__ = ["Campaign", "Coverage", "Failure"]


@dataclass
class Coverage:
    """What the programs of a campaign met, as far as they were compared.

    Attributes:
        operations: by kind.
        faults: by our diagnostic.
        descriptors: by kind.
        notes: what was odd, by note.
    """

    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    descriptors: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, operations: Sequence[Operation], causes: Sequence[Sequence[str]]) -> None:
        """Count operations and what was said of them."""
        for operation, said in zip(operations, causes, strict=False):
            self.operations[kind(operation)] += 1
            for cause in said:
                (self.faults if cause[:1].isupper() and "IQEI" not in cause else self.notes)[
                    cause
                ] += 1
            if isinstance(operation, Submit):
                for low, _ in operation.descriptors:
                    self.descriptors[_DESCRIPTORS.get(low & 0xF, f"type {low & 0xF}")] += 1


@dataclass
class Failure:
    """A difference that no entry explains, or an answer that the oracle does not allow.

    Attributes:
        configuration: name.
        seed: of the program that showed it first.
        findings: what differed, in the shrunk program.
        program: text of the shrunk program.
        times: how many programs showed it.
    """

    configuration: str
    seed: int
    findings: list[str]
    program: str
    times: int = 1


@dataclass
class Campaign:
    """Runs programs over several configurations; a context manager.

    Attributes:
        programs: run so far.
        partial: of them under-invalidated, and held to the oracle.
        exact: of them exactly invalidated; the others invalidate everything.
        compared: operations that were compared with QEMU's.
        skipped: operations behind a divergence, which were not.
        stale: programs whose comparison ended at a stale entry.
        explained: programs in which each entry explained something.
        failures: what is left.
        coverage: what was met.
        seconds: of running so far.

    Args:
        names: of the configurations.
        command: how to start QEMU, such as `find_qemu().argv`.
        seed: of the first program; the others follow.
        entries: the known differences; those of the package by default.

    Raises:
        ValueError: if there is no such configuration.
        QemuDied: if QEMU does not come up.
    """

    names: Sequence[str]
    command: Sequence[str]
    seed: int = 0
    entries: Sequence[Entry] | None = None
    programs: int = 0
    partial: int = 0
    exact: int = 0
    compared: int = 0
    skipped: int = 0
    stale: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._signatures: dict[tuple[object, ...], Failure] = {}
        self._open = ExitStack()
        self._oracles = {name: OracleRun(configuration(name)) for name in self.names}
        self._pairs: dict[str, Pair] = {}
        try:
            for name in self.names:
                pair = Pair(name, self.command, self.entries)
                self._pairs[name] = self._open.enter_context(pair)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def restarts(self) -> int:
        """How often QEMU ended and was started again."""
        return sum(pair.theirs.starts - 1 for pair in self._pairs.values())

    def run(
        self,
        seconds: float | None = None,
        programs: int | None = None,
        progress: Callable[[Campaign], None] = lambda campaign: None,
    ) -> None:
        """Run programs, one configuration after the other, until time or number is up.

        Args:
            seconds: to run for; None: as long as it takes.
            programs: to run; None: any number.
            progress: called after each program.

        Raises:
            QtestError: if a QEMU does not answer; the message names configuration and seed.
        """
        begin = time.monotonic()
        before = self.seconds
        for number, (seed, name) in enumerate(self._schedule()):
            self.seconds = before + time.monotonic() - begin
            if programs is not None and number >= programs:
                return
            if seconds is not None and self.seconds - before >= seconds:
                return
            try:
                if seed % CYCLE in PARTIAL:
                    self._hold_to_oracle(seed, name)
                else:
                    self._compare(seed, name, exact=seed % CYCLE in EXACT)
            except QtestError as error:
                raise QtestError(
                    f"QEMU of configuration {name}, program of seed {seed}: {error};"
                    f" --config {name} --seed {seed} begins there"
                ) from error
            self.programs += 1
            progress(self)

    def _schedule(self) -> Iterator[tuple[int, str]]:
        for seed in count(self.seed):
            for name in self.names:
                yield seed, name

    def _compare(self, seed: int, name: str, *, exact: bool) -> None:
        program = (generate_exact if exact else generate)(seed, name)
        pair = self._pairs[name]
        verdict = pair.run(program.operations, exact=exact)
        self.exact += exact
        self.compared += verdict.compared
        self.skipped += len(program.operations) - verdict.compared
        self.stale += verdict.stale is not None
        self.explained.update(verdict.explained.keys())
        steps = pair.recording.observation.steps[: verdict.compared]
        self.coverage.add(program.operations, [step.causes for step in steps])
        if verdict.unexplained:
            operations = program.operations
            if exact:  # without an operation it might owe another; it is cut behind the failure
                operations = operations[: verdict.unexplained[0].step + 1]
            self._fail(seed, name, operations, verdict, shrinkable=not exact)

    def _fail(
        self,
        seed: int,
        name: str,
        operations: Sequence[Operation],
        seen: Verdict,
        *,
        shrinkable: bool,
    ) -> None:
        known = self._signatures.get(seen.signature)
        if known is not None:
            known.times += 1
            return
        findings = [str(each) for each in seen.unexplained]
        if shrinkable and len(self.failures) < MOST_FAILURES:
            pair = self._pairs[name]
            operations = pair.shrink(operations)
            findings = [str(each) for each in pair.run(operations).unexplained]
        text = format_program(operations, register_names())
        failure = Failure(name, seed, findings, text)
        self._signatures[seen.signature] = failure
        self.failures.append(failure)

    def _hold_to_oracle(self, seed: int, name: str) -> None:
        program = generate_partial(seed, name)
        self.partial += 1
        wrong = self._oracles[name].run(program.operations)
        self.coverage.add(program.operations, [()] * len(program.operations))
        if wrong is not None:
            until = program.operations[: wrong.step + 1]
            text = format_program(until, register_names())
            self.failures.append(Failure(name, seed, [f"oracle: {wrong}"], text))
