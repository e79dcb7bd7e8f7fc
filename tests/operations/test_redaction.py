"""Redaction: nothing of what rules name reaches spool or store, and all other bytes stay."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import loader.redaction
from loader.errors import UsageError
from loader.redaction import Redactor, _without_escapes, load_redactor
from loader.writer import Writer
from tests.support.project import Project
from tests.test_pipeline import record, write

EMAIL = ("email", re.compile(r"(?<![\w.+@-])[\w.+@-]*[\w.+-]@[\w-]++\.[\w.-]+\w"))
SECRET = "s3cr3t-value"
RULES = """
keys: ["**.api_key", "request_json.messages.*.content"]
patterns: [{name: email, regex: '(?<![\\w.+@-])[\\w.+@-]*[\\w.+-]@[\\w-]++\\.[\\w.-]+\\w'}]
"""


def redact(line: str, *keys: str, patterns: Any = (), protected: tuple[str, ...] = ()) -> str:
    redactor = Redactor(list(keys), list(patterns), frozenset(protected))
    return redactor.redact(line.encode())[0].decode()


@pytest.mark.parametrize(
    ("line", "keys", "want"),
    [
        ('{"a": 1.0, "k":"x"}', ["k"], '{"a": 1.0, "k":"[redacted]"}'),
        ('{"a" : {"k": [1, {"b": 2}]} , "k": 3}', ["a.k"], '{"a" : {"k": "[redacted]"} , "k": 3}'),
        (
            '{"a":[{"k":1},{"k":2,"z":1e5}]}',
            ["a.*.k"],
            '{"a":[{"k":"[redacted]"},{"k":"[redacted]","z":1e5}]}',
        ),
        (
            '{"a":[[{"k":1}]],"k":{"k":2}}',
            ["**.k"],
            '{"a":[[{"k":"[redacted]"}]],"k":"[redacted]"}',
        ),
        ('{"k":null}', ["**.k"], '{"k":null}'),
        (r'{"\u006b":"x"}', ["k"], r'{"\u006b":"[redacted]"}'),
        ('{"k":"1","k":"2"}', ["k"], '{"k":"[redacted]","k":"[redacted]"}'),
        ('{"a":{"k":"1"},"a":{}}', ["a.k"], '{"a":{"k":"[redacted]"},"a":{}}'),
        (
            '{"a":"{\\"k\\": 1, \\"z\\": 2.0}"}',
            ["a.k"],
            '{"a":"{\\"k\\": \\"[redacted]\\", \\"z\\": 2.0}"}',
        ),
        ('{"id":"x","a":{"id":"y"}}', ["**.id"], '{"id":"x","a":{"id":"[redacted]"}}'),
        (
            '{"id":{"k":"x","id":"y"},"id":[{"k":1}],"id":"x"}',
            ["id.k", "id.*.k"],
            '{"id":{"k":"[redacted]","id":"y"},"id":[{"k":"[redacted]"}],"id":"x"}',
        ),
        ("[]", ["**.k"], "[]"),
        (
            '{"K":"x","STRASSE":{"É":1}}',
            ["k", "straße.é"],
            '{"K":"[redacted]","STRASSE":{"É":"[redacted]"}}',
        ),
        ('{"k":"x","\u212a":"y"}', ["K"], '{"k":"[redacted]","\u212a":"[redacted]"}'),
    ],
)
def test_values_go_by_their_path(line: str, keys: list[str], want: str) -> None:
    assert redact(line, *keys, protected=("id",)) == want


@pytest.mark.parametrize(
    ("line", "keys", "want"),
    [
        ('{"a":{"{\\"k\\":\\"x\\"}":""}}', ["**.k"], '{"a":{"{\\"k\\":\\"[redacted]\\"}":""}}'),
        ('{"a":{"{\\"k\\":\\"x\\"}":""}}', ["a.k"], '{"a":{"{\\"k\\":\\"[redacted]\\"}":""}}'),
        ('{"a":{"{\\"k\\":\\"x\\"}":""}}', ["k", "a.*.k"], '{"a":{"{\\"k\\":\\"x\\"}":""}}'),
        (
            '{"a":{"{\\"k\\":1}":"y","{\\"k\\":2}":{"k":3,"z":4}}}',
            ["**.k"],
            '{"a":{"{\\"k\\":\\"[redacted]\\"}":"y","{\\"k\\":\\"[redacted]\\"}":{"k":"[redacted]","z":4}}}',
        ),
        ('{"a":{"x {\'k\': 1}":2}}', ["**.k"], '{"a":{"x {\'k\':\\"[redacted]\\"":2}}'),
        ('{"{\\"k\\":1}":2}', ["k"], '{"{\\"k\\":\\"[redacted]\\"}":2}'),
        (
            '{"a":{"k\'s":1,"[k]":2,"{z: k}":3,"\\u006b\\\\":4}}',
            ["**.k"],
            '{"a":{"k\'s":1,"[k]":2,"{z: k}":3,"\\u006b\\\\":4}}',
        ),
    ],
)
def test_json_that_is_a_key_is_read_where_the_key_stands(
    line: str, keys: list[str], want: str
) -> None:
    assert redact(line, *keys) == want


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ('{"a":"to bob@example.org!"}', '{"a":"to [redacted:email]!"}'),
        (r'{"a":"bob\u0040example.org"}', '{"a":"[redacted:email]"}'),
        ('{"a":{"bob@example.org":1}}', '{"a":{"[redacted:email]":1}}'),
        ('{"a":["é",NaN,-0.0]}', '{"a":["é",NaN,-0.0]}'),
        ('{"id":"bob@example.org"}', '{"id":"bob@example.org"}'),
        ('{"a":"[\\"bob@example.org\\"]"}', '{"a":"[\\"[redacted:email]\\"]"}'),
    ],
)
def test_text_goes_by_pattern(line: str, want: str) -> None:
    assert redact(line, patterns=[EMAIL], protected=("id",)) == want


@pytest.mark.parametrize(
    "line",
    [
        b'{"k": "s3cr3t',
        b'{"k" "s3cr3t"}',
        b"s3cr3t",
        b'{"k":"\xff s3cr3t"}',
        b'{"k": s3cr3t}',
        b'{"a":1} s3cr3t',
        b'{"a":"\\q s3cr3t"}',
        b"[redacted] s3cr3t",
        b"[redacted: 6 bytes that are no JSON] s3cr3t",
        b"[redacted: s3cr3t bytes that are no JSON]",
    ],
)
def test_what_is_no_json_is_withheld(line: bytes) -> None:
    stored, is_redacted = Redactor(["k"], []).redact(line)
    assert b"s3cr3t" not in stored
    assert is_redacted
    assert str(len(line)).encode() in stored
    assert Redactor(["k"], []).redact(stored) == (stored, True)


def test_depth_and_size_do_not_break_it() -> None:
    deep = '{"a":' * 20_000 + '{"k":"x"}' + "}" * 20_000
    assert redact(deep, "**.k").count("[redacted]") == 1
    assert "x" not in redact('{"k":["' + "x" * 1_000_000 + '"]}', "k")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from("kK"), inner),
)


def without(value: Any) -> Any:
    """Say apart from the module what removing every `k` or `K` means."""
    if isinstance(value, dict):
        return {
            key: ("[redacted]" if inner is not None else None)
            if key.casefold() == "k"
            else without(inner)
            for key, inner in value.items()
        }
    return [without(inner) for inner in value] if isinstance(value, list) else value


def looks_like_json(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(looks_like_json, [*value, *value.values()]))
    if isinstance(value, list):
        return any(map(looks_like_json, value))
    return isinstance(value, str) and value.lstrip(" \t\r\n\ufeff")[:1] in ("{", "[")


@given(json_values, st.booleans())
def test_it_does_what_removing_the_key_does(value: Any, ascii_only: bool) -> None:
    line = json.dumps(value, ensure_ascii=ascii_only)
    try:
        line.encode()
    except UnicodeEncodeError:
        return
    stored = redact(line, "**.k")
    if not looks_like_json(value):
        assert json.loads(stored) == without(value)
    if without(value) == value and not looks_like_json(value):
        assert stored == line, "nothing else changes a byte"


def embed(text: str) -> str:
    """Write a record that holds a text."""
    return json.dumps({"a": text, "z": 1.0})


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r'"{\"k\": 1, \"z\": 2.0}"', r'"{\"k\": \"[redacted]\", \"z\": 2.0}"'),
        ('{"k": 1}\n{"k": 2.0}\n', '{"k": "[redacted]"}\n{"k": "[redacted]"}\n'),
        ('{\n"k": 1\n}\n{\n"k": 2}', '{\n"k": "[redacted]"\n}\n{\n"k": "[redacted]"}'),
        ('{"z":1}{"k":1}', '{"z":1}{"k":"[redacted]"}'),
        ('data: {"k":1}\r\n\r\ndata: [DONE]', 'data: {"k":"[redacted]"}\r\n\r\ndata: [DONE]'),
        ('event: x\ndata:"{\\"k\\":1}"\n', 'event: x\ndata:"{\\"k\\":\\"[redacted]\\"}"\n'),
        ('data: {\ndata: "k":\ndata: 1}', 'data: {\ndata: "k":\ndata: "[redacted]"}'),
        ('{"z":"\t\n\x00", "k":1}', '{"z":"\t\n\x00", "k":"[redacted]"}'),
        (r'{"z":"\$", "k":1}', r'{"z":"\$", "k":"[redacted]"}'),
        ('\xa0\u2003{"k":1}\xa0', '\xa0\u2003{"k":"[redacted]"}\xa0'),
        ('\ufeff\ufeff{"k":1}', '\ufeff\ufeff{"k":"[redacted]"}'),
        ('[INFO] it\'s "so": {"k":1}.', '[INFO] it\'s "so": {"k":"[redacted]"}.'),
        (
            'x body="{\\"k\\":1}" z=" {\\"k\\":1}"',
            'x body="{\\"k\\":\\"[redacted]\\"}" z=" {\\"k\\":\\"[redacted]\\"}"',
        ),
        ('" and {"k":1}', '" and {"k":"[redacted]"}'),
        ('{"z":1, "k":"cut\n off', '{"z":1, "k":"[redacted]"'),
        ('{"k":{"z":[1, 2} left {"z":"\\$","k":1}', '{"k":"[redacted]"'),
        ('x {"k":{"z":[1, 2} left {"z":2,"k":1}', 'x {"k":"[redacted]"'),
        ('{"z":"one\ntwo", "k":1} left', '{"z":"one\ntwo", "k":"[redacted]"} left'),
        ('x {"z":"one\ntwo", "k":1} left', 'x {"z":"[redacted]"'),
        ('{"z":"cut\n{"k":1}', '{"z":"[redacted]"'),
        (r'{"z":1, "y":"{\"k\": \"cut\\', r'{"z":1, "y":"[redacted]"'),
        (r'data: {"y":"{\"k\":1}', 'data: {"y":"[redacted]"'),
        (r'["z", "{\"k\":1}', '["z", "[redacted]"'),
        (r'"{\"k\": \"cut', '"[redacted]"'),
        (r'"{\"y\": \"{\\\"k\\\"', '"[redacted]"'),
        (r"z={\n \"k\": 1}", r'z={"[redacted]"'),
        ('{"z": None, "k": 1}', '{"z": "[redacted]"'),
        ('{"z" => 1, "k" => 2}', '{"[redacted]"'),
        ('{"k" => 2}', '{"[redacted]"'),
        (r"{\u0022z\u0022:1,\u0022k\u0022:2}", r'{"[redacted]"'),
        ('{"z": [1, 2,], "k": 1}', '{"z": [1, 2,"[redacted]"'),
        ('x [1, ...] "k": 1', 'x [1, "[redacted]"'),
        ('{"z":1,\xa0"k":1}', '{"z":1,"[redacted]"'),
        ('data: data: {\ndata: data: "k": 1}', 'data: data: {\ndata: data: "k": "[redacted]"}'),
        ('[INFO] [1.5] {z} "k": 1', '[INFO] [1.5] {z} "k":"[redacted]"'),
        ("[INFO] [1.5] {z} k: 1", "[INFO] [1.5] {z} k: 1"),
        ('{"z": None, "y": 1}', '{"z": None, "y": 1}'),
        ('{"k":null} k: 1', '{"k":null} k: 1'),
        ('{"k":null} "k": 1 k', '{"k":null} "k":"[redacted]"'),
        ('{\xa0"k": 1}', '{\xa0"k":"[redacted]"'),
        ('{\u200b"k"\n: 1}', '{\u200b"k"\n:"[redacted]"'),
        ("bad 'k': 1", "bad 'k':\"[redacted]\""),
        ('z\n"k"\n: 1', 'z\n"k"\n:"[redacted]"'),
        (r'"k"\n: 1', r'"k"\n:' '"[redacted]"'),
        (r"z: {\'k\': 1}", r"z: {\'k\':" '"[redacted]"'),
        ('z="{\\"z\\": \\"x"y\\", \\"k\\": 1}"', 'z="{"[redacted]"'),
        ('{"k": "he said "so" to me", "z": 1}', '{"k": "[redacted]"'),
        ('{"k": "he said ", "so", "z": 1}', '{"k": "[redacted]"'),
        ('{"k": ["a"] b, "z": 1}', '{"k": "[redacted]"'),
        ('{"k": "a", "z": [1} b}', '{"k": "[redacted]", "z": [1} b}'),
    ],
)
def test_values_go_by_their_path_in_text(text: str, want: str) -> None:
    for rule in ("**.k", "a.k"):
        assert redact(embed(text), rule) == embed(want)
    assert redact(embed(text), "b.k", "k") == embed(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r'z="ok" {\n "k": 1}', 'z="ok" {"[redacted]"'),
        (r'z="ok"\n"k": 1', r'z="ok"\n"k":' '"[redacted]"'),
        (r'z="ok" {\n "\u006b": 1}', 'z="ok" {"[redacted]"'),
        (r"""{'z': '"{\\"k\\": \\"y\\"}"'}""", """{'z': '"{"[redacted]\""""),
        (r"""['it\'s "a" {\'k\': \'["y"]\'}']""", '[\'it\\\'s "a"[redacted]"'),
        (r"""x ["] {'k': 'y["] z""", 'x ["[redacted]"'),
        (r"""["] {'k': 'y["] z""", '["[redacted]"'),
        (r"""x {"z": ["] {'k': 'y["]} z""", 'x {"z": ["[redacted]"'),
        (r"""x {"] {'k': 'y": 1} z""", 'x {"[redacted]"'),
        (r"""x {"z": "{\"y\": \"bad {'k': 1}\"}"} z""", 'x {"z": "[redacted]"'),
        (r"""z='{"k": "x\\"} y"}'""", """z='{"k": "[redacted]\""""),
        (
            r'z="{\"k\": 1}"k": 2',
            r'z="{\"k\": \"[redacted]\"}"k":' '"[redacted]"',
        ),
        (r'z="\n[1]"k": 1', r'z="\n[1]"k":' '"[redacted]"'),
        (r"""z='{"k": {"x\\": 1}} y": 1}}'""", """z='{"k": "[redacted]\""""),
        (r"""z='{"\\u006b": "y"}'""", """z='{"[redacted]\""""),
        (r"""{'\\u006b': 'y'}""", r"{'\\u006b':" '"[redacted]"'),
        (
            r'x {"z": "{\"k\": 1}\n{\"k\": 2}"} z',
            r'x {"z": "{\"k\": \"[redacted]\"}\n{\"k\": \"[redacted]\"}"} z',
        ),
        (
            r'x {"z": "it\'s", "y": "C:\\", "k": 1} z',
            r'x {"z": "it\'s", "y": "C:\\", "k": "[redacted]"} z',
        ),
    ],
)
def test_what_stands_between_two_quotes_may_be_no_string(text: str, want: str) -> None:
    assert redact(embed(text), "**.k") == embed(want)


