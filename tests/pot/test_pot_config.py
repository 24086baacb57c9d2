"""PotConfig: what can never work is refused in a sentence that names the field; what is written can be read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.config import POLICIES, VERSION, PotConfig
from infinipot_llm.errors import BudgetError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", 7),
        ("budget", 4096.0),
        ("budget", True),
        ("budget", "4096"),
        ("budget", None),
        ("chunk", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("question_tokens", 0),
        ("neighbours", -1),
        ("neighbours", 1.5),
        ("sink_tokens", -1),
        ("kept", 0.0),
        ("kept", 1.0),
        ("kept", 1),
        ("kept", -0.5),
        ("kept", float("nan")),
        ("novelty_share", 1.01),
        ("agreement", -0.01),
        ("agreement", 2),
        ("agreement", float("nan")),
        ("novelty_share", -0.01),
        ("novelty_share", float("nan")),
        ("neighbour_weight", 2.0),
        ("neighbour_weight", float("inf")),
        ("catalyst_reduce", "mean"),
        ("catalysts", ()),
        ("catalysts", ("Who?", "  ")),
        ("version", VERSION + 1),
        ("version", 0),
    ],
)
def test_bad_values_are_refused_naming_the_field(field: str, value: Any) -> None:
    with pytest.raises(BudgetError, match=rf"\b{field}\b") as refused:
        PotConfig(**{field: value})
    assert str(refused.value).endswith(".")
    with pytest.raises(BudgetError, match=rf"\b{field}\b"):
        PotConfig.from_dict({**PotConfig().to_dict(), field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kept", "half"),
        ("novelty_share", "half"),
        ("agreement", "all"),
        ("kept", None),
        ("neighbour_weight", None),
        ("catalysts", "Who?"),
        ("catalysts", (1,)),
    ],
)
def test_values_of_a_wrong_type_are_refused_naming_the_field(field: str, value: Any) -> None:
    """A configuration comes from files and command lines: no bare TypeError, and no question per letter of a string."""
    with pytest.raises(BudgetError, match=rf"\b{field}\b"):
        PotConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", 8),
        ("chunk", 1),
        ("neighbours", 0),
        ("sink_tokens", 0),
        ("kept", 1e-9),
        ("kept", 0.999999),
        ("novelty_share", 0.0),
        ("agreement", None),
        ("novelty_share", 1.0),
        ("agreement", 0.0),
        ("agreement", 1.0),
        ("neighbour_weight", 0.0),
        ("neighbour_weight", 1.0),
        ("catalyst_reduce", "max"),
    ],
)
def test_values_at_the_border_are_taken(field: str, value: Any) -> None:
    assert getattr(PotConfig(**{field: value}), field) == value


CONFIGS = st.builds(
    PotConfig,
    budget=st.integers(8, 10**6),
    kept=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    novelty_share=st.floats(0.0, 1.0),
    agreement=st.none() | st.floats(0.0, 1.0),
    neighbours=st.integers(0, 50),
    neighbour_weight=st.floats(0.0, 1.0),
    sink_tokens=st.integers(0, 100),
    catalyst_reduce=st.sampled_from(["sum", "max"]),
    catalysts=st.none() | st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3).map(tuple),
    chunk=st.integers(1, 4096),
    max_new_tokens=st.integers(1, 4096),
    question_tokens=st.integers(1, 4096),
    policy=st.sampled_from(POLICIES),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(CONFIGS)
def test_round_trip_through_json(config: PotConfig) -> None:
    back = PotConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert hash(back) == hash(config)  # a list left in place of a tuple would not even hash


def test_an_unknown_field_and_another_version_are_refused() -> None:
    values = PotConfig().to_dict()
    with pytest.raises(BudgetError, match="'bugdet'"):
        PotConfig.from_dict({**values, "bugdet": 4})
    with pytest.raises(BudgetError, match=f"version {VERSION + 1}.*version {VERSION}"):
        PotConfig.from_dict({**values, "version": VERSION + 1})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        PotConfig().budget = 10  # type: ignore[misc]


def test_agreement_left_open_depends_on_whether_the_question_is_known() -> None:
    assert (PotConfig().agreed(True), PotConfig().agreed(False)) == (0.25, 0.0)
    assert PotConfig(agreement=0.1).agreed(True) == PotConfig(agreement=0.1).agreed(False) == 0.1
    assert PotConfig(agreement=0.0).agreed(True) == 0.0
