"""The benchmark of conversations: its documents, what it counts as found, and what it reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infinipot_llm import Document, InfiniPot

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import conversations
import followup_data

DATA = Path(__file__).parents[3] / "shared" / "data"
PASSAGES = [
    f"In {1900 + i} the mill number {i} burned down, and {7 * i} crowns were paid to its owners, who built another one."
    for i in range(9)
]


def task(number: int, contexts: list[int], turns: int = 1, collection: str = "mills") -> dict[str, Any]:
    said = [
        turn
        for i in range(turns)
        for turn in ({"speaker": "user", "text": f"Which mill {i}?"}, {"speaker": "agent", "text": "That of Tarn."})
    ]
    return {
        "conversation_id": f"c{number}",
        "turn": str(turns + 1),
        "Collection": collection,
        "contexts": [{"document_id": str(i), "text": f"{PASSAGES[i]} \n"} for i in contexts],
        "input": [*said, {"speaker": "user", "text": "When did it burn?"}],
    }


def written(folder: Path, *tasks: dict[str, Any]) -> Path:
    (folder / "qa").mkdir()
    text = "\n".join(json.dumps(one) for one in tasks)
    (folder / "qa" / "mtrag.dev.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_the_passages_of_a_collection_are_one_document(tmp_path: Path) -> None:
    tasks = [task(0, [3, 5], 2), task(1, [5]), task(2, [1], collection="ships"), task(3, [2], 0), task(4, [])]
    found = conversations.load(written(tmp_path, *tasks, task(5, [0, 1, 2, 4, 6])))
    assert list(found) == ["mills", "ships"]
    text, asked = found["mills"]
    assert sorted(text.split(followup_data.BETWEEN)) == [PASSAGES[3], PASSAGES[5]]  # no first turn's, no summary's
    assert [turn.group for turn in asked] == ["c0", "c1"]
    assert asked[0].turns == (("Which mill 0?", "That of Tarn."), ("Which mill 1?", "That of Tarn."))
    assert sorted(text[a:b] for a, b in asked[0].gold) == [PASSAGES[3], PASSAGES[5]]
    assert [text[a:b] for a, b in asked[1].gold] == [PASSAGES[5]]


def test_two_questions_of_one_conversation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="two questions are of one conversation"):
        conversations.load(written(tmp_path, task(0, [3]), task(0, [5], 2)))


def test_those_of_the_real_ones_stand_where_they_are_said_to() -> None:
    if not (DATA / "qa" / "mtrag.dev.jsonl").exists():
        pytest.skip("the conversations are not here: ../shared/data/qa is absent")
    found = conversations.load(DATA)
    assert {name: len(asked) for name, (_, asked) in found.items()} == {
        "clapnq": 35, "fiqa": 25, "govt": 48, "ibmcloud": 33,
    }  # fmt: skip
    for text, asked in found.values():
        assert Document.from_text(text).text == text
        passages = set(text.split(followup_data.BETWEEN))
        for turn in asked:
            assert turn.turns
            assert turn.question
            assert all(text[a:b].split(followup_data.BETWEEN)[0] in passages for a, b in turn.gold)


def test_every_way_is_asked_once(tiny_llm: InfiniPot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args: Any = SimpleNamespace(
        data=written(tmp_path, task(0, [3]), task(1, [5, 6])), memories=tmp_path, model="m/tiny"
    )
    conversations.read(args, tiny_llm)
    monkeypatch.setattr(conversations, "BUDGETS", (40, 10_000))
    rows = list(conversations.find(args, tiny_llm, {("mills", "c0", "itself")}))
    asked = [(row["group"], row["way"]) for row in rows]
    assert asked == [("c0", "chat"), ("c0", "behind"), ("c1", "chat"), ("c1", "behind"), ("c1", "itself")]
    for row in rows:
        (few, _), (everything, part) = (row["found"][budget] for budget in (40, 10_000))
        assert not few, "a third of a sentence is not a passage"
        assert everything
        assert 0 < part < 1
    assert rows[0]["model"] == "tiny"
    assert "burn" not in str(rows), "rows hold no texts"
