"""JSON out of a stream of bytes, and the way back after an error."""

import pytest

from iommu_emu.qtest.json_stream import LIMIT, MAX_DEPTH, JsonError, JsonStream


def values(*chunks):
    stream = JsonStream()
    return [value for chunk in chunks for value in stream.feed(chunk)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": [1, -2.5e3, true, null]}', {"a": [1, -2500.0, True, None]}),
        (b"{'a': 'it\\'s \"so\"'}", {"a": 'it\'s "so"'}),
        (b'{"a": "\\"{[\\u00e9"}', {"a": '"{[\u00e9'}),
        (b"[]", []),
        (b"null ", None),
        (b'"text" ', "text"),
        ("{'a': '\u00e9'}".encode(), {"a": "\u00e9"}),
    ],
)
def test_json_stream_value(text, value):
    assert values(text) == [value]


def test_json_stream_values_need_no_end_of_line():
    assert values(b"{}{}") == [{}, {}]


def test_json_stream_takes_bytes_one_by_one():
    text = b'{"execute": "quit"}'
    assert values(*(bytes([byte]) for byte in text)) == [{"execute": "quit"}]


@pytest.mark.parametrize(
    "text",
    [
        *(b"{]\n", b"{\xff", b"{\x01", b"{'bad \xff", b"{'a': '\n", b"%p", b"}", b"1{"),
        *(b'{"a": NaN}', b'{"a": Infinity}', b"{'a' 1}\n", b"{'\\u12'}\n", b"9" * 5000 + b"\n"),
        *(b"[" * (MAX_DEPTH + 1), b'{"a": "' + b"x" * LIMIT),
    ],
)
def test_json_stream_recovers_from(text):
    first, *rest = values(text, b'{"a": 1}')
    assert isinstance(first, JsonError)
    assert rest == [{"a": 1}]


def test_json_stream_reports_one_error_for_one_mistake():
    assert len(values(b"%%%%% 1 2 3 ]]]")) == 1
