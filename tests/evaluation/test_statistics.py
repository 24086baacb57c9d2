"""Means and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infinipot_llm.evaluation.statistics import differing, paired, share


def test_paired_interval_of_independent_questions_is_the_textbook_one() -> None:
    rng = np.random.default_rng(1)
    b = rng.random(400)
    a = b + rng.normal(0.1, 0.5, 400)
    difference, low, high = paired(a, b, [str(i) for i in range(400)])
    assert difference == pytest.approx((a - b).mean())
    error = (a - b).std() / math.sqrt(400)
    assert low == pytest.approx(difference - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(difference + 1.96 * error, abs=0.1 * error)
    assert paired(a, b, [str(i) for i in range(400)]) == (difference, low, high)


def test_copies_of_a_question_make_an_interval_no_narrower() -> None:
    once = np.random.default_rng(2).random(30)
    zero = np.zeros(30)
    groups = [str(i) for i in range(30)]
    alone = paired(once, zero, groups)
    copied = paired(np.repeat(once, 10), np.repeat(zero, 10), np.repeat(groups, 10).tolist())
    assert copied == pytest.approx(alone)
    ungrouped = paired(np.repeat(once, 10), np.repeat(zero, 10), [str(i) for i in range(300)])
    assert ungrouped[2] - ungrouped[1] < 0.5 * (alone[2] - alone[1])


@pytest.mark.parametrize("many", [1, 5, 6])
def test_a_difference_needs_six_sources(many: int) -> None:
    groups = [f"g{n}" for n in range(many)] * 10
    mean, low, high = paired(np.ones(10 * many), np.zeros(10 * many), groups)
    assert mean == 1.0
    assert math.isnan(low) is math.isnan(high) is (many < 6)


def test_share_of_independent_questions_has_wilsons_interval() -> None:
    hits = [1] * 15 + [0] * 5
    mean, low, high = share(hits, [str(i) for i in range(20)])
    assert (mean, round(low, 2), round(high, 2)) == (0.75, 0.53, 0.89)


def test_share_of_grouped_questions() -> None:
    groups = ["a"] * 10 + ["b"] * 10 + ["c"] * 10 + ["d"] * 10
    mean, low, high = share([1] * 20 + [0] * 20, groups)
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)  # four articles, all or nothing in each: they say little
    mean, low, high = share([1] * 40, groups)
    assert (mean, high) == pytest.approx((1.0, 1.0))
    assert low == pytest.approx(4 / (4 + 1.96**2), abs=1e-3)  # four articles, not forty questions
    assert all(math.isnan(x) for x in share([1, 0], ["a", "a"])[1:])
    with pytest.raises(ValueError, match="one group per value"):
        share([1, 0, 1], ["a", "b"])


def test_few_sources_have_no_interval() -> None:
    values = [0.5, 0.25, 0.75, 0.1, 0.9, 0.3]
    for groups in (["a"] * 6, ["a", "a", "a", "b", "b", "b"], ["a", "b", "c", "d", "e", "e"]):
        mean, low, high = share(values, groups)
        assert mean == pytest.approx(np.mean(values))
        assert np.isnan([low, high]).all()
    assert not np.isnan(share(values, list("abcdef"))).any()
    assert not np.isnan(share([1.0, 0.0], ["a", "b"])).any()  # Wilson's needs no bootstrap


def test_several_tasks_count_alike_and_no_interval_leaves_the_scores() -> None:
    """Tasks of unequal sizes, each with sources of its own: weights by the original counts came out above 1."""
    sizes = {"few": 12, "some": 20, "many": 300}
    tasks = [task for task, many in sizes.items() for _ in range(many)]
    groups = [f"{task}{number // 2}" for task, many in sizes.items() for number in range(many)]
    fixed = {"few": 1.0, "some": 0.6, "many": 0.2}
    constant = np.array([fixed[task] for task in tasks])
    rng = np.random.default_rng(3)
    for values in (rng.random(len(tasks)) ** 0.1, rng.integers(0, 2, len(tasks)) * 1.0, constant):
        mean, low, high = share(values, groups, tasks=tasks)
        assert mean == pytest.approx(np.mean([np.mean(values[np.array(tasks) == task]) for task in sizes]))
        assert 0 <= low < mean < high <= 1 or values is constant
    assert share(constant, groups, tasks=tasks) == pytest.approx((0.6, 0.6, 0.6)), "tasks differ, and nothing varies"
    assert paired(constant, np.zeros(len(tasks)), groups, tasks=tasks) == pytest.approx((0.6, 0.6, 0.6))


def test_a_task_of_few_sources_has_no_interval_to_give() -> None:
    """Six needles of six kinds, one missed: drawing them again would never draw another needle of a kind."""
    tasks = [f"kind{n}" for n in range(6)]
    mean, low, high = share([1, 1, 1, 1, 1, 0.5], tasks, tasks=tasks)
    assert mean == pytest.approx(5.5 / 6)
    assert np.isnan([low, high]).all()
    assert np.isnan(paired([1, 1, 1, 1, 1, 0], [1] * 6, tasks, tasks=tasks)[1:]).all()
    many = [f"{kind}-{n}" for kind in tasks for n in range(6)]
    some = np.random.default_rng(5).random(36)
    assert not np.isnan(share(some, many, tasks=np.repeat(tasks, 6).tolist())).any()
    assert np.isnan(share(some, many, tasks=[*np.repeat(tasks, 6)[:-1], "rare"])[1:]).all()


def test_groups_that_differ_are_counted() -> None:
    groups = ["a", "a", "b", "b", "c", "d"]
    assert differing([1, 0, 1, 1, 0.5, 0], [0, 1, 1, 0, 0.5, 1], groups) == 2  # a's cancel out
    assert differing([0.1 + 0.2], [0.3], ["a"]) == 0
    assert differing([], [], []) == 0


def test_a_single_task_is_no_task() -> None:
    rng = np.random.default_rng(4)
    groups = [f"g{n // 3}" for n in range(30)]
    alone = [str(n) for n in range(30)]
    hits = rng.integers(0, 2, 30) * 1.0
    for values, names in ((rng.random(30), groups), (hits, groups), (hits, alone), (np.ones(30), groups)):
        assert share(values, names, tasks=["qa"] * 30) == share(values, names)
        assert paired(values, hits, names, tasks=["qa"] * 30) == paired(values, hits, names)
    assert share(hits, alone)[1:] != share(hits, alone, tasks=["a", "b"] * 15)[1:], "Wilson's is of one share"
    with pytest.raises(ValueError, match="and one task"):
        share([1, 0], ["a", "b"], tasks=["qa"])


def test_of_nothing_there_is_no_mean() -> None:
    assert np.isnan(share([], [])).all()
    assert np.isnan(paired([], [], [])).all()
