"""What is replaced in a payload, and that nothing else is."""

import dataclasses
import functools
import hmac
import json
import re
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from bench.pii_corpus import FIELDS, RULES, samples
from bench.redaction import scores
from logging_service.redaction import Redactor, Rules
from logging_service.secret_patterns import PATTERNS, Pattern, Span

KEY = b"a key of this test, of 32 bytes."
redactor = Redactor(FIELDS, KEY)


def is_suspect(by: Redactor, payload: bytes) -> bool:
    return by.suspects is not None and re2.search(by.suspects, payload) is not None


def redacted(payload: object, by: Redactor = redactor) -> tuple[object, Counter[str]]:
    sent = json.dumps(payload).encode()
    assert is_suspect(by, sent) or by.payload(sent).text == sent
    text, found, _ = by.payload(sent)
    return json.loads(text), found


def token(rule: str, value: str) -> str:
    return (
        redactor.payload(json.dumps({"email": value}).encode())
        .text.decode()[10:]
        .replace("[email", f"[{rule}")[1:-2]
    )


class TestFields:
    @pytest.mark.parametrize("name", ["email", "EMAIL", "ip", "ip_address", "phone", "Full_Name"])
    def test_a_named_field_is_replaced_at_any_depth_whatever_its_case(self, name: str) -> None:
        changed, found = redacted({"a": [{"b": {name: "Ada"}}], "c": "Ada"})
        rule = name.casefold()
        assert changed == {"a": [{"b": {name: token(rule, "Ada")}}], "c": "Ada"}
        assert found == {rule: 1}

    def test_all_that_a_named_field_holds_is_replaced_but_for_null_and_truth(self) -> None:
        sent = {"email": {"work": ["a", 1.50, None, True, ""], "n": 7}}
        changed, found = redacted(sent)
        values = [token("email", value) for value in ("a", "1.5", "7")]
        expected = {"work": [*values[:2], None, True, ""], "n": values[2]}
        assert changed == {"email": expected}
        assert found == {"email": 3}

    def test_a_name_written_with_escapes_is_the_same_name(self) -> None:
        sent = rb'{"em\u0061il":"Ada"}'
        assert is_suspect(redactor, sent)
        assert b"Ada" not in redactor.payload(sent).text

    def test_a_field_of_any_name_gets_a_token_that_is_known_again(self) -> None:
        by = Redactor(Rules(fields=frozenset({"straße & hausnummer"})), KEY)
        once = by.payload('{"Straße & Hausnummer":"Weg 1"}'.encode())
        assert b'"[stra_e___hausnummer:' in once.text
        assert by.payload(once.text)[:2] == (once.text, Counter())

    def test_an_exempt_field_keeps_what_it_holds(self) -> None:
        rules = Rules(fields=frozenset({"email"}), exempt=frozenset({"contact"}))
        sent = {"contact": {"email": "ada@example.org"}, "email": "ada@example.org"}
        changed, _ = redacted(sent, Redactor(rules, KEY))
        assert changed["contact"] == sent["contact"]  # type: ignore[index]
        assert changed["email"] == token("email", "ada@example.org")  # type: ignore[index]