def test_no_path_leads_into_what_is_no_string() -> None:
    for text in (r"""x ["] {'k': 'y["] z""", """["] {'k': 'y["] z"""):
        assert "y" not in redact(embed(text), "a.k")


def test_outside_of_json_a_key_on_the_way_to_a_value_counts() -> None:
    text = """{'x': 1, 'y': '{"k": 1}'}"""
    assert redact(embed(text), "**.y.k") == embed("""{'x': 1, 'y':"[redacted]\"""")
    assert redact(embed(text), "b.y.k") == embed(text)


@pytest.mark.parametrize("rule", ["**.y.*", "a.y.*", "a.*.z", 'a.q"', "a.*"])
def test_any_name_in_quotes_counts_for_a_step_that_is_any_key_or_needs_escapes(rule: str) -> None:
    text = """{'y': {'z': 1}}"""
    if rule == "a.*":
        text = text.replace("y", "x")
    if '"' in rule:
        text = """{'q"': 1}"""
    name = text[: text.index(":") + 1]
    assert redact(embed(text), rule) == embed(f'{name}"[redacted]"')
    assert redact(embed("no 'name', \"no\" value"), rule) == embed("no 'name', \"no\" value")
    assert redact(embed(text), rule.replace("**", "b").replace("a.", "b.")) == embed(text)


