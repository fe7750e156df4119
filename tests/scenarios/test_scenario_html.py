"""The page: one file, shown by a real browser if there is one."""

import json
import re

import pytest
from browser import Browser, find_browser
from results import EVIL, SCENARIO, result

from iommu_emu.scenario_report.html import page
from iommu_emu.scenario_report.plain import plain

MANY = 10_000


@pytest.fixture(scope="module")
def report():
    return plain([(SCENARIO, result(MANY))])


@pytest.fixture(scope="module")
def browser(report, tmp_path_factory):
    """A browser, and a page of which one timeline has 10,000 events."""
    program = find_browser()
    if program is None:
        pytest.skip("not run: no Chromium is installed")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(page(report), encoding="utf-8")
    with Browser(program, str(folder / "profile")) as browser:
        browser.url = (folder / "page.html").as_uri()
        yield browser


@pytest.fixture
def timeline(browser):
    """The page with the long timeline, as it is when it is opened."""
    show(browser, "row=2")
    return browser


def show(browser, view):
    browser.open("about:blank")
    browser.open(f"{browser.url}#{view}")
    browser.ask("document.getElementById('timeline').focus()")


def events_in_view(browser):
    return int(re.search(r": (\d+) of", browser.text("#range"))[1])


def test_page_needs_nothing_else(report):
    text = page(report)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|src=|@import|url\(", text)


def test_page_takes_nothing_that_is_said_as_a_part_of_itself(report):
    text = page(report)
    assert EVIL not in text
    assert text.count("</script>") == 2


def test_page_keeps_addresses_of_64_bits(report):
    data = re.search('<script type="application/json" id="data">(.*?)</script>', page(report))
    events = json.loads(data[1])["results"][0]["rows"][0]["timeline"]
    assert events[1][4] == "0xffffffffffff0000"


def test_matrix_selects_what_is_shown(browser):
    show(browser, "row=0")
    assert browser.text("#row-title") == "linux-strict against read-after-unmap: blocked"
    browser.click("#matrix tr:nth-child(2) button")
    assert browser.text("#row-title") == "linux-lazy against read-after-unmap: 2048 B leaked"
    assert browser.text("#story") == f"linux-lazy meets read-after-unmap.{EVIL}"
    assert browser.ask("document.querySelector('[aria-pressed=true]').dataset.row") == "2"


def test_page_opens_with_what_got_through(browser):
    show(browser, "")
    assert browser.text("#row-title") == "linux-lazy against read-after-unmap: 2048 B leaked"


def test_matrix_sums_up_each_policy(browser):
    show(browser, "")
    cells = "document.querySelectorAll('#matrix td.number')"
    shown = browser.ask(f"[...{cells}].map((cell) => cell.textContent)")
    assert shown == ["0 of 2", "", "1.1 µs", "2 of 2", "9 ms", "700 ns"]
    assert browser.text("#answer") == "Nobody knows."


def test_page_runs_no_foreign_script(timeline):
    assert timeline.ask("document.title") == "iommu-emu: policies against attacks"
    assert timeline.errors == []


def test_wheel_zooms_the_timeline(timeline):
    assert events_in_view(timeline) == MANY
    x, y = timeline.place("#timeline", 0.75)
    timeline.mouse("mouseWheel", x, y, deltaX=0, deltaY=-1500)
    assert 0 < events_in_view(timeline) < MANY / 5


def test_dragging_moves_the_timeline(timeline):
    timeline.click("#zoom-in")
    before = timeline.text("#range")
    x, y = timeline.place("#timeline", 0.6)
    timeline.mouse("mousePressed", x, y, button="left", buttons=1)
    timeline.mouse("mouseMoved", x - 200, y, button="left", buttons=1)
    timeline.mouse("mouseReleased", x - 200, y, button="left")
    assert timeline.text("#range") != before
    assert events_in_view(timeline) == pytest.approx(MANY * 1.04 * 0.6, abs=2)


def test_keys_zoom_move_and_reset(timeline):
    timeline.key("+")
    zoomed = timeline.text("#range")
    assert events_in_view(timeline) < MANY
    timeline.key("ArrowRight")
    assert timeline.text("#range") != zoomed
    timeline.key("Home")
    assert events_in_view(timeline) == MANY


def test_keys_go_from_event_to_event(timeline):
    timeline.key("n")
    assert timeline.text("#spoken") == f"story: {EVIL}"
    timeline.key("n")
    said = "nic: number 1 at 0xffffffffffff0000, 4096 bytes"
    assert timeline.text("#spoken") == said
    assert said in timeline.text("#tip")


def test_pointer_shows_what_it_is_at(browser):
    show(browser, "row=2&even=1&from=-0.5&to=9.5")
    left, bottom = browser.place("#timeline", 0, 1)
    right, _ = browser.place("#timeline", 1, 1)
    # Event 1 on the last lane but one; lanes are 30 pixels high, and their names 130 wide.
    browser.mouse("mouseMoved", left + 130 + 0.15 * (right - left - 140), bottom - 49)
    assert "nic: number 1 at" in browser.text("#tip")
    assert not browser.ask("document.getElementById('tip').hidden")
    browser.mouse("mouseMoved", left + 130 + 0.2 * (right - left - 140), bottom - 49)
    assert browser.ask("document.getElementById('tip').hidden")


def test_view_is_in_the_address(timeline):
    timeline.click("#zoom-in")
    shown = timeline.text("#row-title"), timeline.text("#range")
    show(timeline, timeline.ask("location.hash.slice(1)"))
    assert (timeline.text("#row-title"), timeline.text("#range")) == shown


def test_kinds_can_be_hidden(timeline):
    timeline.click("#legend button")
    maps = sum(number % 3 == 0 and number % 25 != 0 for number in range(1, MANY))
    assert events_in_view(timeline) == MANY - maps


def test_list_shows_the_first_events_in_view(timeline):
    timeline.click("#listing summary")
    assert timeline.ask("document.getElementById('events').rows.length") == 301


def test_costs_have_a_line_a_policy_and_below_it_its_other_pairs(timeline):
    names = "[...document.querySelectorAll('#costs tbody th')].map(name => name.textContent)"
    assert timeline.ask(names) == ["linux-strict", "assign, deassign", "linux-lazy"]


def test_costs_tell_what_tables_keep(timeline):
    column = "[...document.querySelectorAll('#costs tr')].map(row => row.cells[9].textContent)"
    assert timeline.ask(column) == [" frames kept", "0", "5", "0"]


def test_page_follows_a_dark_desktop(timeline):
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    timeline.call("Emulation.setEmulatedMedia", features=dark)
    colours = "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
    assert timeline.ask(colours) == ["rgb(13, 17, 23)", "rgb(230, 237, 243)"]
    timeline.call("Emulation.setEmulatedMedia", features=[])
