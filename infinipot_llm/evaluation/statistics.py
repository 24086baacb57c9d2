"""Means with intervals that know which questions belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_GROUPS = 6
"""So many sources a comparison needs: of five, all in favour of one method happen by chance in 6 of 100 cases."""


def paired(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
    *,
    tasks: Sequence[str] | None = None,
) -> tuple[float, float, float]:
    """Compare two methods on the same questions: the mean of a - b, and its 95 % percentile interval.

    Whole groups are drawn with replacement (cluster bootstrap), as questions of one article are not independent. Below
    about 20 groups such intervals are somewhat too narrow. Of fewer than `LEAST_GROUPS` groups, in any of the tasks,
    there is none (nan): not even an exact sign test could tell the methods apart at 5 %, whatever the scores. Of no
    questions all three are nan.

    Args:
        a: [n] scores of a method, one per question.
        b: [n] scores of the other one, same questions.
        groups: [n] the source of each question (`Case.group`).
        resamples: Number of draws.
        seed: Of the draws: same input, same interval.
        tasks: [n] the task of each question: the mean is that of the tasks' means, in every draw as well. None: all are
            of one task.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums, counts = _cells(difference, groups, tasks)
    if _few(counts):
        return _mean(sums, counts), float("nan"), float("nan")
    return _mean(sums, counts), *_bootstrap(sums, counts, resamples, seed)


def differing(a: ArrayLike, b: ArrayLike, groups: Sequence[str]) -> int:
    """Count the groups in which two methods do not come out alike.

    Where these are fewer than `LEAST_GROUPS`, no sign test tells the methods apart, although the bootstrap's interval
    may leave out 0: it draws only what it has seen.

    Args:
        a: [n] scores of a method, one per question.
        b: [n] scores of the other one, same questions.
        groups: [n] the source of each question.
    """
    sums, _ = _cells(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), groups, None)
    return int((np.abs(sums) > 1e-9).sum())


def share(
    values: ArrayLike,
    groups: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
    *,
    tasks: Sequence[str] | None = None,
) -> tuple[float, float, float]:
    """Give the mean of the questions' values, and a 95 % interval.

    The interval is that of a cluster bootstrap by group, as in `paired`, but Wilson's where a share of hits has no
    groups to speak of (every question of a single task is its own), or nothing that a bootstrap could vary (all hit, or
    none), then with as many trials as there are groups. Fewer than `LEAST_GROUPS` groups, in any of the tasks, have no
    bootstrap, and no interval (nan): of two, it would only ever draw the one, the other, or both. Of no questions all
    three are nan.

    Args:
        values: [n] hits (0 or 1) or scores, one per question.
        groups: [n] the source of each question (`Case.group`).
        resamples: Number of draws.
        seed: Of the draws.
        tasks: [n] the task of each question, as in `paired`.
    """
    value = np.asarray(values, dtype=np.float64)
    sums, counts = _cells(value, groups, tasks)
    mean, (trials, kinds) = _mean(sums, counts), sums.shape
    own = trials == len(value) and kinds == 1
    if trials and np.isin(value, (0.0, 1.0)).all() and (own or mean in (0.0, 1.0)):
        return mean, *_wilson(mean, trials)
    if _few(counts):
        return mean, float("nan"), float("nan")
    return mean, *_bootstrap(sums, counts, resamples, seed)


def _cells(
    values: NDArray[np.float64], groups: Sequence[str], tasks: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Give the sums of the values, and how many there are, by group and task."""
    tasks = [""] * len(groups) if tasks is None else tasks
    if not len(values) == len(groups) == len(tasks):
        raise ValueError(f"{len(values)} values for {len(groups)} groups: give one group per value, and one task")
    named = (np.unique(np.asarray(names, dtype=str), return_inverse=True) for names in (groups, tasks))
    (many, group), (kinds, task) = ((len(names), index) for names, index in named)
    sums, counts = np.zeros((many, kinds)), np.zeros((many, kinds), dtype=np.int64)
    np.add.at(sums, (group, task), values)
    np.add.at(counts, (group, task), 1)
    return sums, counts


def _few(counts: NDArray[np.int64]) -> bool:
    """Tell whether a task has fewer than `LEAST_GROUPS` groups, or there is none."""
    return int((counts > 0).sum(0).min(initial=LEAST_GROUPS)) < LEAST_GROUPS or not len(counts)


def _mean(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Give the mean of the tasks' means; nan of nothing."""
    return float((sums.sum(0) / counts.sum(0)).mean()) if len(sums) else float("nan")


def _bootstrap(sums: NDArray[np.float64], counts: NDArray[np.int64], resamples: int, seed: int) -> tuple[float, float]:
    """Give the 95 % percentile interval of the mean of the tasks' means when whole groups are drawn with replacement.

    A draw without any question of a task says nothing about it, and takes its mean as it is: were the task left out,
    what tells tasks apart would look like chance.
    """
    many = len(counts)
    draws = np.random.default_rng(seed).multinomial(many, np.full(many, 1 / many), size=resamples)
    drawn = draws @ counts  # [resamples, tasks]
    means = np.where(drawn > 0, (draws @ sums) / np.maximum(drawn, 1), sums.sum(0) / counts.sum(0))
    low, high = np.quantile(means.mean(1), (0.025, 0.975))
    return float(low), float(high)


def _wilson(mean: float, trials: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share."""
    z2 = 1.959964**2
    centre = (mean + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (mean * (1 - mean) + z2 / (4 * trials)) / trials) ** 0.5 / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