class TestTexts:
    def test_equal_values_get_equal_tokens_in_fields_and_in_texts(self) -> None:
        changed, found = redacted({"email": "ada@example.org", "t": "to ada@example.org"})
        value = token("email", "ada@example.org")
        assert changed == {"email": value, "t": f"to {value}"}
        assert found == {"email": 2}

    def test_another_key_makes_other_tokens(self) -> None:
        sent = b'{"email":"Ada"}'
        assert Redactor(FIELDS, b"another").payload(sent) != redactor.payload(sent)

    def test_keys_of_objects_are_searched_too(self) -> None:
        changed, _ = redacted({"ada@example.org": 1})
        assert changed == {token("email", "ada@example.org"): 1}

    @pytest.mark.parametrize(
        "sent",
        [rb'{"t":"ada\u0040example.org"}', rb'{"t":"https:\/\/u:pa55word@h\/"}'],
    )
    def test_escapes_hide_nothing(self, sent: bytes) -> None:
        assert is_suspect(redactor, sent)
        text = json.dumps(json.loads(redactor.payload(sent).text))
        assert "ada@" not in text
        assert "pa55word" not in text

    def test_what_was_replaced_before_stays_as_it_is(self) -> None:
        texts = [sample.text for sample in samples(4)]
        once = redactor.payload(json.dumps({"email": "Ada", "t": texts}).encode())
        assert redactor.payload(once.text)[:2] == (once.text, Counter())

    def test_all_but_what_was_found_stays_to_the_byte(self) -> None:
        sent = '{ "n":1.0e2 ,"ü":"\\u00fc\\/", "b":[1,-0, 2.50],"t":"x ada@example.org y" }'
        value = token("email", "ada@example.org")
        expected = sent.replace("ada@example.org", value)
        assert redactor.payload(sent.encode()).text == expected.encode()

    def test_a_plain_text_such_as_a_session_is_searched(self) -> None:
        text, found, _ = redactor.text(b"session of ada@example.org")
        assert text == f"session of {token('email', 'ada@example.org')}".encode()
        assert found == {"email": 1}


class TestActions:
    def test_an_operator_masks_or_drops_by_rule(self) -> None:
        rules = Rules(actions={"email": "mask", "phone": "drop"})
        sent = {"t": "ada@example.org +491701234567 10.1.2.3"}
        changed, found = redacted(sent, Redactor(rules, KEY))
        assert changed == {"t": f"[email]  {token('ip', '10.1.2.3')}"}
        assert found == {"email": 1, "phone": 1, "ip": 1}

    def test_without_rules_nothing_is_searched(self) -> None:
        none = Redactor(Rules(patterns=()), KEY)
        assert none.suspects is None
        assert none.payload(b'{"t":"ada@example.org"}').text == b'{"t":"ada@example.org"}'


HARD = {"email", "card", "iban", "phone"}


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_is_for_is_found_but_for_what_is_written_to_hide_it(rule: str) -> None:
    score = scores(redactor, each=24)[rule]
    assert (score.found, score.missed) == ((23, 1) if rule in HARD else (24, 0))


def test_little_else_is_taken_for_what_it_looks_like() -> None:
    mistaken = {rule: score.mistaken for rule, score in scores(redactor, each=24).items()}
    assert {rule for rule, number in mistaken.items() if number} == {"ip", "phone"}
    assert sum(mistaken.values()) < 0.1 * 24 * len(RULES)


def test_the_search_of_a_whole_body_passes_over_no_sample() -> None:
    for sample in samples():
        if redactor.text(sample.text.encode()).found:
            assert is_suspect(redactor, json.dumps({"t": sample.text}).encode()), sample


# Half a surrogate pair is refused before.
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(
    st.dictionaries(texts | st.sampled_from(["email", "ip"]), json_values),
    st.sampled_from([json.dumps, msgspec.json.encode]),
)
def test_any_object_stays_json_of_the_same_shape(
    sent: dict[str, object], encode: Callable[[object], str | bytes]
) -> None:
    encoded = encode(sent)
    text = encoded.encode() if isinstance(encoded, str) else encoded
    after, found, _ = redactor.payload(text)
    shape = json.loads(after)
    assert len(shape) <= len(sent)
    assert (after == text) is not bool(found)