def test_below_the_key_of_a_rule_any_name_in_quotes_counts() -> None:
    line = json.dumps({"a": {"y": "{'z': 1}", "x": 1.0}})
    assert redact(line, "**.y.*") == line.replace("{'z': 1}", r"{'z':\"[redacted]\"")


def test_a_name_with_a_slash_is_found_in_quotes() -> None:
    for name in ("x/y", r"x\/y"):
        assert redact(embed(f"bad '{name}': 1"), "**.x/y") == embed(f"bad '{name}':\"[redacted]\"")


QUOTES = [
    *('" "', '"" ""', r"\" \"", "' '", r"\\' \\'", "` `", "\xb4 \xb4", "\xab \xbb"),
    *("\u2018 \u2019", "\u201a \u201b", "\u201c \u201d", "\u201e \u201f", "\u2039 \u203a"),
    *("\uff02 \uff02", "\uff07 \uff07", "&quot; &quot;", "&apos; &apos;", "&#34; &#034;"),
    *("&#39; &#39;", "&#x22; &#X22;", "&#8220; &#x201D;", "&ldquo; &rdquo;", "&lsquo; &rsquo;"),
    *("&laquo; &raquo;", "&lsaquo; &rsaquo;", "&sbquo; &bdquo;", "&grave; &acute;"),
    *("&amp;amp;quot; &amp;amp;quot;", r"\u0026quot; \u0026quot;", r"\x26quot; \x26quot;"),
    *(r"\x22 \x22", r"\x27 \x27", r"\u0022 \u0022", r"\u201c \u201D", r"\u{22} \u{22}"),
    *(r"\U00000022 \U00000022", r"\042 \047", r"\140 \140"),
]
SIGNS = [
    *(":", " : ", "\n:", r"\n:", "=", " = ", "=>", " -> ", ":=", "] =", r"\]=", "]:", "**: "),
    *("=&gt;", "-&gt;", "-&amp;gt;", "\uff1a", "\u2192", r"\u2192", r"\u003d", r"\x3a"),
    *(r"=\u003e", r"-\u003e", "_ :"),
]


