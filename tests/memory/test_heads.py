"""Retrieval heads: lists that fit the model, and a sentence for those that do not."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from infinipot_llm.errors import ModelError
from infinipot_llm.memory import heads as heads_module
from infinipot_llm.memory.answerable import Judge
from infinipot_llm.memory.heads import Heads

GOOD: dict[str, Any] = {"heads": [[2, 5], [0, 1]], "weights": [1.0, 0.25], "calibrated": True}


def test_a_list_goes_there_and_back_through_json() -> None:
    heads = Heads.from_dict(GOOD, 3, 6)
    assert heads == Heads(((2, 5), (0, 1)), (1.0, 0.25), True)
    assert Heads.from_dict(json.loads(json.dumps(heads.to_dict())), 3, 6) == heads
    judged = Heads.from_dict({**GOOD, "judge": {"attention": 1, "words": 2.5, "offset": -3.0}}, 3, 6)
    assert judged.judge == Judge(1.0, 2.5, -3.0)
    assert Heads.from_dict(json.loads(json.dumps(judged.to_dict())), 3, 6) == judged


@pytest.mark.parametrize(
    "change",
    [
        {"heads": []},
        {"heads": [], "weights": []},
        {"heads": [[2, 5]]},
        {"heads": [[2, 5], [2, 5]]},
        {"heads": [[3, 5], [0, 1]]},
        {"heads": [[2, 6], [0, 1]]},
        {"heads": [[-1, 5], [0, 1]]},
        {"heads": [[2, -1], [0, 1]]},
        {"heads": [[2], [0, 1]]},
        {"heads": [2, 0]},
        {"heads": None},
        {"heads": [["a", 1], [0, 1]]},
        {"weights": [1.0, 0.0]},
        {"weights": [1.0, -1.0]},
        {"weights": [1.0, float("nan")]},
        {"weights": [1.0, float("inf")]},
        {"weights": ["much", 1.0]},
        {"weights": 3},
        {"judge": 3},
        {"judge": {}},
        {"judge": {"attention": "much", "words": 1.0, "offset": 0.0}},
        {"judge": {"attention": 1.0, "words": float("nan"), "offset": 0.0}},
        {"judge": {"attention": 1.0, "words": 1.0, "offset": float("inf")}},
    ],
)
def test_a_list_that_does_not_fit_is_refused_in_a_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"calibrate the model again\.$"):
        Heads.from_dict({**GOOD, **change}, 3, 6)


@pytest.mark.parametrize("missing", ["heads", "weights", "calibrated"])
def test_a_list_with_something_missing_is_refused(missing: str) -> None:
    with pytest.raises(ModelError, match=r"calibrate the model again\.$"):
        Heads.from_dict({name: value for name, value in GOOD.items() if name != missing}, 3, 6)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 12, 24, 28, 36, 80])
def test_the_default_is_every_head_of_some_middle_layers(layers: int) -> None:
    heads = Heads.default(layers, 6)
    chosen = sorted({layer for layer, _ in heads.heads})
    assert 1 <= len(chosen) <= 4
    assert heads.heads == tuple((layer, head) for layer in chosen for head in range(6))
    assert all(0 <= layer < layers for layer in chosen)
    if layers >= 12:
        assert len(chosen) == 4
        assert layers * 0.3 <= chosen[0] < chosen[-1] <= layers * 0.65
    assert not heads.calibrated
    assert Heads.from_dict(heads.to_dict(), layers, 6) == heads


def test_scoring_keys_are_those_that_the_heads_look_at() -> None:
    heads = Heads(((2, 5), (0, 1), (0, 2), (2, 3), (1, 3)), (1.0,) * 5, True)
    assert heads.scoring_keys(6, 2) == (0, 3, 5)  # three query heads share a key
    assert heads.scoring_keys(6, 6) == (1, 2, 9, 15, 17)
    assert heads.scoring_keys(6, 1) == (0, 1, 2)


def test_lists_that_are_shipped_can_be_read() -> None:
    shipped = [f for f in (resources.files("infinipot_llm.memory") / "heads").iterdir() if f.name.endswith(".json")]
    assert shipped
    for file in shipped:
        values = json.loads(file.read_text(encoding="utf-8"))
        layers, heads = (1 + max(h[i] for h in values["heads"]) for i in (0, 1))
        assert Heads.from_dict(values, layers, heads).calibrated


@pytest.mark.parametrize("content", ["", '{"heads": [[2, 5]', "[]", "\x00"])
def test_a_damaged_list_of_this_machine_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(heads_module, "calibrated_folder", lambda: tmp_path)
    (tmp_path / "f00.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be read: calibrate the model again"):
        Heads.known("tiny", lambda: "f00", 3, 6)
