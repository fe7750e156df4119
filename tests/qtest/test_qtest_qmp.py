"""The monitor's conversation and its commands."""

import json

import pytest

from iommu_emu.qtest.catalogue import DRIVERS, Catalogue
from iommu_emu.qtest.monitor import Monitor
from iommu_emu.qtest.q35 import Q35
from iommu_emu.qtest.qmp import QmpSession

VERSION = {"qemu": {"major": 11, "minor": 1, "micro": 0}, "package": "p"}


class Conversation:
    """A session with its monitor and what it sent."""

    def __init__(self, board=None, kind="none", stopped=False, devices=()):
        self.sent = []
        self.board = board
        catalogue = Catalogue(board)
        for properties in devices:
            catalogue.make(properties)
        self.monitor = Monitor(kind, board, catalogue, VERSION, stopped, self.emit)
        self.session = QmpSession(self.monitor.commands, VERSION, self.keep)

    def emit(self, name, data):
        self.session.event(name, data)

    def keep(self, text):
        self.sent.append(json.loads(text))

    def say(self, text):
        """Send text; returns the messages that came of it."""
        self.sent.clear()
        self.session.receive(text.encode())
        return self.sent

    def execute(self, command, **arguments):
        """Execute a command; returns what it returns."""
        *events, reply = self.say(json.dumps({"execute": command, "arguments": arguments}))
        self.events = [event["event"] for event in events]
        return reply["return"]

    def fail(self, command, **arguments):
        """Execute a command that must fail; returns class and description."""
        (reply,) = self.say(json.dumps({"execute": command, "arguments": arguments}))
        return reply["error"]["class"], reply["error"]["desc"]


@pytest.fixture
def qmp():
    conversation = Conversation()
    conversation.execute("qmp_capabilities")
    return conversation


@pytest.fixture
def q35():
    devices = (
        {"driver": "intel-iommu", "id": "iommu0"},
        {"driver": "edu", "id": "e0", "addr": "4.0"},
        {"driver": "iommu-testdev"},
    )
    conversation = Conversation(Q35(16 << 20), "pc-q35-11.1", devices=devices)
    conversation.execute("qmp_capabilities")
    return conversation


def test_qmp_greets_with_its_version():
    assert Conversation().sent == [{"QMP": {"version": VERSION, "capabilities": []}}]


def test_qmp_wants_capabilities_first():
    kind, reason = Conversation().fail("query-version")
    assert (kind, reason) == (
        "CommandNotFound",
        "Expecting capabilities negotiation with 'qmp_capabilities'",
    )


def test_qmp_sends_no_event_before_capabilities():
    conversation = Conversation()
    conversation.sent.clear()
    conversation.emit("RESET", None)
    assert conversation.sent == []


def test_qmp_capabilities_are_negotiated_once(qmp):
    assert qmp.fail("qmp_capabilities")[0] == "CommandNotFound"


def test_qmp_has_no_capability_to_offer():
    conversation = Conversation()
    assert conversation.fail("qmp_capabilities", enable=["oob"]) == (
        "GenericError",
        "Capability 'oob' not available",
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("null ", "GenericError"),
        ("{}", "GenericError"),
        ("{'execute': true}", "GenericError"),
        ("{'execute': 'query-status', 'arguments': []}", "GenericError"),
        ("{'execute': 'query-status', 'extra': 1}", "GenericError"),
        ("{'execute': 'query-status', 'arguments': {'x': 1}}", "GenericError"),
        ("{'execute': 'qom-list'}", "GenericError"),
        ("{'execute': 'qom-list', 'arguments': {'path': 1}}", "GenericError"),
        ("{'execute': 'bogus'}", "CommandNotFound"),
        ("{]\n", "GenericError"),
    ],
)
def test_qmp_error(qmp, text, kind):
    (reply,) = qmp.say(text)
    assert reply["error"]["class"] == kind


