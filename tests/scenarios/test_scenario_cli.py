"""`iommu-emu scenario`: what it prints, writes, and refuses."""

import json
import os
import subprocess

import pytest
from installed_command import IOMMU_EMU

from iommu_emu.cli.main import main
from iommu_emu.scenario_report import plain
from iommu_emu.scenarios.expectations import parse
from iommu_emu.scenarios.result import Costs
from iommu_emu.scenarios.workload import WORKLOADS

POLICY = """
from iommu_emu.policies import LinuxPolicy

POLICY = LinuxPolicy(
    name="{name}", summary="Mine.", source="me", parameters="iommu.passthrough=1"
)
"""
SCENARIO = """
from iommu_emu.devices import MaliciousDevice
from iommu_emu.scenarios.result import Costs
from iommu_emu.scenarios.scenario import Attack, Scenario


def read(lab):
    device = lab.attach(MaliciousDevice("stranger"))
    page = lab.linux.memory.alloc_pages(1, "sshd")
    secret = lab.plant(page, 16)
    lab.revoke("it never was")
    got = lab.read(device, page, 16).data
    lab.say("A stranger reads a page of sshd's.")
    return lab.outcome(leaked=lab.matching(got, secret), forever=bool(got))


SCENARIO = Scenario(
    name="tiny",
    title="Tiny",
    question="Who reads what?",
    source="a test",
    policies=("linux-strict", "linux-passthrough"),
    attacks=(Attack(name="read", summary="A stranger reads.", run=read),),
    workload=lambda lab: Costs(operations=4, map_ns=100.0, unmap_ns=1500.0, gbps=12.5),
)
"""


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # pytest-xdist's workers say 80


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(SCENARIO)
    return str(path)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(POLICY.format(name="mine"))
    return str(path)