@pytest.mark.parametrize("quotes", QUOTES)
def test_a_name_is_found_in_quotes_of_any_kind(quotes: str) -> None:
    begin, end = quotes.split()
    for sign in SIGNS:
        text = f"Set {begin}api_key{end}{sign} {begin}{SECRET}{end} k"
        for rule in ("**.api_key", "a.api_key", "**.api_key.*.k", "**.api_key.*"):
            stored = redact(embed(text), rule)
            assert SECRET not in stored, (sign, rule)
            assert SECRET not in redact(embed(text.replace("api_key", "Api_KEY")), rule)
            assert json.loads(stored)["z"] == 1.0
        assert redact(embed(text), "**.other") == embed(text)
    for before in ("(", "( ", "(b", "(\n    ", r"(\n", r"(\\"):
        pair = f"[{before}{begin}api_key{end} , {begin}{SECRET}{end})]"
        assert SECRET not in redact(embed(pair), "**.api_key"), before


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        *(("straße", "STRASSE"), ("STRASSE", "straße"), ("strasse", "STRAẞE"), ("ﬁle", "FILE")),
        *(("file", "ﬁle"), ("office", "oﬃce"), ("office", "oﬀice"), ("oﬃce", "OF\ufb01CE")),
        *(("first", "fir\ufb06"), ("İd", "i\u0307d"), ("i\u0307d", "İD"), ("maß", "MASS")),
        *(("api_key", r"api_\u212aey"), ("session", r"\u017fession"), ("straße", r"STRA\u1e9eE")),
        *(("office", r"o\ufb03ce"), ("api_key", r"api_\X4bey"), ("api_key", r"api_\U0000004bey")),
        *(
            ("api_key", "api_\u212aey"),
            ("session", "\u017fession"),
            ("ssss", "ßß"),
            ("x-ss", "X-ß"),
        ),
    ],
)
def test_a_name_is_the_same_in_any_case(rule: str, name: str) -> None:
    """Where a letter has two of the other case, too; and escaped."""
    for text in (f"{{'{name}': '{SECRET}'}}", f"x {{\"a\": \"bad {{'{name}': '{SECRET}'}}\"}}"):
        assert SECRET not in redact(embed(text), f"**.{rule}"), text
    line = f'{{"a":{{{json.dumps(name)}:"{SECRET}","z":1.0}}}}'
    assert redact(line, f"a.{rule}") == line.replace(SECRET, "[redacted]")


