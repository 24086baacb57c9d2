"""The tables of followup.py: gold passages found, answers beside those of an arm, and between lengths of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import followup_data as data
import numpy as np

from infinipot_llm.evaluation.statistics import paired, share

FOUND_AT = (256, 512, 1024, 2048)
"""Recalled tokens at which `recall` looks for the gold passages."""


def shown(found: tuple[float, float, float], mean_as: str = ".3f", ends_as: str = ".2f") -> str:
    """Return a mean and its interval, where there are sources enough for one."""
    mean, low, high = found
    between = "no interval" if np.isnan(low) else f"{low:{ends_as}}, {high:{ends_as}}"
    return f"{mean:{mean_as}} [{between}]"


def report(rows: list[dict[str, Any]], base: str = "best-1024") -> None:
    """Print both tables: gold passages found, and answers with paired differences to the base arm."""
    table: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["sample"], row["arm"]), []).append(row)
    print("| sample | kind | found by | n | R@256 | R@512 | R@1,024 | R@2,048 |\n|---|---|---|---|---|---|---|---|")
    for (sample, arm), found in sorted(table.items()):
        if "found" in found[0]:
            for kind in sorted({r["kind"] for r in found}):
                some = [r for r in found if r["kind"] == kind]
                shares = [
                    shown(share([r["found"][b] for r in some], [r["group"] for r in some]))
                    if b in some[0]["found"]
                    else ""
                    for b in map(str, FOUND_AT)
                ]
                print(f"| {sample} | {kind} | {arm} | {len(some)} | " + " | ".join(shares) + " |")
    stories = tuple(sorted({sample for sample, _ in table if sample.startswith("squality")}))
    lengths = {
        "4K": ("A4", "B4"), "16K": ("m16",), "30K": ("m30",), "8K xquad": ("x8",), "8K nq": ("n8",),
        "130K nq": ("n130",), "30K hotpot": ("h30",), "stories": stories,
    }  # fmt: skip
    together = {"4K, 16K, 30K": ("A4", "B4", "m16", "m30"), "8K": ("x8", "n8")}
    answered = {arm for (_, arm), found in table.items() if "found" not in found[0]}
    arms = sorted(answered, key=lambda a: (a != base, a))
    print(f"\n| length | arm | n | contains | F1 | words | seconds | pairs | contains: {base} minus this | F1 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length, samples in (lengths | together).items():
        by_arm = {a: {(s, r["number"]): r for s in samples for r in table.get((s, a), [])} for a in arms}
        for arm, found in by_arm.items():
            if not found or (length in together and {s for s, _ in found} < set(samples)):
                continue
            some = list(found.values())
            right = shown(share([r["contains"] for r in some], [r["group"] for r in some]))
            f1, words = (np.mean([r[name] for r in some]) for name in ("f1", "words"))
            both = [] if arm == base else [q for q in found if q in by_arm.get(base, {})]
            differences = [
                shown(paired(*([of[q][score] for q in both] for of in (by_arm[base], found)), groups), "+.3f", "+.3f")
                for score in ("contains", "f1")
                if (groups := [found[q]["group"] for q in both])
            ] or ["", ""]
            print(
                f"| {length} | {arm} | {len(some)} | {right} | {f1:.3f} | {words:.1f} "
                f"| {np.median([r['seconds'] for r in some]):.1f} | {len(both)} | {' | '.join(differences)} |"
            )


def report_lengths(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print what longer documents cost each arm, on the same questions.

    Args:
        rows: Of `answers`.
        folder: The data, which tells which question a row's number stands for in each document.
    """
    samples = data.load(folder)
    by_arm: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}  # arm, document, question
    for shorter, longer in data.NESTED:
        for sample in (*shorter, *longer):
            asked = {number: question.question for number, question in data.drawn(samples, sample, len(rows) + 1)}
            for row in (r for r in rows if r["sample"] == sample and "contains" in r):
                length = " and ".join(shorter) if sample in shorter else sample
                by_arm.setdefault(row["arm"], {}).setdefault(length, {})[asked[row["number"]]] = row
    print("\n| arm | document | minus | n | contains | F1 |\n|---|---|---|---|---|---|")
    for arm, of_arm in sorted(by_arm.items()):
        for shorter, longer in data.NESTED:
            for sample in longer:
                short, long = of_arm.get(" and ".join(shorter), {}), of_arm.get(sample, {})
                both = sorted(short.keys() & long.keys())
                if both:
                    groups = [short[q]["group"] for q in both]
                    cells = [
                        shown(
                            paired([long[q][score] for q in both], [short[q][score] for q in both], groups),
                            "+.3f",
                            "+.3f",
                        )
                        for score in ("contains", "f1")
                    ]
                    print(f"| {arm} | {sample} | {' and '.join(shorter)} | {len(both)} | {cells[0]} | {cells[1]} |")