def refused(capsys, *words):
    assert main(["scenario", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.removeprefix("iommu-emu scenario: ").rstrip("\n")


def test_list_names_everything(capsys):
    assert main(["scenario", "list"]) == 0
    out = capsys.readouterr().out
    for word in ("bounce-buffer", "linux-lazy", "sub-page-reader", "timing models"):
        assert word in out


def test_list_for_programs_has_attacks_and_objections(capsys):
    assert main(["scenario", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"scenarios", "policies", "devices", "timing_models"}
    bounce = next(s for s in found["scenarios"] if s["name"] == "bounce-buffer")
    assert "sub-page-read" in bounce["attacks"]
    assert all(thing["summary"] for thing in (*found["policies"], *found["devices"]))


def test_run_tells_the_story_and_counts(capsys, tiny):
    assert main(["scenario", "run", tiny]) == 0
    out = capsys.readouterr().out
    assert "Tiny (VT-d)\nWho reads what?" in out
    assert "✔ linux-strict\n    A stranger reads a page of sshd's." in out
    assert "✘ linux-passthrough\n    A stranger reads a page of sshd's." in out
    lines = [line.split() for line in out.splitlines()]
    assert ["linux-strict", "blocked", "none", "0", "0"] in [line[:5] for line in lines]
    leak = ["linux-passthrough", "16", "B", "leaked", "forever", "1"]
    assert leak in [line[:6] for line in lines]
    cost = next(line for line in lines if line[:5] == ["linux-strict", "100", "ns", "(0", "ns)"])
    assert cost[-3:] == ["12.5", "100%", "50%"]


def test_run_ends_with_a_line_a_policy(capsys, tiny):
    main(["scenario", "run", tiny])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert lines == [
        ["in", "short", "let", "in", "at", "worst", "for", "up", "to", "map", "+", "unmap", "Gb/s"],
        ["linux-strict", "0", "of", "1", "nothing", "1.6", "µs", "12.5"],
        ["linux-passthrough", "1", "of", "1", "16", "B", "leaked", "forever", "1.6", "µs", "12.5"],
    ]


def test_run_shows_what_policies_do_and_what_was_logged(capsys, tiny):
    main(["scenario", "run", tiny])
    out = capsys.readouterr().out
    assert "  linux-passthrough  Devices that are trusted reach all of memory untranslated." in out
    assert "    log: DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr" in out


def test_costs_of_a_workload_that_takes_no_time_are_json(capsys):
    words = ["deferred-invalidation", "--policy", "permanent", "--timing", "free"]
    assert main(["scenario", "run", *words, "--json", "-"]) == 0

    def unknown(text):
        raise AssertionError(text)

    report = json.loads(capsys.readouterr().out, parse_constant=unknown)
    assert report["results"][0]["costs"]["permanent"]["gbps"] == 0


def test_run_on_both_vendors_gives_two_results(capsys, tiny):
    assert main(["scenario", "run", tiny, "--iommu", "both", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["iommu"] for result in results] == ["vtd", "amdvi"]
    row = results[1]["rows"][1]
    assert (row["policy"], row["leaked"], row["window_ns"]) == ("linux-passthrough", 16, "forever")
    assert row["deviations"] is None
    assert {"map", "dma", "note", "log"} >= {event["kind"] for event in row["timeline"]}


def test_policy_of_ones_own_is_run_and_nothing_is_expected_of_it(capsys, tiny, mine):
    assert main(["scenario", "run", "bounce-buffer", "--policy", mine, "--attack", "sub-page-read",
                 "--json", "-"]) == 0  # fmt: skip
    row = json.loads(capsys.readouterr().out)["results"][0]["rows"][0]
    assert (row["policy"], row["expected"], row["deviations"]) == ("mine", None, None)
    assert row["leaked"] > 0


def test_name_with_brackets_is_shown_as_it_is(capsys, tmp_path, tiny):
    (tmp_path / "p.py").write_text(POLICY.format(name="mine [bold]"))
    assert main(["scenario", "run", tiny, "--policy", str(tmp_path / "p.py")]) == 0
    assert capsys.readouterr().out.count("mine [bold]") == 5


def test_result_that_is_not_as_expected_is_an_exit_code(capsys, monkeypatch):
    text = "[linux-strict]\nsub-page-read = { leaked = 1 }"
    monkeypatch.setattr(plain, "built_in", lambda: parse(text))
    words = ["bounce-buffer", "--policy", "linux-strict", "--attack", "sub-page-read"]
    assert main(["scenario", "run", *words]) == 1
    out = capsys.readouterr().out
    assert "not as expected: linux-strict, sub-page-read: leaked 3584, not 1" in out


def test_all_runs_what_policies_and_attacks_are_for(capsys):
    words = ["all", "--policy", "linux-strict", "--attack", "sub-page-read", "--json", "-"]
    assert main(["scenario", "run", *words]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(r["scenario"], len(r["rows"]), r["costs"]) for r in results] == [
        ("bounce-buffer", 1, {})
    ]


def test_files_are_written(capsys, tmp_path, tiny):
    names = [str(tmp_path / name) for name in ("r.json", "r.html", "c.svg")]
    words = [w for pair in zip(("--json", "--html", "--plot"), names, strict=True) for w in pair]
    assert main(["scenario", "run", tiny, *words]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["scenario"] == "tiny"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_unknown_names_are_refused_with_the_nearest_one(capsys, tiny):
    assert refused(capsys, "run", "bounce-bufer").endswith("did you mean bounce-buffer?")
    error = refused(capsys, "run", "bounce-buffer", "--policy", "linux-laxy")
    assert error.endswith("did you mean linux-lazy?")
    error = refused(capsys, "run", "bounce-buffer", "--attack", "sub-page-reed")
    assert error.endswith("did you mean sub-page-read?")
    assert "did you mean linux?" in refused(capsys, "run", tiny, "--timing", "linus")
    assert "did you mean linux?" in refused(capsys, "timing", "linus")


def test_policy_of_another_system_is_refused(capsys):
    assert refused(capsys, "run", "bounce-buffer", "--policy", "xen-basic").startswith(
        "scenario bounce-buffer is not about the system of policy xen-basic; its policies are"
    )


def test_policy_with_a_name_that_is_taken_is_refused(capsys, tmp_path):
    (tmp_path / "p.py").write_text(POLICY.format(name="linux-lazy"))
    error = refused(capsys, "run", "bounce-buffer", "--policy", str(tmp_path / "p.py"))
    assert error == "name of a policy of your own must not be linux-lazy: that is one"


def test_nothing_to_run_is_refused(capsys):
    message = "nothing to run: these attacks are not tried against these policies"
    words = ["--policy", "linux-strict", "--attack", "slot-reuse"]
    assert refused(capsys, "run", "bounce-buffer", *words) == message
    words = ["--policy", "xen-basic", "--attack", "sub-page-read"]
    assert refused(capsys, "run", "all", *words) == message


def test_policies_of_ones_own_need_different_names(capsys, tmp_path, mine):
    other = tmp_path / "other.py"
    other.write_text(POLICY.format(name="mine"))
    error = refused(capsys, "run", "bounce-buffer", "--policy", mine, "--policy", str(other))
    assert error == "two of the policies are called mine"


def test_policy_of_ones_own_that_fails_says_where(capsys, tmp_path):
    path = tmp_path / "p.py"
    path.write_text(POLICY.format(name="mine").replace('"iommu.passthrough=1"', "5"))
    words = ("run", "bounce-buffer", "--policy", str(path), "--attack", "sub-page-read")
    assert refused(capsys, *words).startswith("mine, sub-page-read: AttributeError: ")


def test_file_that_is_no_policy_is_refused(capsys, tmp_path):
    path = tmp_path / "p.py"
    path.write_text("POLICY = 1")
    words = ("run", "bounce-buffer", "--policy", str(path))
    assert (
        refused(capsys, *words) == f"{path}: defines no POLICY that is a LinuxPolicy or XenPolicy"
    )
    path.write_text("POLICY = nothing")
    assert refused(capsys, *words) == f"{path}: NameError: name 'nothing' is not defined"
    path.unlink()
    assert refused(capsys, *words) == f"{path}: No such file or directory"


def test_output_that_cannot_be_written_is_refused_before_the_run(capsys, tmp_path, tiny):
    place = str(tmp_path / "missing" / "r.html")
    assert refused(capsys, "run", tiny, "--html", place) == f"{place}: No such file or directory"
    place = str(tmp_path / "c.gif")
    assert refused(capsys, "run", tiny, "--plot", place).endswith("must end in .png, .svg, .pdf")
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.py"]


@pytest.mark.parametrize("words", [("--workload", "none"), ("--attack", "read")])
def test_chart_needs_a_workload(capsys, tmp_path, tiny, words):
    place = str(tmp_path / "c.svg")
    error = refused(capsys, "run", tiny, "--plot", place, *words)
    assert error == f"{place}: a chart shows costs: choose a --workload for it"


def test_chart_needs_costs_and_matplotlib(capsys, monkeypatch, tmp_path, tiny):
    free = tmp_path / "free.py"
    free.write_text("".join(line for line in SCENARIO.splitlines(True) if "workload=" not in line))
    place = str(tmp_path / "c.svg")
    error = refused(capsys, "run", str(free), "--plot", place)
    assert error == f"{place}: tiny measures no costs that a chart could show"
    monkeypatch.setattr("iommu_emu.scenario_report.chart.find_spec", lambda name: None)
    error = refused(capsys, "run", tiny, "--plot", place)
    assert error == "charts need matplotlib: pip install 'iommu-emu[plot]'"


def test_workload_can_be_chosen(capsys, monkeypatch, tiny):
    monkeypatch.setitem(WORKLOADS, "blocks", lambda laboratory: Costs(operations=7))
    words = ["scenario", "run", tiny, "--attack", "read", "--workload", "blocks", "--json", "-"]
    assert main(words) == 0
    costs = json.loads(capsys.readouterr().out)["results"][0]["costs"]
    assert {policy: each["operations"] for policy, each in costs.items()} == {
        "linux-strict": 7,
        "linux-passthrough": 7,
    }


def test_workload_for_policies_of_xen_is_an_error(capsys):
    words = ("run", "quarantine", "--policy", "xen-full", "--workload", "packets")
    assert refused(capsys, *words) == (
        "--workload packets is work for drivers of Linux, and Xen's policies (xen-full) have none: "
        "leave it out"
    )


def test_other_pairs_are_printed_below_their_policy(capsys, monkeypatch, tiny):
    costs = Costs(operations=1, others={"assign, deassign": Costs(operations=1, frames=5)})
    monkeypatch.setitem(WORKLOADS, "map", lambda laboratory: costs)
    main(["scenario", "run", tiny, "--policy", "linux-strict", "--workload", "map"])
    lines = capsys.readouterr().out.splitlines()
    below = lines[lines.index(next(line for line in lines if "a pair costs" in line)) + 2]
    assert (below.startswith("  assign, deassign "), below.split()[-1]) == (True, "5")


def test_full_disk_is_said_of_the_file(capsys, tiny):
    assert refused(capsys, "run", tiny, "--json", "/dev/full") == (
        "/dev/full: No space left on device"
    )


@pytest.mark.parametrize("number", ["0", "33", "many"])
def test_number_of_cpus_has_limits(capsys, tiny, number):
    with pytest.raises(SystemExit) as ended:
        main(["scenario", "run", tiny, "--cpus", number])
    assert ended.value.code == 2
    assert f"--cpus: must be in 1..32, not {number}" in capsys.readouterr().err


def test_timing_shows_numbers_and_sources(capsys):
    assert main(["scenario", "timing"]) == 0
    assert "invalidate_page" in capsys.readouterr().out
    assert main(["scenario", "timing", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "linux"
    assert {"name", "ns", "certainty", "source"} <= set(report["rows"][0])


def test_expectations_are_shown_by_vendor(capsys):
    assert main(["scenario", "expectations"]) == 0
    assert "on AMD-Vi" in capsys.readouterr().out
    assert main(["scenario", "expectations", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    row = next(r for r in rows if (r["policy"], r["attack"]) == ("linux-strict", "sub-page-read"))
    assert row["vtd"] == row["amdvi"]
    assert row["vtd"]["leaked"] == 3584


def test_reader_that_has_seen_enough_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    words = ["run", "bounce-buffer", "--policy", "linux-strict", "--attack", "sub-page-read"]
    with open(writer, "wb") as nobody:
        run = subprocess.run(
            [IOMMU_EMU, "scenario", *words], stdout=nobody, stderr=subprocess.PIPE, check=False
        )
    assert (run.returncode, run.stderr) == (0, b"")


def test_installed_command_has_what_it_needs(tmp_path):
    run = subprocess.run(
        [IOMMU_EMU, "scenario", "run", "bounce-buffer", "--policy", "linux-untrusted",
         "--attack", "sub-page-read", "--html", "r.html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert run.stderr == ""
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_policies_and_attacks_are_lists(capsys):
    policies = ("--policy", "linux-strict", "linux-untrusted", "--policy", "shadow-copy")
    attacks = ("--attack", "sub-page-read", "sub-page-write")
    assert main(["scenario", "run", "bounce-buffer", *policies, *attacks, "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"][0]["rows"]
    assert [(row["policy"], row["attack"]) for row in rows] == [
        (policy, attack)
        for policy in ("linux-strict", "linux-untrusted", "shadow-copy")
        for attack in ("sub-page-read", "sub-page-write")
    ]