def test_what_senders_name_is_not_remembered() -> None:
    """Their names may be long, and no two the same."""
    redactor = Redactor(["**.k"], [])
    redactor.redact(b'{"%s":{"k":1}}' % (b"a" * 100_000))
    assert max(len(key or "") for _, key in redactor._steps) <= 64


@pytest.mark.parametrize(
    "name",
    [
        *(r"api\_key", r"api\\_key", r"api\u005fkey", r"api\x5fkey", r"api\u{5f}key"),
        *(r"\u0061pi_key", r"\x61pi\_key", r"\u{61}pi\x5Fkey", r"\u{00061}pi_key"),
        *(r"\u0041PI_KEY", r"\x41pi\_Key", r"\u{41}PI\x5Fkey", "API_KEY"),
    ],
)
def test_a_name_may_be_escaped_as_other_languages_do(name: str) -> None:
    for text in (f'{{"{name}": "{SECRET}"}}', f"x '{name}' = '{SECRET}'", f"`{name}`: {SECRET}"):
        assert SECRET not in redact(embed(text), "**.api_key"), text
        assert SECRET not in redact(embed(text), "**.Api_Key"), text
    line = f'{{"a":{{{json.dumps(name)}:"{SECRET}","z":1.0}}}}'
    assert redact(line, "a.api_key") == line.replace(SECRET, "[redacted]")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('["api_key"] = 1', '["api_key"] ="[redacted]"'),
        ('x ["a", "api_key"] : 1', 'x ["a", "api_key"] :"[redacted]"'),
        ('x ["a", "api_key": 1]', 'x ["a", "api_key":"[redacted]"'),
        ('{"z": "api_key": 1}', '{"z": "api_key":"[redacted]"'),
        ('x {"z": 1} ["api_key"]\n= 1', 'x {"z": 1} ["api_key"]\n="[redacted]"'),
    ],
)
def test_a_name_is_found_where_it_ends_json_that_was_read(text: str, want: str) -> None:
    assert redact(embed(text), "**.api_key") == embed(want)


@pytest.mark.parametrize(
    "text",
    [
        *("'api_key', 'user'", "['api_key', 'user']", "f('api_key')", "api_key: 1", "api_key = 1"),
        *("`api_key` is a name: 1", "(x, 'api_key', 1)", '["api_key"]', "'api_key' - 1"),
    ],
)
def test_what_names_no_value_stays(text: str) -> None:
    assert redact(embed(text), "**.api_key") == embed(text)