@pytest.mark.parametrize("name", ["query-version", "bogus"])
def test_qmp_reply_has_the_id(qmp, name):
    (reply,) = qmp.say(json.dumps({"execute": name, "id": {"any": ["thing"]}}))
    assert reply["id"] == {"any": ["thing"]}


def test_monitor_machines_are_q35_and_none(qmp):
    machines = {row["name"]: row.get("alias") for row in qmp.execute("query-machines")}
    assert machines == {"pc-q35-11.1": "q35", "none": None}


def test_monitor_types_by_interface(qmp):
    rows = qmp.execute("qom-list-types", implements="accel", abstract=False)
    assert rows == [{"name": "qtest-accel", "parent": "accel"}]
    names = [row["name"] for row in qmp.execute("qom-list-types", implements="device")]
    assert set(names) == set(DRIVERS)
    assert qmp.execute("qom-list-types", implements="bogus") == []


def test_monitor_reset_sends_the_event_before_the_reply(q35):
    q35.board.machine.units[0].write("RTADDR", 0x1000)
    assert q35.execute("system_reset") == {}
    assert q35.events == ["RESET"]
    assert q35.board.machine.units[0].read("RTADDR") == 0


def test_monitor_stop_and_cont(q35):
    assert q35.execute("query-status") == {"status": "running", "running": True}
    q35.execute("stop")
    assert q35.events == ["STOP"]
    assert q35.execute("query-status") == {"status": "paused", "running": False}
    q35.execute("cont")
    assert q35.events == ["RESUME"]


def test_monitor_starts_paused_with_s():
    conversation = Conversation(stopped=True)
    conversation.execute("qmp_capabilities")
    assert conversation.execute("query-status")["status"] == "prelaunch"


def test_monitor_quit(q35):
    assert q35.execute("quit") == {}
    assert q35.events == ["SHUTDOWN"]
    assert q35.monitor.quitting


def test_monitor_objects(q35):
    rows = q35.execute("qom-list", path="/machine/peripheral")
    assert rows[1:] == [
        {"name": "iommu0", "type": "child<intel-iommu>"},
        {"name": "e0", "type": "child<edu>"},
    ]
    rows = q35.execute("qom-list", path="/machine/peripheral-anon")
    assert rows[1:] == [{"name": "device[0]", "type": "child<iommu-testdev>"}]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/machine", "type", "pc-q35-11.1-machine"),
        ("/machine/peripheral/e0", "type", "edu"),
        ("/machine/peripheral/e0", "addr", 32),
        ("e0", "addr", 32),
        ("/machine/peripheral-anon/device[0]", "addr", 8),
    ],
)
def test_monitor_property(q35, path, name, value):
    assert q35.execute("qom-get", path=path, property=name) == value


def test_monitor_names_what_is_not_there(q35):
    assert q35.fail("qom-get", path="e9", property="type") == (
        "DeviceNotFound",
        "Device 'e9' not found",
    )
    assert q35.fail("qom-get", path="e0", property="x") == (
        "GenericError",
        "Property 'edu.x' not found",
    )


def test_monitor_root_bus_takes_no_hotplug(q35):
    reason = "Bus 'pcie.0' does not support hotplugging"
    assert q35.fail("device_add", driver="edu", id="e1", bus="pcie.0") == ("GenericError", reason)
    assert q35.fail("device_del", id="e0") == ("GenericError", reason)
    assert q35.fail("device_del", id="e9")[0] == "DeviceNotFound"


def test_monitor_pci(q35):
    (bus,) = q35.execute("query-pci")
    found = {(row["slot"], row["function"]): row["id"]["device"] for row in bus["devices"]}
    chipset = {(0, 0): 0x29C0, (31, 0): 0x2918, (31, 2): 0x2922, (31, 3): 0x2930}
    assert found == chipset | {(1, 0): 0x0005, (4, 0): 0x11E8}
    edu = bus["devices"][2]
    assert (edu["qdev_id"], edu["irq_pin"]) == ("e0", 1)
    assert edu["regions"][0]["address"] == -1
