"""Framing: what is a record, and that its parts are its own bytes."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import UsageError
from loader.formats import Framer, Record, Rejection

FRAMER = Framer.from_file()


def record(line: bytes) -> Record:
    framed = FRAMER.frame(line)
    assert isinstance(framed, Record), framed
    return framed


def reason(line: bytes) -> str:
    framed = FRAMER.frame(line)
    assert isinstance(framed, Rejection), framed
    return framed.reason


def test_long_keys_are_not_held_once_their_record_is_framed() -> None:
    framer = Framer.from_file()
    tracemalloc.start()
    try:
        for number in range(50):
            framed = framer.frame(b'{"request_json":{},"%03d%b":1}' % (number, b"k" * 100_000))
            assert isinstance(framed, Record)
            assert framed.envelope.startswith(b'{"%03dkk' % number)
        del framed
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        b"1.0",
        b"-0",
        b"1e400",
        b"9" * 10_000,
        b'{"b":1,"a":2,"b":3}',
        b'{ "a" : [ 1 ,\t2 ] }',
        b'"\\u00e9\\/ \\ud83d\\ude00"',
        "“é漢🙂”".encode().join([b'"', b'"']),
        b"null",
        b"true",
        b"[]",
        b'"{\\"not\\": \\"parsed\\"}"',
        b'"\\ud800"',
        b'{"\\udc00":"\\ud800\\ud800"}',
    ],
)
def test_request_response_and_other_values_keep_their_bytes(text: bytes) -> None:
    framed = record(b'{"request_json":%b , "response_json": %b,"kept":%b}' % (text, text, text))
    assert bytes(framed.request) == text
    assert bytes(framed.response) == text
    assert framed.envelope == b'{"kept":%b}' % text
    assert framed.repairs == ()


def test_the_envelope_holds_every_other_key_in_order() -> None:
    framed = record(b'{"z":1.0,"request_json":{},"unheard of \\u00e9":{"x":[1]},"id":"a"}')
    assert framed.envelope == '{"z":1.0,"unheard of é":{"x":[1]},"id":"a"}'.encode()
    assert framed.format == "provider_trace"


def test_absent_and_null_payloads_differ() -> None:
    framed = record(b'{"request_json":null}')
    assert (bytes(framed.request), bytes(framed.response)) == (b"null", b"")
    assert framed.envelope == b"{}"


def test_socket_records_are_known_by_their_version() -> None:
    line = b'{"protocol_version":3,"request":{"a":1.0},"response":null,"provider_trace_id":"x"}'
    framed = record(line)
    assert framed.format == "provider_trace_socket_v3"
    assert (bytes(framed.request), bytes(framed.response)) == (b'{"a":1.0}', b"null")
    assert framed.has_id
    assert reason(line.replace(b":3", b":4")) == "unknown_format"


@pytest.mark.parametrize(
    ("id_member", "has_id"),
    [(b'"id":"a",', True), (b'"id":null,', False), (b'"id":"",', False), (b"", False)],
)
def test_says_whether_a_record_names_itself(id_member: bytes, has_id: bool) -> None:
    assert record(b"{" + id_member + b'"request_json":1}').has_id is has_id


@pytest.mark.parametrize(
    "line",
    [
        b'{"request_json":1,"request_json":2,"id":"a"}',
        b'{"request_json":1,"id":"a","id":"a"}',
        b'{"id":1,"request_json":1,"id":12}',
        b'{"request_json": 1, "id": "a", "\\u0069d": "a"}',
        b' { "":1 , "request_json" : {"a":1 , "a":2} , "" : 1 } ',
        b'{"request_json":NaN,"request_json":1}',
    ],
)
def test_a_record_with_a_key_twice_is_rejected_since_one_value_would_be_lost(line: bytes) -> None:
    assert reason(line) == "duplicate_key"


@pytest.mark.parametrize(
    "line",
    [
        b'{"request_json":{"a":1,"a":2},"id":"a"}',
        b' {\t"request_json" : [ 1 , 2 ] ,\r"id"\n:"\\"," , "a\\"b":1,"" : {} } \r',
        b'{"request_json": "\\ud800", "\\u0069d": "a, \\"id\\": 1"}',
        b'{"request_json":NaN,"id":[NaN]}',
    ],
)
def test_however_a_record_is_spaced_each_of_its_keys_is_read(line: bytes) -> None:
    assert record(line).has_id


def test_an_object_of_nothing_but_space_has_no_key_twice() -> None:
    assert reason(b"{" + b" " * 99 + b"}") == "unknown_format"


def test_brackets_alone_are_no_depth() -> None:
    wide = b"[" + b"[]," * 2_000 + b'"' + b"[" * 2_000 + b'"]'
    assert record(b'{"request_json":1,"tags":' + wide + b"}").envelope == b'{"tags":%b}' % wide
    assert record(b'{"request_json":1,"tags":' + b"[" * 899 + b"]" * 899 + b"}").envelope


def test_non_finite_numbers_become_null_outside_strings_only() -> None:
    framed = record(
        b'{"request_json":{"NaN":"-Infinity \\" NaN","a":[NaN,-Infinity]},"response_json":Infinity}'
    )
    assert bytes(framed.request) == b'{"NaN":"-Infinity \\" NaN","a":[null,null]}'
    assert bytes(framed.response) == b"null"
    assert framed.repairs == ("non_finite_number",)


def test_a_string_that_says_nan_is_no_repair() -> None:
    framed = record(b'{"request_json":"NaN\\ud800"}')
    assert (bytes(framed.request), framed.repairs) == (b'"NaN\\ud800"', ())


def test_a_byte_order_mark_and_a_carriage_return_are_passed_over() -> None:
    framed = record(b'\xef\xbb\xbf{"request_json":1.0}\r')
    assert (bytes(framed.request), framed.envelope) == (b"1.0", b"{}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"nope", "not_json"),
        (b'{"request_json":1}{}', "not_json"),
        (b'{"request_json":01}', "not_json"),
        (b'{"request_json":NaNa}', "not_json"),
        (b'{"request_json":"a\x00b"}', "not_json"),
        (b'{"request_json":1}\x00', "not_json"),
        (b'{"request_json":"\\x"}', "not_json"),
        (b"[INFO] started", "not_json"),
        (b"[redacted: 5 bytes that are no JSON]", "not_json"),
        (b'"half', "not_json"),
        (b"1 2", "not_json"),
        (b"[1,2]", "not_an_object"),
        (b"NaN", "not_an_object"),
        (b'"\\ud800"', "not_an_object"),
        (b"{}", "unknown_format"),
        (b'{"a":NaN}', "unknown_format"),
        (b'{"request_json":"\xff"}', "not_utf8"),
        (b'{"request_json":"\xed\xa0\x80"}', "not_utf8"),
        (b'{"request_json":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b'{"request_json":' + b"[" * 100_000, "too_deep"),
        (b'{"request_json":1,"tags":' + b"[" * 900 + b"]" * 900 + b"}", "too_deep"),
        ('{"request_json":1}'.encode("utf-16"), "not_utf8"),
    ],
)
def test_rejects_say_why(line: bytes, expected: str) -> None:
    assert reason(line) == expected


def test_a_rejection_quotes_no_payload() -> None:
    for line in (b'{"secret":1}', b"secret", b'"secret"', b'{"request_json":"secret\xff"}'):
        framed = FRAMER.frame(line)
        assert isinstance(framed, Rejection)
        assert "secret" not in framed.detail


@given(st.binary(max_size=200))
def test_no_bytes_break_framing(line: bytes) -> None:
    assert isinstance(FRAMER.frame(line), Record | Rejection)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values, json_values, st.booleans())
def test_whatever_pythons_json_writes_lands(request: object, other: object, ascii: bool) -> None:
    line = json.dumps({"request_json": request, "other": other}, ensure_ascii=ascii)
    try:
        framed = record(line.encode())
    except UnicodeEncodeError:
        return
    if not framed.repairs:
        assert bytes(framed.request).decode() == json.dumps(request, ensure_ascii=ascii)
        assert json.loads(framed.envelope) == {"other": other}


def test_a_new_format_is_a_few_lines(tmp_path: Path) -> None:
    formats = tmp_path / "formats.yml"
    formats.write_text(
        "formats:\n"
        "  mine:\n"
        "    match: {kind: call, version: 2}\n"
        "    id: name\n"
        "    request: asked\n"
        "    response: answered\n"
    )
    framed = Framer.from_file(formats).frame(
        b'{"kind":"call","version":2,"asked":1.0,"answered":{},"name":"a"}'
    )
    assert isinstance(framed, Record)
    assert (framed.format, bytes(framed.request), framed.has_id) == ("mine", b"1.0", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "formats: [1]",
        "formats: {a: {match: {x: 1}, request: r}}",
        "formats: {a: {request: r, response: s}}",
        "formats: {a: {match: {x: 1}, request: r, response: s, respnse: t}}",
        "formats: {a: [",
    ],
)
def test_a_broken_list_of_formats_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "formats.yml").write_text(text)
    with pytest.raises(UsageError, match=r"formats\.yml"):
        Framer.from_file(tmp_path / "formats.yml")
