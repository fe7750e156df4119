"""VERSION: what is agreed on, and what ends the connection."""

import json
import struct
from errno import EINVAL

import pytest
from vfio_user_client import ERROR, GET_INFO, HEADER, VERSION, Refused
from vfio_user_sample import Sample


@pytest.fixture
def stranger(connect, endpoint):
    """A client that has not said its version."""
    return connect(endpoint, negotiated=False)


def test_version_answers_qemu_with_what_is_supported(stranger):
    assert stranger.negotiate() == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 1048576,
        "max_dma_maps": 256,
        "pgsizes": 4096,
        "write_multiple": True,
    }


def test_version_offers_only_what_the_client_proposed(stranger):
    assert stranger.negotiate({"max_msg_fds": 8}) == {"max_msg_fds": 16}


def test_version_says_nothing_of_the_twin_socket(stranger):
    assert "twin_socket" not in stranger.negotiate({"twin_socket": {"supported": True}})


def test_version_does_not_force_multiple_writes_on_a_client(stranger):
    assert stranger.negotiate({"write_multiple": False}) == {}


def test_version_without_data_is_answered_without_data(stranger):
    assert stranger.call(VERSION, struct.pack("<HH", 0, 0)) == struct.pack("<HH", 0, 0)


def test_version_answers_a_later_minor_with_its_own(stranger):
    assert stranger.call(VERSION, struct.pack("<HH", 0, 7)) == struct.pack("<HH", 0, 0)


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<HH", 1, 0),
        b"",
        b"\0\0\0",
        struct.pack("<HH", 0, 0) + b'{"capabilities":{}}',
        struct.pack("<HH", 0, 0) + b"{\0",
        struct.pack("<HH", 0, 0) + b"[]\0",
        struct.pack("<HH", 0, 0) + b"\xff\xfe\0",
        struct.pack("<HH", 0, 0) + b"[" * 100_000 + b"\0",
        struct.pack("<HH", 0, 0) + b'{"capabilities":3}\0',
        struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":"8"}}\0',
        struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_data_xfer_size":-1}}\0',
    ],
    ids=[
        "major 1",
        "empty",
        "short",
        "no NUL",
        "half an object",
        "a list",
        "not UTF-8",
        "deep",
        "capabilities a number",
        "fds a string",
        "size negative",
    ],
)
def test_version_that_cannot_be_understood_is_refused(stranger, body):
    with pytest.raises(Refused) as refused:
        stranger.call(VERSION, body)
    assert refused.value.errno == EINVAL


def test_version_of_another_major_ends_the_connection(stranger, endpoint):
    stranger.send(VERSION, struct.pack("<HH", 1, 0))
    assert stranger.ended
    assert not endpoint.plugged


def test_version_must_come_first(stranger):
    with pytest.raises(Refused) as refused:
        stranger.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert refused.value.errno == EINVAL
    assert stranger.ended


def test_version_comes_once(client):
    with pytest.raises(Refused) as refused:
        client.call(VERSION, struct.pack("<HH", 0, 0))
    assert refused.value.errno == EINVAL


def test_version_is_answered_byte_for_byte(stranger):
    text = json.dumps({"capabilities": {"max_msg_fds": 1}}).encode() + b"\0"
    body = struct.pack("<HH", 0, 0) + text
    stranger.send_raw(HEADER.pack(0xBEEF, VERSION, HEADER.size + len(body), 0, 0) + body)
    reply = stranger.receive()
    assert (reply.id, reply.command, reply.flags, reply.error) == (0xBEEF, VERSION, 1, 0)
    assert reply.body == b'\0\0\0\0{"capabilities":{"max_msg_fds":16}}\0'


def test_version_refuses_a_bus_that_is_not_there(server, connect):
    stranger = connect(server.serve(Sample(), None, "09:00.0"), negotiated=False)
    stranger.send(VERSION, struct.pack("<HH", 0, 0))
    reply = stranger.receive()
    assert reply.flags & ERROR
    assert stranger.ended
