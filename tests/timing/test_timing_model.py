"""Timing models: numbers with sources, from data files of the package or a user's own."""

import re
from pathlib import Path

import pytest

from iommu_emu import Machine, policies
from iommu_emu.devices import Edu
from iommu_emu.meter import Work
from iommu_emu.scenarios import registry as scenarios
from iommu_emu.scenarios.laboratory import Laboratory
from iommu_emu.timing import IMMEDIATE, Timing
from iommu_emu.timing_model import NUMBERS, Certainty, TimingModelError, load, names
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

PAGE = Path(__file__).parents[2] / "docs" / "timing-models.md"
RATES = r"^\| ([\w-]+) \| ([\d.]+) \| [\d.]+ \|"


@pytest.fixture
def model(tmp_path):
    """Return what writes a file and loads it."""

    def model(text):
        path = tmp_path / "my.toml"
        path.write_text(text)
        return load(str(path))

    return model


def cycles(name, *numbers):
    model = load(name)
    return sum(model.numbers[number].value for number in numbers)


MAP = ("iova_allocate", "table_map", "map_call")
INVALIDATE = ("submit", "invalidate_page", "wait")
UNMAP = ("iova_free", "table_unmap", "unmap_call")


# ---- presets ---------------------------------------------------------------------------------


def test_presets_are_sorted_by_name():
    assert names() == ("free", "linux", "linux-2015-deferred", "linux-2015-strict", "slow-walk")


def test_free_takes_no_time():
    assert {row.ns for row in load("free").rows()} == {0}


@pytest.mark.parametrize("name", sorted(set(names()) - {"free"}))
def test_preset_has_every_number_with_a_source(name):
    numbers = load(name).numbers
    assert set(numbers) == set(NUMBERS)
    assert all(number.source for number in numbers.values())


@pytest.mark.parametrize(
    ("name", "map_cycles", "unmap_cycles"),
    [("linux-2015-strict", 4618, 2999), ("linux", 727, 3067)],
)
def test_strict_map_and_unmap_add_up_to_riommu_table_1(name, map_cycles, unmap_cycles):
    assert cycles(name, *MAP) == map_cycles
    assert cycles(name, *UNMAP, *INVALIDATE) == unmap_cycles


def test_deferred_map_and_unmap_add_up_to_riommu_table_1():
    flush = cycles("linux-2015-deferred", "submit", "invalidate_domain", "wait") / 250
    assert cycles("linux-2015-deferred", *MAP) == 2251
    assert cycles("linux-2015-deferred", *UNMAP, "queue_add") + flush == 1137


def test_unknown_preset_names_the_nearest():
    with pytest.raises(TimingModelError, match=r"must be one of free, .*; did you mean linux\?"):
        load("linus")


# ---- a user's own ----------------------------------------------------------------------------


def test_price_in_ns(model):
    assert model("[copy]\nns = 0.25\n").price(Work.COPY) == 0.25


def test_price_in_cycles_follows_the_clock(model):
    assert model("clock = 2\n[submit]\ncycles = 300\n").price(Work.SUBMIT) == 150


def test_what_a_file_does_not_say_takes_no_time(model):
    assert model("").price(Work.SUBMIT) == 0


def test_extends_inherits_numbers_and_clock(model):
    mine = model('extends = "linux"\n[wait]\nns = 7\n')
    assert mine.price(Work.WAIT) == 7
    assert mine.price(Work.MAP_CALL) == load("linux").price(Work.MAP_CALL)


def test_inherited_cycles_take_the_new_clock(model):
    assert model('extends = "linux"\nclock = 1\n').price(Work.MAP_CALL) == 45


def test_a_number_without_a_source_is_a_choice(model):
    assert model("[copy]\nns = 1\n").numbers["copy"].certainty is Certainty.CHOICE


