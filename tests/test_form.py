"""The page at `/`: no browser runs here, so this reads what a browser would be given."""

import re
from html.parser import HTMLParser

from servers import ROOT

from code_reviewer.findings import Severity
from code_reviewer.rules import TARGET_VERSIONS

GATEWAY = ROOT / "gateway"
HTML, SCRIPT, STYLE = (
    (GATEWAY / f"form.{kind}").read_text(encoding="utf-8") for kind in ("html", "js", "css")
)


class Page(HTMLParser):
    """The tags of the page, and what is wrong with their order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.label_holds: set[str] = set()
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append((tag, named))
        if "label" in self.open and "id" in named:
            self.label_holds.add(named["id"])
        if tag not in {"meta", "link", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


PAGE = Page()
IDS = PAGE.values("id")


def test_every_tag_is_closed_and_every_id_is_there_once() -> None:
    assert PAGE.open == []
    assert len(IDS) == len(set(IDS))


def test_it_works_under_a_policy_without_inline_scripts_and_styles() -> None:
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", HTML)
    assert not re.search(r"\.style\b|setAttribute\(\"style|cssText", SCRIPT)


def test_it_loads_and_asks_nothing_of_other_hosts() -> None:
    for address in PAGE.values("src") + PAGE.values("href"):
        assert re.fullmatch(r"[a-z.]+|data:,", address)
    assert re.findall(r'fetch\("([^"]*)"', SCRIPT) == ["reviews"]
    assert SCRIPT.count("fetch(") == 1
    assert not re.search(r"url\(|@import", STYLE)


def test_nothing_that_came_from_elsewhere_is_put_in_as_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function"
        r"|srcdoc|createContextualFragment|setHTML",
        SCRIPT,
    )


def test_a_link_is_made_of_https_addresses_alone() -> None:
    (rule,) = re.findall(r"function ruleOf\(finding\) \{(.*?)\n\}", SCRIPT, re.DOTALL)
    guard = r'if (!/^https:\/\//.test(finding.url || "")) return'
    assert rule.index(guard) < rule.index("link.href")
    assert SCRIPT.count(".href =") == 1
    assert 'link.rel = "noopener noreferrer"' in rule


def test_the_key_stays_in_the_tab() -> None:
    assert not re.search(r"localStorage|document\.cookie|indexedDB", SCRIPT)
    (key,) = [named for _, named in PAGE.tags if named.get("id") == "key"]
    assert (key["type"], key["autocomplete"]) == ("password", "off")
    assert "name" not in key


def test_the_script_finds_each_element_that_it_names() -> None:
    named = set(re.findall(r'\$\("([a-z-]+)"\)', SCRIPT))
    assert named <= set(IDS)
    assert len(named) > 15


def test_every_field_has_a_label() -> None:
    labelled = PAGE.label_holds | set(PAGE.values("for"))
    fields = {
        attributes["id"] for tag, attributes in PAGE.tags if tag in {"input", "select", "textarea"}
    }
    assert fields <= labelled


def test_what_happens_is_told_to_who_cannot_see_it() -> None:
    roles = {named["id"]: named for _, named in PAGE.tags if "id" in named}
    assert roles["problem"]["role"] == "alert"
    assert roles["stages"]["aria-live"] == "polite"
    assert roles["outcome"]["tabindex"] == "-1"


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_by_day_and_by_night() -> None:
    themes = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", theme))
        pairs = [(ink, ground) for ink in colours for ground in ("page", "sheet")]
        text = {"ink", "quiet", "accent", "error", "warning", "info", "good"}
        pairs = [pair for pair in pairs if pair[0] in text] + [("on-accent", "accent")]
        for ink, ground in pairs:
            light, dark = sorted(map(_luminance, (colours[ink], colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_it_asks_for_the_versions_and_severities_that_reviews_know() -> None:
    offered = set(PAGE.values("value"))
    assert set(TARGET_VERSIONS) <= offered
    assert {severity.value for severity in Severity} <= offered
