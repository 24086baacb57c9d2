"""Means with intervals that know which questions belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_GROUPS = 6
"""So many sources a comparison needs: of five, all in favour of one method happen by chance in 6 of 100 cases."""


def paired(
    a: ArrayLike, b: ArrayLike, groups: Sequence[str], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Compare two methods on the same questions: the mean of a - b, and its 95 % percentile interval.

    Whole groups are drawn with replacement (cluster bootstrap), as questions of one article are not independent. Below
    about 20 groups such intervals are somewhat too narrow. Of fewer than `LEAST_GROUPS` groups there is none (nan): not
    even an exact sign test could tell the methods apart at 5 %, whatever the scores.

    Args:
        a: [n] scores of a method, one per question.
        b: [n] scores of the other one, same questions.
        groups: [n] the source of each question (`Case.group`).
        resamples: Number of draws.
        seed: Of the draws: same input, same interval.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    interval = _bootstrap(difference, groups, resamples, seed)
    if len(set(groups)) < LEAST_GROUPS:
        interval = float("nan"), float("nan")
    return float(difference.mean()), *interval


def share(
    values: ArrayLike, groups: Sequence[str], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Give the mean of the questions' values, and a 95 % interval.

    The interval is that of a cluster bootstrap by group, as in `paired`, but Wilson's where a share of hits has no
    groups to speak of (every question is its own), or nothing that a bootstrap could vary (all hit, or none), then
    with as many trials as there are groups. Fewer than `LEAST_GROUPS` groups have no bootstrap, and no interval (nan):
    of two, it would only ever draw the one, the other, or both.

    Args:
        values: [n] hits (0 or 1) or scores, one per question.
        groups: [n] the source of each question (`Case.group`).
        resamples: Number of draws.
        seed: Of the draws.
    """
    value = np.asarray(values, dtype=np.float64)
    if len(value) != len(groups):
        raise ValueError(f"{len(value)} values for {len(groups)} groups: give one group per value")
    mean, trials = float(value.mean()), len(set(groups))
    if np.isin(value, (0.0, 1.0)).all() and (trials == len(value) or mean in (0.0, 1.0)):
        return mean, *_wilson(mean, trials)
    if trials < LEAST_GROUPS:
        return mean, float("nan"), float("nan")
    return mean, *_bootstrap(value, groups, resamples, seed)


def _bootstrap(values: NDArray[np.float64], groups: Sequence[str], resamples: int, seed: int) -> tuple[float, float]:
    """Give the 95 % percentile interval of a mean when whole groups are drawn with replacement."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values for {len(groups)} groups: give one group per value")
    index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(counts) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    low, high = np.quantile((draws @ sums) / (draws @ counts), (0.025, 0.975))
    return float(low), float(high)


def _wilson(mean: float, trials: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share."""
    z2 = 1.959964**2
    centre = (mean + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (mean * (1 - mean) + z2 / (4 * trials)) / trials) ** 0.5 / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
