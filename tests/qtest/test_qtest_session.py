"""Lines of one client: whose turn it is, and when to stop."""

import pytest

from iommu_emu.qtest import session
from iommu_emu.qtest.session import Log, QtestSession


class Line:
    """A connection and its protocol: says what it is asked, until it breaks."""

    def __init__(self, breaks_after=None):
        self.open, self.full = True, False
        self.sent = []
        self._breaks_after = breaks_after

    def answer(self, line):
        return [f"OK {line}"]

    def send(self, text):
        self.sent.append(text)
        self.open = len(self.sent) != self._breaks_after


@pytest.fixture
def talk():
    def talk(line):
        return QtestSession(line, line, Log("none"))

    return talk


def test_session_answers_every_line(talk):
    line = Line()
    talk(line).receive(b"a\nb\nc")
    assert line.sent == ["OK a\n", "OK b\n"]


def test_session_stops_when_the_client_is_gone(talk):
    line = Line(breaks_after=1)
    conversation = talk(line)
    conversation.receive(b"a\nb\n")
    assert (line.sent, conversation.behind) == (["OK a\n"], False)


def test_session_waits_while_the_client_does_not_read(talk):
    line = Line()
    line.full = True
    conversation = talk(line)
    conversation.receive(b"a\n")
    assert (line.sent, conversation.behind) == ([], False)
    line.full = False
    assert conversation.behind


def test_session_gives_others_a_turn(talk, monkeypatch):
    monkeypatch.setattr(session, "TURN", -1)
    line = Line()
    conversation = talk(line)
    conversation.receive(b"a\nb\n")
    assert (line.sent, conversation.behind) == (["OK a\n"], True)
    conversation.proceed()
    assert (line.sent, conversation.behind) == (["OK a\n", "OK b\n"], False)
