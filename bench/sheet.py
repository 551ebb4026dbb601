"""What a person reads beside the figures: the rounds, who was busy, on what machine."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.figures import Figures
from bench.machine import Others, description


class Sheet:
    """Collects what explains the figures."""

    def __init__(self) -> None:
        self.ceiling: int | None = None
        self._others = Others()
        self._rounds: dict[str, Sequence[float]] = {}
        self._busy: dict[str, float] = {}
        self._cpu: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add_rounds(self, what: str, values: Sequence[float]) -> None:
        """Keep the value of each round."""
        self._rounds[what] = values

    def add_generator(self, what: str, shares: Sequence[float]) -> None:
        """Keep which share of a round's time the load generator was busy."""
        self._busy[what] = statistics.median(shares)

    def add_cpu(
        self, what: str, before: Mapping[str, float], after: Mapping[str, float], events: int
    ) -> None:
        """Keep what each process used for `events` events, in seconds of processor time."""
        for process, seconds in after.items():
            self._cpu[what][process].append((seconds - before[process]) / events * 1e6)

    def show(self, console: Console, figures: Figures) -> None:
        """Print everything."""
        console.print(_figures_table(figures, self._median("POST /log beside its consumer")))
        console.print(self._rounds_table())
        if self._cpu:
            console.print(self._cpu_table())
        for what, share in self._busy.items():
            console.print(f"load generator, {what}: busy {share:.0%} of the time")
        if self.ceiling is not None:
            console.print(f"load generator, against a server that does nothing: {self.ceiling}/s")
        console.print(f"other programs: {self._others.share():.0%} of a processor meanwhile")
        console.print(description())

    def _median(self, what: str) -> float | None:
        for name, values in self._rounds.items():
            if name.startswith(what):
                return statistics.median(values)
        return None

    def _rounds_table(self) -> Table:
        table = Table("round by round", "", box=None, pad_edge=False)
        for what, values in self._rounds.items():
            table.add_row(what, " · ".join(f"{value:,.0f}" for value in values))
        return table

    def _cpu_table(self) -> Table:
        names = ("producer", "valkey", "consumer", "postgres")
        table = Table("processor time, µs an event", *names, box=None, pad_edge=False)
        for what, by_process in self._cpu.items():
            medians = (f"{statistics.median(by_process[name]):.2f}" for name in names)
            table.add_row(what, *medians)
        return table


def _figures_table(figures: Figures, beside: float | None) -> Table:
    table = Table("figure", "ours", "compared with", "ratio", box=None, pad_edge=False)
    if stored := figures.stored:
        other = f"{stored.copy_events_per_second:,} by COPY"
        table.add_row("stored events/s", f"{stored.events_per_second:,}", other, f"{stored.ratio}")
    if post := figures.post_log:
        empty = post.empty_app_requests_per_second
        other = f"{empty:,} of an empty application"
        table.add_row(
            "POST /log requests/s", f"{post.requests_per_second:,}", other, f"{post.ratio}"
        )
        if beside is not None:
            share = f"{beside / empty:.3f}"
            table.add_row("  beside its running consumer", f"{beside:,.0f}", other, share)
        table.add_row("  p50 / p99", f"{post.p50_ms} / {post.p99_ms} ms")
    if queryable := figures.queryable_ms:
        table.add_row("queryable p50 / p99", f"{queryable.p50} / {queryable.p99} ms")
    return table
