"""`infinipot ask --questions FILE`: every line is asked, in order, and answered as it is by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Run
from test_cli import model_folder as model_folder
from test_cli import papers as papers
from test_cli import run as run

from infinipot_llm.answering import compose
from infinipot_llm.cli.asking import _question
from infinipot_llm.documents.clean import printable

LINES = ["When did it burn?", "Where?", "", "  Who was there?  ", *[f"What about year {n}?" for n in range(8)]]
ASKED = [line.strip() for line in LINES if line]


@pytest.fixture
def saved(run: Run, model_folder: Path, papers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "good.infinipot"
    # bf16 rounds coarsely: what is decoded together may then differ from what is decoded alone
    assert (
        run("read", papers / "good.txt", "-o", path, "--model", model_folder, "--budget", 600, "--dtype", "float32")[0]
        == 0
    )
    return path


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_every_line_is_answered_as_by_itself(run: Run, saved: Path, listed: Path) -> None:
    limit = ("--max-new-tokens", 12)
    code, out, _ = run("ask", saved, "--questions", listed, "--json", *limit)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["question"] for one in found] == ASKED
    for one in (found[0], found[-1]):
        alone = json.loads(run("ask", saved, one["question"], "--json", *limit)[1])
        assert (one["text"], one["finish_reason"]) == (alone["text"], alone["finish_reason"])
        assert one["usage"]["answer_tokens"] <= 12


def test_text_names_question_answer_and_place(run: Run, saved: Path, listed: Path) -> None:
    code, out, _ = run("ask", saved, "--questions", listed, "--max-new-tokens", 4)
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if line in ASKED] == ASKED
    assert sum("page 1" in line or "check it yourself" in line for line in lines) >= len(ASKED)


def test_doubt_is_printed_before_the_answer_and_once(run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "DOUBTFUL", 2.0)  # every question whose passages are judged
    given = ("ask", saved, "When did it burn?", "--recall", 20, "--max-new-tokens", 4)
    code, out, _ = run(*given)
    assert code == 0
    answer = json.loads(run(*given, "--json")[1])
    assert answer["notes"][0] == compose.DOUBT
    assert out.startswith(f"{compose.DOUBT}\n\n{printable(answer['text'])}\n")
    assert out.count(compose.DOUBT) == 1
    assert all(note in out for note in answer["notes"])


def test_documents_are_read_once(run: Run, model_folder: Path, papers: Path, listed: Path) -> None:
    given = ("ask", papers / "good.txt", papers / "good.pdf", "--questions", listed)
    options = ("--model", model_folder, "--max-new-tokens", 4, "--json")
    code, out, err = run(*given, *options)
    assert (code, len(out.splitlines())) == (0, len(ASKED))
    assert "remembered" in err
    assert "read before" in run(*given, *options)[2]


def test_what_is_wrong_is_one_sentence_before_anything_is_read(
    run: Run, model_folder: Path, papers: Path, tmp_path: Path, listed: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Wer führte das Wasserwerk?".encode("latin-1"))
    for file, options, sentence in (
        ("empty.txt", (), "holds no question"),
        ("latin.txt", (), "not UTF-8"),
        ("missing.txt", (), "missing.txt cannot be read"),
        (".", (), "cannot be read"),
        (listed, ("--followup", "reuse"), "answered by recall"),
        (listed, ("--shelf", "off"), "answered by recall"),
        (listed, ("--temperature", -1), "temperature"),
    ):
        code, out, err = run("ask", papers / "good.txt", "--questions", file, "--model", model_folder, *options)
        assert (code, out) == (2, "")
        assert sentence in err
        assert "tokens read" not in err
    code, out, err = run("ask", papers / "good.txt", "When?", "--questions", listed, "--model", model_folder)
    assert (code, out) == (2, "")
    assert "When?" in err


def test_lines_of_json_and_a_mark_before_the_text(run: Run, saved: Path, tmp_path: Path) -> None:
    listed = tmp_path / "good.questions.jsonl"
    lines = [{"question": " When did it burn? ", "answers": ["1874"], "page": 1}, {"question": "Where?"}]
    listed.write_text("\n".join(map(json.dumps, lines)) + "\n42\n", encoding="utf-8-sig")
    code, out, _ = run("ask", saved, "--questions", listed, "--json", "--max-new-tokens", 4)
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["When did it burn?", "Where?", "42"]
    listed.write_text('{"answers": ["1874"]}', encoding="utf-8")
    code, _, err = run("ask", saved, "--questions", listed)
    assert code == 2
    assert 'a JSON object without "question"' in err


def test_questions_about_no_document(run: Run, listed: Path) -> None:
    code, _, err = run("ask", "--questions", listed)
    assert code == 2
    assert "name the files that the questions are about" in err


def test_only_line_ends_end_a_question() -> None:
    """A line separator within JSON's text, as JavaScript writes it, is a part of the question."""
    assert _question('{"question": "What\u2028is it?"}') == "What\u2028is it?"
    assert _question("[" * 200_000) == "[" * 200_000


def test_lines_are_split_at_line_ends_alone(run: Run, saved: Path, listed: Path) -> None:
    listed.write_text('{"question": "What\u2028is it?"}\r\nWho\x85?\n', encoding="utf-8", newline="")
    code, out, _ = run("ask", saved, "--questions", listed, "--json", "--max-new-tokens", 4)
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["What\u2028is it?", "Who\x85?"]
