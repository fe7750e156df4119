"""What `iommu-emu scenario run dma-ownership` tells; bytes and refusals: expectations.toml."""

import pytest

from iommu_emu import policies
from iommu_emu.policies import LinuxPolicy
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.result import FOREVER
from iommu_emu.scenarios.runner import NO_WORKLOAD, run

SCENARIO = registry.load("dma-ownership")
OLD, NEW = "vfio-notifier", "vfio-ownership"


@pytest.fixture(scope="module", params=["vtd", "amdvi"])
def iommu(request):
    return request.param


@pytest.fixture(scope="module")
def rows(iommu):
    result = run(SCENARIO, iommu=iommu, workload=NO_WORKLOAD)
    return {(row.policy, row.attack): row for row in result.rows}


def test_ownership_every_attack_meets_both_rules(rows):
    assert set(rows) == {(rule, a.name) for rule in (OLD, NEW) for a in SCENARIO.attacks}


def test_shpchp_is_refused_with_the_reason_and_the_remedy(rows):
    assert rows[NEW, "peer-write-shpchp"].refused == (
        "-EPERM: 0000:01:00.0 is bound to shpchp, which uses the default domain: "
        "unbind it, or bind pci-stub"
    )


def test_write_to_shpchp_changes_command_and_slot_and_no_unit_sees_it(rows):
    row = rows[OLD, "peer-write-shpchp"]
    assert (row.outcome.corrupted, row.outcome.window, row.outcome.dmas) == (3, FOREVER, 2)
    assert row.faults == []
    assert "slot 1 is disabled now" in row.story[-1]


@pytest.mark.parametrize("rule", [OLD, NEW])
def test_write_beside_a_group_that_is_too_small_lands_by_either_rule(rows, rule):
    row = rows[rule, "peer-write-beside-group"]
    assert (row.outcome.corrupted, row.faults, row.refused) == (3, [], "")


@pytest.mark.parametrize("rule", [OLD, NEW])
def test_redirected_write_is_translated_and_faults_once(rows, rule):
    row = rows[rule, "peer-write-redirected"]
    assert (row.outcome.corrupted, len(row.faults)) == (0, 1)
    assert "the card reaches that memory, and still not the bridge" in row.story[-1]


@pytest.mark.parametrize("rule", [OLD, NEW])
def test_write_to_pcieport_lands_where_its_driver_does_not_look(rows, rule):
    row = rows[rule, "peer-write-pcieport"]
    assert (row.outcome.corrupted, row.faults, row.refused) == (0, [], "")
    assert row.story[-1] == (
        "Both rules allow it. The card's write changes 3 bytes of the upstream port's registers "
        "in memory, and 0 bytes of what pcieport uses."
    )


@pytest.mark.parametrize("rule", [OLD, NEW])
def test_claim_takes_all_of_memory_from_a_card_that_was_not_translated(rows, rule):
    row = rows[rule, "untranslated-before-claim"]
    assert (row.outcome.leaked, len(row.faults)) == (0, 1)


@pytest.mark.parametrize("attack", ["bind-to-claimed-group", "plug-into-claimed-group"])
def test_late_driver_stops_the_old_kernel_and_not_the_new_one(rows, attack):
    assert "kernel BUG" in rows[OLD, attack].log[-1]
    assert not any("BUG" in line for line in rows[NEW, attack].log)


def test_old_kernel_warns_of_a_device_that_comes(rows):
    log = rows[OLD, "plug-into-claimed-group"].log
    assert "pci 0000:02:02.0: Device added to live group 1!" in log


def test_type_change_is_logged_by_the_old_kernel_alone(rows):
    line = "iommu: Device is still bound to driver"
    logged = [line in rows[rule, "type-change-while-bound"].log for rule in (OLD, NEW)]
    assert logged == [True, False]


@pytest.mark.parametrize("name", [OLD, NEW])
def test_ownership_policy_names_source_and_objection(name):
    policy = policies.load(name)
    assert isinstance(policy, LinuxPolicy)
    assert policy.notifier is (name == OLD)
    assert "5.1" in policy.source
    assert "2022" in policy.objection


def test_ownership_is_the_same_whatever_the_seed(rows, iommu):
    again = run(SCENARIO, iommu=iommu, seed=7, workload=NO_WORKLOAD)
    assert {(row.policy, row.attack): row.outcome for row in again.rows} == {
        key: row.outcome for key, row in rows.items()
    }
