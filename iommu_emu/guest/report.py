"""The report of a guest's run: what its kernel said beside what the emulator saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iommu_emu.guest.check import MEDIUM, POLICY_LINES, describe_window
from iommu_emu.guest.console import Check, Console
from iommu_emu.guest.mappings import DomainMappings
from iommu_emu.guest.observer import Observer
from iommu_emu.guest.window import WindowRound
from iommu_emu.pci.address import format_requester

__all__ = ["Report", "Versions"]


@dataclass(frozen=True)
class Versions:
    """What took part.

    Attributes:
        iommu_emu: our version.
        qemu: QEMU's version line.
        kernel: the kernel's release.
        kernel_name: how the user named it.
    """

    iommu_emu: str
    qemu: str
    kernel: str
    kernel_name: str


@dataclass
class Report:
    """Everything about one run.

    Attributes:
        versions: what took part.
        policy: "strict", "lazy" or "passthrough".
        console: what the guest said.
        observer: what the emulator saw.
        counters: the unit's counters at the end.
        mappings: the devices' domains at the end, by the device's name.
        devices: requester IDs by name.
        checks: the host's own results; the guest's are in `console`.
        window: the rounds in which a device kept using what was unmapped.
        phases: seconds of each phase, in order.
    """

    versions: Versions
    policy: str
    console: Console
    observer: Observer
    counters: Mapping[str, int]
    mappings: Mapping[str, DomainMappings | None]
    devices: Mapping[str, int]
    checks: list[Check] = field(default_factory=list)
    window: list[WindowRound] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def results(self) -> list[tuple[str, Check]]:
        """Every check with who made it: "guest" or "host"."""
        return [("guest", c) for c in self.console.checks] + [("host", c) for c in self.checks]

    @property
    def ok(self) -> bool:
        """Whether every check went as it should."""
        return bool(self.results) and all(check.ok for _, check in self.results)

    def plain(self) -> dict[str, Any]:
        """Return the report for programs."""
        observer, console = self.observer, self.console
        return {
            "ok": self.ok,
            "policy": self.policy,
            "versions": asdict(self.versions),
            "phases": {name: round(seconds, 3) for name, seconds in self.phases.items()},
            "checks": [
                {"by": who, "name": c.name, "ok": c.ok, "detail": c.detail}
                for who, c in self.results
            ],
            "not_run": [{"name": name, "reason": reason} for name, reason in console.skipped],
            "guest": {
                "facts": [list(fact) for fact in console.facts],
                "policy": console.find(*POLICY_LINES),
                "dmar": console.find("DMAR"),
                "faults": [
                    {
                        "requester": format_requester(f.requester),
                        "access": (f.access.name or "").lower(),
                        "address": f.address,
                        "reason": f.reason,
                        "line": f.text,
                    }
                    for f in console.faults
                ],
                "trouble": console.trouble,
            },
            "emulator": {
                "register_reads": dict(observer.reads.most_common()),
                "register_writes": dict(observer.writes.most_common()),
                "invalidations": dict(sorted(observer.invalidations.items())),
                "counters": dict(self.counters),
                "traffic": {
                    format_requester(requester): asdict(traffic)
                    for requester, traffic in sorted(observer.traffic.items())
                },
                "mappings": {
                    name: None if m is None else {**asdict(m), "mapped": m.mapped}
                    for name, m in self.mappings.items()
                },
                "faults": [
                    {
                        "time_ns": f.time,
                        "requester": format_requester(f.requester),
                        "access": (f.access.name or "").lower(),
                        "address": f.address,
                        "reason": f.code,
                        "cause": f.cause.name,
                        "condition": f.cause.condition,
                        "section": f.cause.section,
                    }
                    for f in observer.faults
                ],
                "fault_count": observer.fault_count,
                "stale_uses": [
                    {
                        "time_ns": s.time,
                        "requester": format_requester(s.request.requester),
                        "address": s.request.address,
                        "entry": s.entry,
                        "before": s.before,
                        "after": s.after,
                        "owed": [flag.name for flag in type(s.owed) if flag and flag in s.owed],
                        "invalidation": s.invalidation.name,
                    }
                    for s in observer.stale
                ],
                "stale_count": observer.stale_count,
                "trace_events_lost": observer.lost,
            },
            "window": [asdict(one) for one in self.window],
        }

    # For people.

    def render(self) -> RenderableType:
        """Return the report for a terminal."""
        return Group(
            self._title(), Text(), self._checks(), Text(), self._two_views(), Text(), self._times()
        )

    def _title(self) -> Text:
        versions = self.versions
        title = Text.assemble((f"Linux {versions.kernel}", "bold"), f", policy {self.policy}: ")
        title.append("every check passed" if self.ok else "a check FAILED", _style(self.ok))
        title.append(f"\n{versions.qemu}, iommu-emu {versions.iommu_emu}", "dim")
        return title

    def _checks(self) -> Table:
        """Return a line a check; where the host looked at the disk as well, in one line."""
        disks = {check.name: check for check in self.checks if check.name.startswith(MEDIUM)}
        table = _table("check", "guest", "host", "detail")
        for who, check in self.results:
            if check.name in disks:
                continue
            disk = disks.get(MEDIUM + check.name)
            guest, host = (check, disk) if who == "guest" else (None, check)
            detail = check.detail if disk is None or disk.ok else f"{check.detail}, {disk.detail}"
            table.add_row(check.name, _verdict(guest), _verdict(host), Text(_shortened(detail)))
        for name, reason in self.console.skipped:
            table.add_row(name, Text("not run", "yellow"), "", Text(reason))
        return table

    def _two_views(self) -> Table:
        table = _table("", "the guest's kernel says", "the emulator saw")
        for title, said, seen in self._views():
            table.add_row(title, Text("\n".join(said)), Text("\n".join(seen)))
        return table

    def _views(self) -> Iterator[tuple[str, list[str], list[str]]]:
        observer, console = self.observer, self.console
        policy = [line.partition("iommu: ")[2] or line for line in console.find(*POLICY_LINES)]
        yield (
            "policy",
            policy,
            [f"{count} {kind}" for kind, count in sorted(observer.invalidations.items())],
        )
        groups = [value.split() for name, value in console.facts if name == "group"]
        own = {
            f"0000:{format_requester(requester)}": name for name, requester in self.devices.items()
        }
        yield (
            "domains",
            [
                f"{own[g[1]]} {g[1][5:]}: group {g[0]}, {' '.join(g[2:])}"
                for g in groups
                if len(g) > 1 and g[1] in own
            ],
            [_mapped(name, mappings) for name, mappings in self.mappings.items()],
        )
        counters = self.counters
        yield (
            "traffic",
            [_disk_use(value) for name, value in console.facts if name == "disk"],
            [
                *(
                    f"{name}: {t.dmas} DMAs, {t.bytes >> 10} KiB, {t.refused} refused"
                    for name, requester in self.devices.items()
                    if (t := observer.traffic.get(requester)) is not None
                ),
                f"IOTLB: {counters['iotlb_hit']} hits of {counters['iotlb_lookup']} lookups",
                f"registers: {sum(observer.reads.values())} reads,"
                f" {sum(observer.writes.values())} writes",
            ],
        )
        yield (
            "faults",
            [fault.text for fault in console.faults],
            [
                f"{format_requester(f.requester)} {(f.access.name or '').lower()} of"
                f" {f.address:#x}: {f.code:#04x} {f.cause.name}, {f.cause.condition}"
                for f in observer.faults[:20]
            ],
        )
        uses = f"{observer.stale_count} uses of stale entries"
        yield ("unmapped pages", [], [uses, describe_window(self.window)])
        yield ("trouble", console.trouble or ["none"], [])

    def _times(self) -> Text:
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.phases.items()]
        return Text(f"{', '.join(parts)}; together {sum(self.phases.values()):.1f} s", "dim")


def _disk_use(statistics: str) -> str:
    """Read a block device's statistics: requests and sectors of 512 bytes, read and written."""
    words = statistics.split()
    if len(words) < 8 or not all(word.isdigit() for word in words[1:]):
        return statistics
    read, written = (int(words[at]) >> 1 for at in (3, 7))
    return f"{words[0]}: {read} KiB read, {written} KiB written"


def _mapped(name: str, mappings: DomainMappings | None) -> str:
    if mappings is None:
        return f"{name}: no domain"
    if mappings.pass_through:
        return f"{name}: domain {mappings.domain}, pass-through"
    pages = sum(mappings.pages.values())
    return (
        f"{name}: domain {mappings.domain}, {mappings.levels} levels, {pages} entries map"
        f" {mappings.mapped >> 10} KiB"
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _style(ok: bool) -> str:
    return "green" if ok else "bold red"


def _verdict(check: Check | None) -> Text:
    return Text() if check is None else Text("ok" if check.ok else "FAIL", _style(check.ok))


def _shortened(detail: str) -> str:
    """Cut checksums to what a person compares."""
    words = [
        f"{w[: w.index('=') + 13]}…" if w.startswith(("sha256=", "expected=")) else w
        for w in detail.split(" ")
    ]
    return " ".join(words)
