"""Memories on the command line: what was read is found again, saved, checked, talked about, and listed."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from test_cli import Run
from test_cli import model_folder as model_folder
from test_cli import papers as papers
from test_cli import run as run

ASKED = ("--max-new-tokens", 8, "--budget", 400)


def test_the_second_question_reads_nothing(run: Run, model_folder: Path, papers: Path) -> None:
    first = run("ask", papers / "good.txt", "When?", "--model", model_folder, *ASKED)
    again = run("ask", papers / "good.txt", "When?", "--model", model_folder, *ASKED)
    assert first[0] == again[0] == 0
    assert first[1] == again[1]
    assert "reading 780 tokens; the shelf will take" in first[2]
    assert "remembered in" in first[2]
    assert "nothing is read again" in again[2]
    fresh = run("ask", papers / "good.txt", "When?", "--model", model_folder, "--fresh", *ASKED)
    assert "nothing is read again" not in fresh[2]
    assert fresh[1] == first[1]
    other = run("ask", papers / "good.txt", "When?", "--model", model_folder, "--max-new-tokens", 8, "--budget", 380)
    assert "reading 780 tokens" in other[2], "another budget is another memory"


def test_no_store_keeps_nothing(run: Run, model_folder: Path, papers: Path) -> None:
    assert run("ask", papers / "good.txt", "When?", "--model", model_folder, "--no-store", *ASKED)[0] == 0
    assert json.loads(run("store", "list", "--json")[1])["memories"] == []


def test_store_list_rm_clear(run: Run, model_folder: Path, papers: Path) -> None:
    assert "0 memories" in run("store", "list")[1]
    for question, budget in (("When?", 400), ("Who?", 400), ("When?", 380)):
        run("ask", papers / "good.txt", question, "--model", model_folder, "--max-new-tokens", 8, "--budget", budget)
    rows = json.loads(run("store", "list", "--json")[1])["memories"]
    assert [r["documents"] for r in rows] == [["good.txt"]] * 2
    assert "good.txt" in run("store", "list")[1]
    assert run("store", "rm", "nonsense")[0] == 2
    assert run("store", "rm", rows[0]["key"][:12])[0] == 0
    assert len(json.loads(run("store", "list", "--json")[1])["memories"]) == 1
    assert run("store", "clear")[1] == "removed 1 memories\n"


def test_read_info_verify_ask_and_chat_on_a_saved_memory(
    run: Run,
    model_folder: Path,
    papers: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = tmp_path_factory.mktemp("saved") / "good.infinipot"
    code, out, _ = run("read", papers / "good.txt", "-o", saved, "--model", model_folder, "--budget", 600)
    assert code == 0
    assert "780 tokens read" in out
    assert run("read", papers / "good.txt", "-o", saved, "--model", model_folder)[0] == 2, "it is there already"
    assert "whole" in run("verify", saved)[1]
    told = json.loads(run("info", saved, "--json")[1])
    assert told["documents"][0]["name"] == "good.txt"
    assert told["stats"]["tokens_read"] == 780
    assert "good.txt: 1 pages" in run("info", saved)[1]
    direct = run("ask", papers / "good.txt", "When?", "--model", model_folder, "--budget", 600, "--json")
    loaded = run("ask", saved, "When?", "--json")
    assert loaded[0] == 0
    assert json.loads(loaded[1])["text"] == json.loads(direct[1])["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("When?\n\nWho?\n"))
    code, out, _ = run("chat", saved)
    assert code == 0
    assert out.count("check it yourself") + out.count("page 1") >= 2, "an answer to each question"

    for option in (("--budget", 700), ("--shelf", "int8"), ("--fresh",), ("--novelty-share", 0.1)):
        code, out, err = run("ask", saved, "When?", *option)
        assert (code, out) == (2, "")
        assert f"read with settings of its own: leave {option[0]} out" in err

    whole = bytearray(saved.read_bytes())
    whole[len(whole) // 2] ^= 1
    saved.write_bytes(whole)
    for command in (("verify", saved), ("info", saved), ("ask", saved, "When?")):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert "damaged" in err
        assert err.count("\n") == 1


def test_info_on_a_strangers_memory_is_a_sentence(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    from infinipot_llm.memory.file import Draft

    folder = tmp_path_factory.mktemp("stranger")
    whole = {
        "model": "a\x1b[31mb", "family": "\x07", "made_by": "x", "config": {}, "layout": None, "fingerprints": {},
        "stats": {"tokens_read": 3, "cycles": 0},
    }  # fmt: skip
    documents = b'[{"name": "n\\u001b[2J", "pages": [], "text": "t"}]'
    for number, (about, text) in enumerate(
        [
            (whole, documents),
            ({}, documents),
            (whole, b"[1]"),
            ({**whole, "stats": []}, documents),
            (whole, b"[" * 9999),
        ]
    ):
        path = folder / f"{number}.infinipot"
        draft = Draft(path)
        draft.add("documents", np.frombuffer(text, np.uint8))
        draft.finish(about)
        code, out, err = run("info", path)
        assert (code == 0) == (number == 0)
        assert err.count("\n") == bool(code)
        assert not set("\x1b\x07") & set(out + err)


def test_what_comes_through_a_pipe_is_read_from_its_beginning(
    run: Run, model_folder: Path, papers: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = (papers / "good.txt").read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(text))
    writer.start()
    code, _, err = run("ask", pipe, "When?", "--model", model_folder, *ASKED)
    writer.join()
    assert code == 0
    assert "reading 780 tokens" in err


def test_reading_is_refused_where_its_result_could_not_be_written(run: Run, papers: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("One.")
    code, _, err = run("read", book, "-o", book, "--force")
    assert code == 2
    assert "is what is to be read" in err
    assert book.read_text() == "One."
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "nothing can be written" in run("read", book, "-o", tmp_path / "closed" / "x.infinipot")[2]


def test_recall_that_the_budget_lowers_is_told(run: Run, model_folder: Path, papers: Path) -> None:
    asked = ("ask", papers / "good.txt", "When?", "--model", model_folder, *ASKED)
    assert "tokens are recalled" in run(*asked, "--recall", 700)[1]
    assert "tokens are recalled" not in run(*asked, "--recall", 50)[1]


def test_questions_that_are_no_text_are_a_sentence(run: Run, papers: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe")
    given = ("--document", papers / "good.txt", "--questions", tmp_path / "q.jsonl")
    code, _, err = run("calibrate", "smollm2-135m", *given)
    assert code == 2
    assert "not UTF-8" in err


def test_read_uses_what_the_store_remembers(
    run: Run, model_folder: Path, papers: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given = ("--model", model_folder, "--budget", 600)
    assert run("ask", papers / "good.txt", "When?", *given, "--max-new-tokens", 5)[0] == 0
    output = tmp_path_factory.mktemp("saved") / "x.infinipot"
    code, _, err = run("read", papers / "good.txt", "-o", output, *given)
    assert (code, "nothing is read again" in err) == (0, True)
    assert run("ask", output, "When?", "--model", model_folder, "--max-new-tokens", 5)[0] == 0
    code, _, err = run("read", output, "-o", output.with_name("y.infinipot"), *given)
    assert (code, "needs no reading" in err) == (2, True)


def test_the_limit_of_an_answer_is_no_reason_to_read_again(run: Run, model_folder: Path, papers: Path) -> None:
    asked = ("ask", papers / "good.txt", "When did it burn?", "--model", model_folder)
    assert run(*asked)[0] == 0
    code, _, err = run(*asked, "--max-new-tokens", 7)
    assert (code, "nothing is read again" in err) == (0, True)