# Rules that find no more but look at everything, where the others go by what catches the eye.
thorough = Redactor(dataclasses.replace(FIELDS, exempt=frozenset({"none of these"})), KEY)
personal = st.sampled_from([sample.text for sample in samples(3)])
hostile = st.sampled_from(
    [
        '"email":"x"',
        "\\",
        '\\"',
        "{[",
        "ä",
        "\n4111111111111111",
        "\u20134111111111111111",
        "Bearer\n" + "a" * 20,
    ]
)
pieces = st.lists(personal | hostile | texts, max_size=4).map("".join)
names = st.sampled_from(["email", "Phone", "a", "email\\"]) | pieces
payloads = st.dictionaries(
    names,
    st.recursive(
        st.sampled_from([None, True, 3, 2.5, 4111111111111111, -4111111111111111]) | pieces,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)


@given(
    payloads,
    st.sampled_from(
        [
            json.dumps,
            functools.partial(json.dumps, indent=1, ensure_ascii=False),
            lambda value: json.dumps(value).replace("/", "\\/").replace("&", "\\u0026"),
        ]
    ),
)
def test_what_is_looked_for_by_hints_is_all_that_is_there(
    sent: dict[str, object], encode: Callable[[object], str]
) -> None:
    text = encode(sent).encode()
    after = redactor.payload(text)
    assert after[:2] == thorough.payload(text)[:2]
    assert not after.found or is_suspect(redactor, text)


def test_a_card_number_is_replaced_also_where_it_is_a_number_and_no_other_number_is() -> None:
    sent = (
        '{"a":4111111111111111,"b":[ 4111111111111111 ],"c":-4111111111111111,"d":4111111111111112'
    )
    sent += ',"e":0.4111111111111111,"f":4111111111111111.5,"g":4111111111111111e2}'
    value = f'"{token("card", "4111111111111111")}"'
    after = redactor.payload(sent.encode())
    expected = sent.replace(":4111111111111111,", f":{value},").replace(
        " 4111111111111111 ", f" {value} "
    )
    assert after.text.decode() == expected
    assert after.found == {"card": 2}


@pytest.mark.parametrize(
    "one", ['"a@bc.de a@bc.de"', '{"email":[1,1]}', '"999.999.999.999"', '"\\u0041"', '"://a:a@"']
)
def test_the_effort_told_grows_with_all_that_takes_time(one: str) -> None:
    def effort(times: int) -> int:
        return redactor.payload(f"[{','.join([one] * times)}]".encode()).effort

    assert effort(300) - effort(200) == effort(200) - effort(100) >= 100


@pytest.mark.parametrize("edge", ["\\u0009", "\\uff1a", "\\u00e9", "\\ud83d\\ude42"])
def test_a_card_number_right_behind_an_escaped_character_is_found(edge: str) -> None:
    sent = f'{{"a":"{edge}4111 1111 1111 1111"}}'.encode()
    assert redactor.payload(sent).found == {"card": 1}
    assert is_suspect(redactor, sent)


def test_no_token_can_be_taken_for_a_card_number() -> None:
    # Its digest has no letter under this key.
    sent = next(
        text
        for text in (f"{number}@example.org" for number in range(20_000))
        if hmac.digest(KEY, text.encode(), "sha256").hex()[:16].isdecimal()
    )
    token_of_it = redactor.text(sent.encode()).text
    assert re.fullmatch(rb"\[email:a[0-9]{15}\]", token_of_it)


@pytest.mark.parametrize(
    "unit",
    ["127.0.0.1.", "AA00AAAAAAAAAAA.", "sk-aaaaaaaaaaaaaaaaaaaaaa.", "eyJaaaaaaaa-127.0.0.1-"],
)
def test_a_hostile_text_of_the_largest_size_takes_no_more_than_its_effort(unit: str) -> None:
    text = (unit * 262_144)[:262_144].encode()
    began = time.thread_time()
    effort = redactor.payload(b'{"a":"%b"}' % text).effort
    # With room for a machine that is busy; followed to its end for each hit it takes 3 seconds.
    assert time.thread_time() - began < 1.0 + effort / 1_000_000


@pytest.mark.parametrize(
    "unit", ["a@", "4", "4 ", "4111 ", "a.", "+1", "2001:", "DE00 ", "1.", "x://a:"]
)
def test_what_is_judged_of_a_hostile_text_is_in_proportion_to_its_length(unit: str) -> None:
    judged: list[int] = []

    def counting(pattern: Pattern) -> Pattern:
        def judge(found: bytes) -> Span:
            judged.append(len(found))
            return pattern.judge(found)

        return pattern._replace(judge=judge)

    text = (unit * 20_000)[:20_000].encode()
    Redactor(Rules(patterns=[counting(one) for one in PATTERNS]), KEY).text(text)
    assert sum(judged) <= 40 * len(text)