@pytest.mark.parametrize(
    "begun",
    [
        *("[None, ", "[True, ", "[1 2, ", "[nan, ", "[[None], ", "[{} ", '[u"z", ', "[..., "),
        *("['z', ", "['", "[<z 1>, ", "[(1, 2), ", "[\xa0", "[# z\n"),
    ],
)
def test_what_follows_in_a_list_that_breaks_off_may_be_its_elements(begun: str) -> None:
    text = f'{begun}{{"k": 1}}]'
    assert redact(embed(text), "a.*.k") == embed(f'{begun}{{"k": "[redacted]"}}]')
    assert redact(embed(text), "a.*") == embed('["[redacted]"')
    assert redact(embed(text), "a.*.*.*.k") == embed(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r'data: {"z":"bob\u0040example.org"}', 'data: {"z":"[redacted:email]"}'),
        (r'"bob\u0040example.org"', '"[redacted:email]"'),
        (r'{"z":"\$ bob\u0040example.org', r'{"z":"[redacted]"'),
        (r'"{\"z\":\"\\u0062ob\\u0040example.org', r'"[redacted]"'),
        (r'{"z":"\n bob@example.org', r'{"z":"\n [redacted:email]'),
        (r'{"z":"\$ bob\u0040example.org"}', r'{"z":"\\$ [redacted:email]"}'),
        ('data: {"z":"x"} bob@example.org', 'data: {"z":"x"} [redacted:email]'),
    ],
)
def test_text_in_text_goes_by_pattern(text: str, want: str) -> None:
    assert redact(embed(text), patterns=[EMAIL]) == embed(want)


@pytest.mark.parametrize("text", ['{"ssn": "123"}', '["ssn",123]', 'x {"ssn": "123"}', '"ssn 123"'])
def test_a_pattern_looks_at_the_whole_of_a_string_that_is_json(text: str) -> None:
    """A tool's arguments are JSON in a string; a name and its value are two strings of it."""
    pattern = ("ssn", re.compile(r"ssn\W+\d{3}"))
    kept = redact(embed(text), patterns=[pattern])
    assert "123" not in kept
    assert "[redacted:ssn]" in kept
    assert json.loads(kept)


@pytest.mark.parametrize("levels", [1, 7, 8, 9, 12])
@pytest.mark.parametrize("key", ["api_key", r"\u0061pi_key"])
def test_beyond_the_levels_that_are_read_text_is_withheld(levels: int, key: str) -> None:
    text = f'{{"{key}":"{SECRET}", "z":"kept"}}'
    other = '{"z":"bob@example.org"}'
    for _ in range(levels):
        text, other = json.dumps(text), json.dumps(other)
    stored = redact(f'{{"a":{text},"b":{other}}}', "a.**.api_key", patterns=[EMAIL])
    assert SECRET not in stored
    assert "bob" not in stored
    assert ("kept" in stored) == (levels <= 8)
    assert json.loads(stored)["b"] != "[redacted]" or levels > 8
    without_rule = f'{{"a":{text},"b":{other}}}'
    assert redact(without_rule, "**.authorization") == without_rule or "\\u" in text


def wrappings(text: str) -> list[str]:
    events = "\n".join(
        line if line.startswith("data:") else f"data: {line}" for line in text.split("\n")
    )
    return [
        json.dumps(text),
        json.dumps({"z": text}),
        json.dumps({text: ""}),
        f"{events}\n\ndata: [DONE]",
        f'{{"z": 1}}\n{text}',
        f"\ufeff\xa0{text} ",
        f"[INFO] body={text}" if text.startswith("{") else f"[INFO]\n{text}",
        json.dumps([1, json.dumps(text)], indent=1),
        repr({"z": text}),
        repr(["it's", json.dumps(text)]),
        'msg="ok" ' + json.dumps(text)[1:-1],
    ]


@given(json_values, st.lists(st.integers(0, 10), max_size=4), st.booleans())
def test_no_wrapping_hides_a_value(value: Any, ways: list[int], ascii_only: bool) -> None:
    text = json.dumps({"z": value, "k": SECRET}, ensure_ascii=ascii_only)
    for way in ways:
        text = wrappings(text)[way]
    try:
        embed(text).encode()
    except UnicodeEncodeError:
        return
    stored = redact(embed(text), "**.k")
    assert SECRET not in stored
    assert redact(stored, "**.k") == stored, "what is redacted stays as it is"


