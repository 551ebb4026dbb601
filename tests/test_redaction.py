"""What is replaced in a payload, and that nothing else is."""

import json
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pii_corpus import FIELDS, RULES, samples
from bench.redaction import scores
from logging_service.redaction import Redactor, Rules
from logging_service.secret_patterns import PATTERNS, Pattern, Span

KEY = b"a key of this test, of 32 bytes."
redactor = Redactor(FIELDS, KEY)


def redacted(payload: object, by: Redactor = redactor) -> tuple[object, Counter[str]]:
    sent = json.dumps(payload).encode()
    assert by.may_change(sent) or by.payload(sent).text == sent
    text, found = by.payload(sent)
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
        assert redactor.may_change(sent)
        assert b"Ada" not in redactor.payload(sent).text

    def test_a_field_of_any_name_gets_a_token_that_is_known_again(self) -> None:
        by = Redactor(Rules(fields=frozenset({"strasse & hausnummer"})), KEY)
        once = by.payload('{"Straße & Hausnummer":"Weg 1"}'.encode())
        assert b'"[strasse___hausnummer:' in once.text
        assert by.payload(once.text) == (once.text, Counter())

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
        assert redactor.may_change(sent)
        text = json.dumps(json.loads(redactor.payload(sent).text))
        assert "ada@" not in text
        assert "pa55word" not in text

    def test_what_was_replaced_before_stays_as_it_is(self) -> None:
        texts = [sample.text for sample in samples(4)]
        once = redactor.payload(json.dumps({"email": "Ada", "t": texts}).encode())
        assert redactor.payload(once.text) == (once.text, Counter())

    def test_all_but_what_was_found_stays_to_the_byte(self) -> None:
        sent = '{ "n":1.0e2 ,"ü":"\\u00fc\\/", "b":[1,-0, 2.50],"t":"x ada@example.org y" }'
        value = token("email", "ada@example.org")
        expected = sent.replace("ada@example.org", value)
        assert redactor.payload(sent.encode()).text == expected.encode()

    def test_a_plain_text_such_as_a_session_is_searched(self) -> None:
        text, found = redactor.text(b"session of ada@example.org")
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
        assert not none.may_change(b'{"email":"ada@example.org"}')
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
            assert redactor.may_change(json.dumps({"t": sample.text}).encode()), sample


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
    after, found = redactor.payload(text)
    shape = json.loads(after)
    assert len(shape) <= len(sent)
    assert (after == text) is not bool(found)


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
