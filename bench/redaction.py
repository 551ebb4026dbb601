"""What redaction finds of a labelled corpus, what it takes for something else, what it costs."""

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import re2
from rich.console import Console
from rich.table import Table

from bench.pii_corpus import FIELDS, RULES, Sample, samples
from logging_service.redaction import Redactor

_EACH = 240
_SECONDS = 1.0
_PLAIN = {
    "model": "gpt-4o",
    "provider": "openai",
    "tokens_used": 812,
    "cost": 0.0042,
    "duration_ms": 1234.5,
    "message": "def area(r):\n    return 3.14159 * r ** 2\n" * 6,
    "started": "2026-11-23T10:20:30.123456Z",
}


class Score(msgspec.Struct):
    """Of a rule: how many values were found, missed, and taken for one that are none."""

    found: int = 0
    missed: int = 0
    mistaken: int = 0

    @property
    def recall(self) -> float:
        """The share of what is there that was found."""
        return self.found / (self.found + self.missed or 1)

    @property
    def precision(self) -> float:
        """The share of what was found that is there."""
        return self.found / (self.found + self.mistaken or 1)


def scores(redactor: Redactor, each: int = _EACH) -> dict[str, Score]:
    """Return the score of every rule over `each` samples of it and as many without anything."""
    by_rule = {rule: Score() for rule in RULES}
    for sample in samples(each):
        _judge(sample, redactor, by_rule)
    return by_rule


def _judge(sample: Sample, redactor: Redactor, by_rule: dict[str, Score]) -> None:
    after, found, _ = redactor.text(sample.text.encode())
    mistaken = Counter(found)
    if sample.rule:
        is_gone = sample.value.encode() not in after and found[sample.rule] > 0
        by_rule[sample.rule].found += is_gone
        by_rule[sample.rule].missed += not is_gone
        mistaken[sample.rule] -= 1
    for rule, number in mistaken.items():
        by_rule[rule].mistaken += max(number, 0)


def micros_each(work: object, payload: bytes) -> float:
    """Return microseconds of processor time that `work` takes with a payload."""
    assert callable(work)
    number, began = 0, time.process_time()
    while time.process_time() - began < _SECONDS:
        for _ in range(100):
            work(payload)
        number += 100
    return (time.process_time() - began) / number * 1e6


def main() -> None:
    """Print a table, and one line of JSON."""
    redactor = Redactor(FIELDS, b"the key of this run")
    by_rule = scores(redactor)
    table = Table("rule", "samples", "recall", "precision", box=None, pad_edge=False)
    for rule, score in by_rule.items():
        row = (str(score.found + score.missed), f"{score.recall:.4f}", f"{score.precision:.4f}")
        table.add_row(rule, *row)
    Console(stderr=True).print(table)
    plain = msgspec.json.encode(_PLAIN)
    personal = msgspec.json.encode({**_PLAIN, "email": "ada@example.org", "to": "+491701234567"})
    figures = {
        "recall": {rule: score.recall for rule, score in by_rule.items()},
        "precision": {rule: score.precision for rule, score in by_rule.items()},
        "bytes": len(plain),
        "search_us": round(micros_each(re2.compile(redactor.suspects).search, plain), 2),
        "replace_us": round(micros_each(redactor.payload, personal), 2),
    }
    search, replace = figures["search_us"], figures["replace_us"]
    told = f"{len(plain)} bytes: {search} µs to search, {replace} µs where two values are replaced"
    sys.stderr.write(f"{told}\n")
    sys.stdout.write(f"{msgspec.json.encode(figures).decode()}\n")


if __name__ == "__main__":
    main()
