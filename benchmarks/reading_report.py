"""Markdown tables of what reading.py measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]


def tables(rows: Sequence[Row]) -> list[str]:
    """Return markdown tables of rows, those of one machine, model, document and release under one heading."""
    lines: list[str] = []
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[heading(row)].append(row)
    for head, some in groups.items():
        lines += [f"## {head}", ""]
        for kind, make in REPORTS.items():
            if chosen := [row for row in some if row["measured"] == kind]:
                lines += [*make(chosen), ""]
    return lines


def heading(row: Row) -> str:
    device = "" if row.get("device", "cpu") == "cpu" else f"{row['device']}, "  # older rows do not say
    read = f", {row['document']}, release {row['release']}" if "document" in row else ""
    return (
        f"{row['model']}{read}; {device}{row['cpu']}, {row['cores']} cores, torch {row['torch']}, "
        f"transformers {row['transformers']}"
    )


def settings(row: Row) -> str:
    return f"{row['dtype']}, {row['threads']} threads, {row['budget']:,}, {row['chunk']}"


SETTINGS = "dtype, threads, budget, chunk"


def table(columns: str, lines: Sequence[Sequence[Any]]) -> list[str]:
    names = [name.strip() for name in columns.split("|")]
    made = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    return made + ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def told(row: Row) -> str:
    """A ratio, with the range of its turns and their count."""
    return f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}, {row['count']} turns)"


def report_flat(rows: Sequence[Row]) -> list[str]:
    speeds = [
        [
            settings(r), f"{r['tokens']:,}", r["cycles"], r["early_tokens_per_second"], r["late_tokens_per_second"],
            f"{r['late_to_early']:.3f} ({r['lowest']:.3f} to {r['highest']:.3f}, {r['cycles_compared']} turns)",
        ]
        for r in rows if r["part"] == "speed"
    ]  # fmt: skip
    memory = [
        [
            settings(r), f"{r['tokens_read']:,}", r["cycles"], r["rss_anon_before_mb"], r["rss_anon_peak_mb"],
            round(r["rss_anon_peak_mb"] - r["rss_anon_before_mb"], 1),
        ]
        for r in sorted(rows, key=lambda r: int(r["tokens"])) if r["part"] == "memory"
    ]  # fmt: skip
    lines = table(f"{SETTINGS} | tokens | cycles | tokens/s early | tokens/s late | late to early", speeds)
    if memory:
        lines += ["", *table(f"{SETTINGS} | tokens | cycles | MB before reading | peak MB | MB of reading", memory)]
    return lines


def report_cheap(rows: Sequence[Row]) -> list[str]:
    names = "forward", "head and novelty", "catalyst: forward", "catalyst: scores", "choice", "gather and re-rotation"
    lines = [
        [settings(r), "yes" if r["novelty"] else "no", r["tokens_per_second"], told(r["beside_plain"]),
         told(r["beside_slots"]),
         *(f"{100 * r['shares_of_cycle'].get(n, 0.0):.1f} %" for n in (*names, "bookkeeping"))]
        for r in rows
    ]  # fmt: skip
    parts = " | ".join([*names, "bookkeeping"])
    return table(f"{SETTINGS} | novelty | tokens/s | beside plain parts | beside parts through slots | {parts}", lines)


def report_full(rows: Sequence[Row]) -> list[str]:
    lines = [
        [settings(r), f"{r['tokens']:,}", r["seconds"]["pot"], r["seconds"]["pot_without_novelty"],
         r["seconds"]["full"], f"{r['full_to_pot']:.2f}", f"{r['full_to_pot_without_novelty']:.2f}",
         min(r["pieces"].values())]
        for r in sorted(rows, key=lambda r: int(r["tokens"]))
    ]  # fmt: skip
    return table(
        f"{SETTINGS} | tokens | pot, s | no novelty, s | full cache, s | full to pot | full to no novelty | turns",
        lines,
    )


def report_decode(rows: Sequence[Row]) -> list[str]:
    lines = [
        [settings(r), r["slots"], r["seconds_per_token"]["first"], r["seconds_per_token"]["second"],
         told(r["seconds_per_token"])]
        for r in rows
    ]  # fmt: skip
    return table(f"{SETTINGS} | slots | pot, s per token | plain generate, s per token | ratio", lines)


def report_start(rows: Sequence[Row]) -> list[str]:
    return table(
        "what | best seconds | rounds",
        [[name, seconds, r["rounds"]] for r in rows for name, seconds in r["best_seconds"].items()],
    )


def report_speed(rows: Sequence[Row]) -> list[str]:
    """One table for each first line: medians over the rounds that a variant shares with it, and relative to it."""
    groups: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[f"{settings(row)}, {row['tokens']}"][row["variant"]][row["round"]] = row
    lines: list[str] = []
    for by in groups.values():
        first = next(iter(by.values()))
        cells = [speed_line(name, rounds, first) for name, rounds in by.items()]
        lines += [""] if lines else []
        lines += table("variant | tokens/s reading | to first | tokens/s decoding | to first | nll | rounds", cells)
    return lines


def speed_line(name: str, rounds: dict[int, Row], first: dict[int, Row]) -> list[Any]:
    shared = [n for n, row in rounds.items() if n in first and "skipped" not in row and "skipped" not in first[n]]
    if not shared:
        why = next((row["skipped"] for row in rounds.values() if "skipped" in row), "no round beside the first line")
        return [name, why, "", "", "", "", 0]
    cells: list[Any] = []
    for what in ("read_tokens_per_second", "decode_tokens_per_second"):
        mine, base = ([some[n][what] for n in shared] for some in (rounds, first))
        cells += [median(mine), f"{median(mine) / median(base):.2f}"]
    least = min(rounds[n]["tokens_read"] for n in shared)
    stopped = f", stopped at {least:,} tokens" if least < rounds[shared[0]]["tokens"] else ""
    return [f"{name}{stopped}", *cells, median(rounds[n]["nll"] for n in shared), len(shared)]


def report_batch(rows: Sequence[Row]) -> list[str]:
    lines = [
        [settings(r), r["size"], r["slots"], told(r["questions"]), told(r["texts"])]
        for r in sorted(rows, key=lambda r: int(r["size"]))
    ]
    return table(f"{SETTINGS} | batch | slots | questions: times as fast | texts: times as fast", lines)


def report_many(rows: Sequence[Row]) -> list[str]:
    lines = [
        [settings(r), r["size"], r["tokens_of_answers"], told(r["bare"]), told(r["cited"]),
         f"{r['bare_same_answers']} of {r['questions']}"]
        for r in sorted(rows, key=lambda r: int(r["size"]))
    ]  # fmt: skip
    heading = "at a time | tokens of all answers | times as fast | with citations | the same answers"
    return table(f"{SETTINGS} | {heading}", lines)


REPORTS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "flat": report_flat,
    "cheap": report_cheap,
    "full": report_full,
    "decode": report_decode,
    "start": report_start,
    "speed": report_speed,
    "batch": report_batch,
    "many": report_many,
}