@pytest.mark.parametrize(
    "unit",
    [
        *("[\n", '{"', '{"\\"', '"\n', '["a",\n', '{"a":"\n', "data:", '{"k":', '"\\"', "\\", " "),
        *('{"a":"\\"', '["\\', '[" ', '{ \ndata: "', "[[", '"a"\n', "\ufeff", '{"a":1,\n'),
        *("'", "`", "&", "&amp;", "amp;", "&#0", "&#", "0", r"\u0", r"\u", r"\x22", r"\x22k"),
        *('"k', '"k\\', '"k" ', '"k"]', '"k"-', '"k"*', "(", "( ", '("k', r"(\n", '("k" '),
        *('["k"]', '["k", ', '["k" ', r"\u0026amp;", r"\u{0", "\u201ck\u201d ", "&quot;k"),
        *("*", "_", '"-', '"]', '"* '),
    ],
)
def test_no_text_takes_time_beyond_its_length(unit: str) -> None:
    for rules in (["**.k", "**.b.k"], ["**.h.*"]):
        took = []
        for size in (30_000, 240_000):
            line = embed(unit * (size // len(unit)) + '{"k"')
            begin = time.process_time()
            redact(line, *rules, patterns=[EMAIL])
            took.append(time.process_time() - begin)
        assert took[1] < 30 * took[0] + 0.2, "eight times the text"


def test_escapes_that_are_escaped_more_often_than_levels_are_read_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = []

    def count(text: str) -> str:
        passes.append(text)
        return _without_escapes(text)

    monkeypatch.setattr(loader.redaction, "_without_escapes", count)
    for times, want in ((6, r'["a" \u005c%s'), (1_000, '["a" "[redacted]"')):
        text = r'["a" \u005c' + "u005c" * times
        want = want % ("u005c" * times) if "%" in want else want
        passes.clear()
        assert redact(embed(text), patterns=[EMAIL]) == embed(want)
        assert len(passes) < 20, "an escape is undone once for each level, however many there are"


@pytest.mark.parametrize("way", ["breaks off", "goes on", "is whole in a text", "is a key"])
def test_levels_do_not_multiply(way: str) -> None:
    """What is no document as a whole at each level is not read anew for each of them."""
    took = {}
    for levels in (2, 7):
        text = (r'{"z":"bob\u0040example.org"}' if way == "breaks off" else '{"k":1}') * 2_000
        for _ in range(levels):
            text = json.dumps({text: 1} if way == "is a key" else [text])
            text = text[:-1] if way == "breaks off" else text
            text += '{"z":1}' if way == "goes on" else ""
        begin = time.process_time()
        begun = "data:" if way == "is a key" else "x"
        stored = redact(embed(f"{begun} {text}"), "**.k", patterns=[EMAIL])
        took[levels] = (time.process_time() - begin) / len(text)
        assert stored.count("[redacted") == 2_000
    assert took[7] < 2 * took[2], "a character at the seventh level against one at the second"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys: api_key", "list of paths"),
        ("paths: [a]", "what it may hold"),
        ("keys: ['a..b']", "empty step"),
        ("keys: ['a.**']", "ends in"),
        ("patterns: [{name: a, regex: '('}]", "regex of a"),
        ("patterns: [{name: a, regex: 'x*'}]", "matches nothing"),
        ("patterns: [{name: a}]", "a `name` and a `regex`"),
        ("- : [", "is no YAML in line 1, column 3"),
        ("keys: [a]\npatterns: []\nkeys: [b]", "key in line 3 stands there twice"),
        ("patterns: [{name: a, regex: x, regex: y}]", "key in line 1 stands there twice"),
    ],
)
def test_rules_that_are_none_stop_the_program(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_redactor(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_redactor(tmp_path / "missing.yml")


@pytest.mark.parametrize(
    "text",
    [
        '{"id":"x","request_json":"private"}\n' * 2,
        "private hunter2: [x\n",
        '"private\\q"',
        "a: *private",
        "a: !private b",
        "private: 1\nprivate: 2",
        "private",
        "\udcffprivate",
    ],
)
def test_the_text_of_a_file_that_is_no_rules_is_in_no_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.yml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        load_redactor(path)
    assert "private" not in str(caught.value).replace(str(path), "")
    assert "\n" not in str(caught.value)


def test_the_example_rules_are_rules() -> None:
    redactor = load_redactor(Path(loader.redaction.__file__).with_name("redaction.example.yml"))
    assert redactor is not None
    stored, _ = redactor.redact(b'{"request_json":{"user":"u","t":"4111 1111 1111 1111"}}')
    assert stored == b'{"request_json":{"user":"[redacted]","t":"[redacted:card]"}}'
    spellings = ("authorization", "Authorization", "api_key", "apiKey", "API_KEY", "X-Api-Key")
    for name in spellings:
        stored, _ = redactor.redact(b'{"request_json":{"headers":{"%s":"x"}}}' % name.encode())
        assert b'"[redacted]"' in stored, name


def example_patterns() -> dict[str, re.Pattern[str]]:
    path = Path(loader.redaction.__file__).with_name("redaction.example.yml")
    entries = yaml.safe_load(path.read_text())["patterns"]
    return {entry["name"]: re.compile(entry["regex"]) for entry in entries}


@pytest.mark.parametrize("name", example_patterns())
@pytest.mark.parametrize(
    "unit",
    [
        *("Ab3_", "a.", "a@", "a@b", "a@b.", "a@b.-", "@-.", "-", "@", "+", "a+"),
        *("sk-", "sk-a ", "sk-" + "a" * 15 + ".", "1", "1111 ", "1111-1111-"),
    ],
)
def test_the_example_patterns_take_no_time_beyond_the_length(name: str, unit: str) -> None:
    pattern = example_patterns()[name]
    took = []
    for size in (4_000, 64_000):
        begin = time.process_time()
        pattern.sub("", unit * (size // len(unit)))
        took.append(time.process_time() - begin)
    assert took[1] < 64 * took[0] + 0.1, "sixteen times the text"


@given(st.text("ab1.+-@ ,", max_size=40))
def test_the_email_pattern_hides_all_that_the_plain_one_does(text: str) -> None:
    plain = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+\w")
    hidden = [match.span() for match in example_patterns()["email"].finditer(text)]
    for match in plain.finditer(text):
        assert any(begin <= match.start() and match.end() <= end for begin, end in hidden)
    assert bool(hidden) == bool(plain.search(text))


def test_the_email_pattern_is_the_same_everywhere() -> None:
    regex = example_patterns()["email"].pattern
    docs = Path(loader.redaction.__file__).parents[1] / "docs" / "redaction.md"
    assert regex in docs.read_text()
    assert regex in (loader.redaction.__doc__ or "")
    assert regex == EMAIL[1].pattern
    text = "<bob@example.org>, mailto:x.y+z@a-b.co.uk; é@é.de."
    assert EMAIL[1].sub("*", text) == "<*>, mailto:*; *."


def secrets() -> list[dict[str, object]]:
    request = {"messages": [{"role": "user", "content": SECRET}], "api_key": SECRET, "n": 1.0}
    return [
        record(1, request_json=request),
        record(2, agent_tags=["me@example.org"], request_json=None),
        record(3),
    ]


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_store_never_sees_what_is_redacted(project: Project, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    project.env["TOKENLEDGER_REDACTION"] = str(rules)
    source = write(tmp_path / "a.ndjson", secrets())
    with source.open("a") as file:
        file.write(f'{{"api_key": "{SECRET}"}}\n{{"cut": "{SECRET}\n')
    said = project.loader(str(source), expect=1).stdout
    assert "; 3 redacted; in " in said and "repaired" not in said
    rows = project.query("select position, request_json, repairs from raw_traces order by position")
    assert rows[0]["request_json"] == (
        '{"messages": [{"role": "user", "content": "[redacted]"}],'
        ' "api_key": "[redacted]", "n": 1.0}'
    )
    assert [row["repairs"] for row in rows] == [["redacted"]] * 3
    rejects = project.query("select raw from raw_rejects order by position")
    assert [row["raw"] for row in rejects] == [
        '{"api_key": "[redacted]"}',
        f"[redacted: {len(SECRET) + 9} bytes that are no JSON]",
    ]
    for folder in ("warehouse", "server"):  # of the embedded store, and of the loopback server
        assert SECRET.encode() not in bytes_below(tmp_path / folder)
    project.dbt("run", "--select", "+llm_traces")
    assert project.value("select sum(prompt_tokens) from llm_traces") == 6, "usage stays"


def test_the_spool_never_sees_what_is_redacted(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    monkeypatch.setenv("TOKENLEDGER_REDACTION", str(rules))
    with Writer(tmp_path / "spool") as writer:
        for one in secrets():
            writer.write(one)
        writer.write(f"bad {SECRET}")
        writer.write_reject("broken_connection", "half a record", SECRET.encode())
    assert SECRET.encode() not in bytes_below(tmp_path / "spool")
    assert b"me@example.org" not in bytes_below(tmp_path / "spool")
    project.env["TOKENLEDGER_REDACTION"] = str(rules)
    project.loader("drain", str(tmp_path / "spool"), expect=1)
    rows = project.query("select repairs from raw_traces order by position")
    assert [row["repairs"] for row in rows] == [["redacted"]] * 3
    rejects = project.query("select reason, raw from raw_rejects order by position")
    assert [(row["reason"], row["raw"]) for row in rejects] == [
        ("not_json", f"[redacted: {len(SECRET) + 4} bytes that are no JSON]"),
        ("broken_connection", f"[redacted: {len(SECRET)} bytes that are no JSON]"),
    ]


def test_off_it_changes_nothing(tmp_path: Path) -> None:
    assert load_redactor(None) is None
    assert load_redactor("") is None
    with Writer(tmp_path / "spool") as writer:
        writer.write({"id": "x", "request_json": {"api_key": SECRET}, "response_json": None})
    assert SECRET.encode() in bytes_below(tmp_path / "spool")


@pytest.mark.parametrize("form", ["data: {}\n\n", "{}\r\n", " {} ,\n"])
def test_what_is_all_of_its_lines_is_no_doubtful_string(form: str) -> None:
    """Of a stream of events the usage stays, whatever the answer's text quotes."""
    events = [
        {"delta": {"content": 'say "hi"', "arguments": '{"api_key": '}},
        {"delta": {"content": "x"}, "usage": {"total_tokens": 5}},
    ]
    text = "".join(form.replace("{}", json.dumps(event)) for event in events)
    redactor = Redactor(["**.content", "**.api_key"], [])
    line, _ = redactor.redact(json.dumps({"response_json": text}).encode())
    found = json.loads(line)["response_json"]
    assert found.count('"content": "[redacted]"') == 2
    assert '"usage": {"total_tokens": 5}' in found