def test_row_shows_the_number_as_given_and_in_ns(model):
    text = 'clock = 2\n[submit]\ncycles = 300\nsource = "here"\ncertainty = "read"\n'
    rows = {row.name: row for row in model(text).rows()}
    about = "descriptors written and the doorbell rung"
    assert rows["submit"] == ("submit", about, "300 cycles", 150, "read", "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clock = 0", r"my.toml: clock: must be in 0.1..10 GHz, not 0"),
        ("clock = true", r"my.toml: clock: must be in 0.1..10 GHz, not True"),
        ("title = 1", r"my.toml: title: must be a string, not 1"),
        ("clok = 1", r"my.toml: clok: unknown; there are title, .*, clock, iova_allocate"),
        ("copy = 1", r"my.toml: copy: must be a table such as \{ ns = 100 \}, not 1"),
        ("[copy]", r"my.toml: copy: must have either ns or cycles"),
        ("[copy]\nns = 1\ncycles = 1", r"my.toml: copy: must have either ns or cycles"),
        ("[copy]\nns = -1", r"my.toml: copy.ns: must be in 0..1e\+12 ns, not -1"),
        ("[copy]\nns = nan", r"my.toml: copy.ns: must be in 0..1e\+12 ns, not nan"),
        ("[copy]\nns = 1e13", r"my.toml: copy.ns: must be in 0..1e\+12 ns, not 1"),
        ("[copy]\ncycles = ''", r"my.toml: copy.cycles: must be in 0..1e\+12 cycles, not ''"),
        ("[copy]\nms = 1", r"my.toml: copy.ms: unknown; there are ns, cycles, source, cert"),
        ("[copy]\nns = 1\nsource = 1", r"my.toml: copy.source: must be a string, not 1"),
        ("[copy]\nns = 1\ncertainty = 's'", r"copy.certainty: must be one of read, .*, not 's'"),
        ("[copy]\nns = 1\ncertainty = 'read'", r"copy: without a source it must be a choice"),
        ("extends = 'x'", r"my.toml: extends: timing model must be one of free, .*, not 'x'"),
        ("[copy", r"my.toml: no TOML: "),
        ("clock = " + "9" * 5000, r"my.toml: no TOML: Exceeds the limit"),
    ],
)
def test_mistake_is_named_with_file_key_and_limit(model, text, message):
    with pytest.raises(TimingModelError, match=message):
        model(text)


def test_file_that_is_no_text_is_no_toml(tmp_path):
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(TimingModelError, match="no TOML"):
        load(str(path))


def test_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(str(tmp_path / "my.toml"))


# ---- what the emulator makes of it -----------------------------------------------------------


def test_unit_timing_is_that_of_a_page(model):
    text = "[invalidate_page]\nns = 500\n[wait]\nns = 50\n[submit]\nns = 9\n"
    assert model(text).unit_timing() == Timing(invalidation=500, wait=50)


def test_unit_timing_of_free_is_immediate():
    assert load("free").unit_timing() == IMMEDIATE


def test_set_up_gives_ports_their_latencies(model):
    machine = Machine(1 << 20)
    device = machine.attach(Edu())
    model("[fabric]\nns = 3\n[memory]\nns = 4\n").set_up(machine)
    assert device.dma.latency == (3, 4)


def test_set_up_gives_units_their_latencies(model):
    machine = Machine(1 << 20)
    driver = VtdDriver(machine, VtdUnit(machine, VtdConfig(base=0xFED9_0000)), range(1 << 20))
    driver.start()
    model("[wait]\nns = 5\n").set_up(machine)
    driver.wait()
    assert machine.clock.now == 5


# ---- the page about it -----------------------------------------------------------------------


def test_example_of_the_documentation_is_a_model(model):
    text = PAGE.read_text("utf-8")
    mine = model(re.search(r"```toml\n(.*?)```", text, re.S)[1])
    assert mine.price(Work.INVALIDATE_PAGE) == 900
    assert mine.ns("packet") == 500


def test_documentation_lists_every_preset():
    text = PAGE.read_text("utf-8")
    assert all(f"`{name}`" in text for name in names())


@pytest.mark.parametrize(("policy", "gbps"), re.findall(RATES, PAGE.read_text("utf-8"), re.M))
def test_page_has_the_rates_of_one_cpu(policy, gbps):
    laboratory = Laboratory("vtd", policies.load(policy), timing=load("linux"), cpus=1)
    workload = scenarios.load("deferred-invalidation").workload
    assert f"{workload(laboratory).gbps:.1f}" == gbps
