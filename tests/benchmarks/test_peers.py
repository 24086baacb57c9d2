"""kvpress as an arm: what it is asked, and what becomes of its answers; with kvpress itself where it is there."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from click.testing import CliRunner
from conftest import byte_tokenizer, tiny_model
from transformers import PreTrainedModel

from infinipot_llm import InfiniPot
from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.cli import cli
from infinipot_llm.cli.bench import bench
from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.evaluation.arms import Examinee, parse_arm
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.runs import run
from infinipot_llm.pot.policies.expected_attention import EPSILON

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import peers
from kvpress_arms import LOOKS, Kvpress, Peer, PeerRows, make_environment, peer_arm

CONTEXT = "The mill at Tarn was sold in 1871. " * 40

FAKE = """
import json, pathlib, sys
log = pathlib.Path(sys.argv[1])
if sys.argv[2:] == ["unloadable"]:
    print(json.dumps({"error": "OSError: no weights"}))
    sys.exit(1)
print(json.dumps({"presses": ["none"], "kvpress": "0.1", "transformers": "0.2", "torch": "0.3"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    with log.open("a") as file:
        file.write(line)
    if request["press"] == "dies":
        sys.exit("killed: out of memory.")
    if request["press"] == "full":
        print(json.dumps({"error": "RuntimeError: can't allocate memory", "out_of_memory": True}), flush=True)
        continue
    if request["press"] == "cannot":
        print(json.dumps({"error": "AssertionError: too short"}), flush=True)
        continue
    kept = request["keep"] + (len(request["behind"][0]) - 1 if request["known"] else 0)
    said = [40, 83, 220, 86, 64, 82, 13, 198, 16, 23, 22, 16, 256][: request["max_new_tokens"]]
    print(json.dumps({
        "answers": [{"ids": said, "ended": said[-1] == 256, "seconds": 0.5}],
        "read_tokens": 0, "compressed": True, "kept": [kept + 20.5, kept - 20.5], "held": [kept, kept],
        "read_seconds": 2.0, "memory_bytes": 3,
    }), flush=True)
"""
"""Says "It was.", a line break and 1871, whatever it is asked."""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Kvpress]]:
    """Starts a process that speaks the protocol and writes down what it is asked."""
    (tmp_path / "fake.py").write_text(FAKE)
    started = []

    def start(*how: str) -> Kvpress:
        started.append(Kvpress([sys.executable, str(tmp_path / "fake.py"), str(tmp_path / "log"), *how]))
        return started[-1]

    yield start
    for kvpress in started:
        kvpress.close()


def requests(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def prompt_of(llm: InfiniPot, question: str) -> Prompt:
    asked = tuple(llm.form.question(question))
    return Prompt(llm.form.prefix, asked, asked, question)


@pytest.mark.parametrize("hidden", [False, True])
def test_it_is_asked_what_our_arms_are_asked(
    tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path, hidden: bool
) -> None:
    prompt = prompt_of(tiny_llm, "When was the mill sold?")
    # Of bytes for tokens, generic questions are longer than what is reserved: they would cost the pot some slots.
    policy = parse_arm("streaming" if hidden else "infinipot")
    ours = Examinee(tiny_llm).answer(policy, CONTEXT, prompt, max_new_tokens=16, hidden=hidden)
    peer = Peer(fake(), tiny_llm.form, tiny_llm.config)
    arm = peer_arm("snapkv", hidden=hidden)
    outcome = peer.answer(arm, CONTEXT, prompt, max_new_tokens=16, hidden=hidden)

    (request,) = requests(tmp_path)
    assert arm.name == ("kvpress:snapkv" if hidden else "kvpress:snapkv+question")
    assert request["press"] == "snapkv"
    assert request["known"] is not hidden
    assert tiny_llm.form.codec.decode(request["context"]) == CONTEXT
    assert len(request["context"]) == ours.context_tokens == outcome.context_tokens
    assert (request["before"], request["behind"]) == (list(prompt.before), [list(prompt.behind)])
    assert ours.cycles > 0  # the budget is full
    assert request["keep"] == ours.slots == outcome.slots
    on_top = 0 if hidden else len(prompt.behind) - 1
    assert peer.measured["kept"] == [request["keep"] + on_top + 20.5, request["keep"] + on_top - 20.5]
    assert outcome.text == "It was.\n1871"
    assert peer.answer(arm, CONTEXT, prompt, max_new_tokens=8, hidden=hidden).text == "It was.\n"  # as our arms have it


def test_presses_that_look_at_no_question_are_never_told_it(
    tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path
) -> None:
    peer, prompt = Peer(fake(), tiny_llm.form, tiny_llm.config), prompt_of(tiny_llm, "When?")
    for press in peers.PRESSES:
        arm = peer_arm(press, hidden=False)
        peer.answer(arm, CONTEXT, prompt, max_new_tokens=4)
        assert ("+question" in arm.name) is arm.wants_question is (press in LOOKS)
    assert [(r["press"], r["known"]) for r in requests(tmp_path)] == [(p, p in LOOKS) for p in peers.PRESSES]


def test_presses_look_at_what_our_arms_look_at(
    tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path
) -> None:
    """And judge by the same numbers."""
    peer, prompt = Peer(fake(), tiny_llm.form, tiny_llm.config), prompt_of(tiny_llm, "When?")
    for press in ("snapkv", "tova", "expected-attention", "streaming", "keydiff"):
        peer.answer(peer_arm(press, hidden=False), CONTEXT, prompt, max_new_tokens=4)
        assert requests(tmp_path)[-1]["known"] is parse_arm(f"own:{press}").wants_question, press
    library = MagicMock()
    with patch.dict(sys.modules, {"kvpress": library}), patch.dict(os.environ):
        worker = importlib.import_module("kvpress_worker")
        del sys.modules["kvpress_worker"]
    for press in ("expected-attention", "ada-expected-attention"):
        worker.PRESSES[press]()
        library.ExpectedAttentionPress.assert_called_once_with(epsilon=EPSILON)
        library.reset_mock()


def test_answers_are_cut_as_ours_are(tiny_llm: InfiniPot, fake: Callable[..., Kvpress]) -> None:
    peer, prompt = Peer(fake(), tiny_llm.form, tiny_llm.config), prompt_of(tiny_llm, "When?")

    def say(limit: int, *stop: str) -> tuple[str, str]:
        outcome = peer.answer(peer_arm("tova", hidden=True), CONTEXT, prompt, max_new_tokens=limit, stop=stop)
        return outcome.text, outcome.finish_reason

    assert say(40) == ("It was.\n1871", "stop")
    assert say(12) == ("It was.\n1871", "length")
    assert say(12, "\n") == ("It was.", "stop")


def test_a_number_of_slots_can_be_asked_for(tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path) -> None:
    peer = Peer(fake(), tiny_llm.form, tiny_llm.config, keep=77)
    arm = peer_arm("tova", hidden=True, keep=77)
    outcome = peer.answer(arm, CONTEXT, prompt_of(tiny_llm, "When?"), max_new_tokens=4)
    assert (arm.name, outcome.slots) == ("kvpress:tova@77", 77)
    assert [(r["press"], r["keep"]) for r in requests(tmp_path)] == [("tova", 77)]


def test_no_room_beside_the_question_is_a_sentence(tiny_llm: InfiniPot, fake: Callable[..., Kvpress]) -> None:
    peer = Peer(fake(), tiny_llm.form, tiny_llm.config)
    with pytest.raises(BudgetError, match="512 leaves nothing"):
        peer.answer(peer_arm("tova", hidden=True), "x", prompt_of(tiny_llm, "When?"), max_new_tokens=500)


def test_rows_are_those_of_our_arms_and_say_what_was_measured(
    tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path
) -> None:
    cases = [Case(f"c{i}", CONTEXT, f"When, {i}?", ("1871",), "qa", "g") for i in range(2)]
    settings = {"model": "tiny", "dtype": "float32", "budget": 512}
    peer = Peer(fake(), tiny_llm.form, tiny_llm.config)
    with PeerRows(tmp_path / "rows.jsonl", peer) as rows:

        def ask(examinee: Any, *arms: Any) -> list[dict[str, Any]]:
            return run(
                examinee, cases, arms, rows, settings=settings, hidden=True,
                prompt_for=lambda case: prompt_of(tiny_llm, case.question),
                score=lambda case, answer: float(case.references[0] in answer), max_new_tokens=lambda case: 16,
            )  # fmt: skip

        arms = [peer_arm("cannot", hidden=True), peer_arm("tova", hidden=True)]
        theirs = ask(peer, *arms)
        ours = ask(Examinee(tiny_llm), parse_arm("streaming"))
        assert ask(peer, *arms) == theirs
    assert len(requests(tmp_path)) == 4  # the second time, nothing was left to ask
    assert [row["refused"] for row in theirs[:2]] == ["kvpress: AssertionError: too short."] * 2
    assert theirs[2]["score"] == 1.0
    assert theirs[2]["slots"] == ours[0]["slots"]
    assert theirs[2]["memory_bytes"] == 3
    assert theirs[2]["versions"] == {"kvpress": "0.1", "transformers": "0.2", "torch": "0.3"}
    assert "memory_bytes" not in theirs[0]
    assert set(ours[0]) <= set(theirs[2])
    assert {name: ours[0][name] for name in ("key", "settings", "task", "group", "hidden", "model", "budget")} == {
        name: theirs[2][name] for name in ("key", "settings", "task", "group", "hidden", "model", "budget")
    }


def test_a_process_that_ends_is_a_sentence_with_its_last_words(
    tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path
) -> None:
    peer, prompt = Peer(fake(), tiny_llm.form, tiny_llm.config), prompt_of(tiny_llm, "When?")
    for _ in range(2):  # also when it is asked again
        with pytest.raises(ModelError, match=r"ended \(killed: out of memory\): make its environment"):
            peer.answer(peer_arm("dies", hidden=True), CONTEXT, prompt, max_new_tokens=4)
    with pytest.raises(ModelError, match="cannot load the model: OSError: no weights"):
        fake("unloadable")
    with pytest.raises(ModelError, match="does not start"):
        Kvpress([str(tmp_path / "nothing")])
    with pytest.raises(ModelError, match=r"ended \(ModuleNotFoundError: No module named 'kvpress'\)"):
        Kvpress.start(sys.executable, tmp_path, "cpu", "float32", 1)


def ours_and_theirs(folder: Path, command: str, arguments: list[str], kvpress: Kvpress) -> list[dict[str, Any]]:
    """Run `infinipot bench` and peers.py with the same options; return the rows."""
    same = [command, *arguments, "--dtype", "float32", "--budget", "400", "--hidden", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kvpress, "start", lambda *how: kvpress)
        CliRunner().invoke(cli, ["bench", *same, "--policies", "streaming"], catch_exceptions=False)
        done = CliRunner().invoke(peers.main, [*same, "--python", "p", "--presses", "none"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    table = (folder / f"{command}-peers.md").read_text()
    assert re.search(r"\| streaming \| not seen \|.*\n\| .* \| kvpress:none \| not seen \|", table)
    return [json.loads(line) for line in (folder / f"{command}.jsonl").read_text().splitlines()]


def test_one_table_shows_ours_and_theirs(word_model: Path, fake: Callable[..., Kvpress], tmp_path: Path) -> None:
    model = ["--model", str(word_model)]
    needle = [*model, "--lengths", "600", "--depths", "10,90", "--kinds", "number"]
    data = tmp_path / "set.jsonl"
    row = {"context": CONTEXT * 3, "input": "When was the mill sold?", "answers": ["1871"], "dataset": "hotpotqa"}
    data.write_text(json.dumps(row))
    for command, arguments, many in (("needle", needle, 2), ("qa", [str(data), *model], 1)):
        rows = ours_and_theirs(tmp_path / command, command, arguments, fake())
        ours, theirs = rows[:many], rows[many:]
        assert [row["arm"] for row in rows] == ["streaming"] * many + ["kvpress:none"] * many
        for name in ("key", "group", "slots", "model", "dtype", "budget", "context_tokens"):
            assert [row[name] for row in ours] == [row[name] for row in theirs], name
        assert not any(row["seen"] for row in rows)
    assert theirs[0]["score"] > 0


def test_what_was_measured_otherwise_is_measured_again(
    word_model: Path, fake: Callable[..., Kvpress], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared readings have no times, and another kvpress, or an edit of what asks it, may answer otherwise."""
    data = tmp_path / "set.jsonl"
    row = {"context": CONTEXT * 3, "input": "When was the mill sold?", "answers": ["1871"], "dataset": "hotpotqa"}
    data.write_text(json.dumps(row))
    same = ["qa", str(data), "--model", str(word_model), "--dtype", "float32", "--budget", "400", "--hidden"]
    same += ["--out", str(tmp_path / "out"), "--python", "p", "--presses", "none"]
    counts = []
    for more, about in (([], {}), (["--share"], {}), (["--share"], {}), ([], {"kvpress": "0.2"}), ([], {})):
        kvpress = fake()
        kvpress.about |= about
        monkeypatch.setattr(Kvpress, "start", lambda *how, kvpress=kvpress: kvpress)
        done = CliRunner().invoke(peers.main, [*same, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        counts.append(len(requests(tmp_path)))
    assert counts == [1, 2, 2, 3, 3]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"hotpotqa": "Question: {input}\n{context}\nAnswer:"}))
    for more, sentence in (
        (["--prompts", str(prompts)], "shows the question while reading"),
        (["--base", "infinipod"], "--base is 'infinipod', of which there are no rows"),
    ):
        done = CliRunner().invoke(peers.main, [*same, *more])
        assert done.exit_code == 2
        assert sentence in done.output
    assert len(requests(tmp_path)) == 3


def test_where_memory_ran_out_is_tried_again(tiny_llm: InfiniPot, fake: Callable[..., Kvpress], tmp_path: Path) -> None:
    peer = Peer(fake(), tiny_llm.form, tiny_llm.config)
    case = Case("c", CONTEXT, "When?", ("1871",), "qa", "g")
    with PeerRows(tmp_path / "rows.jsonl", peer) as rows:
        for _ in range(2):
            (row,) = run(
                peer, [case], [peer_arm("full", hidden=True)], rows, settings={}, hidden=True,
                prompt_for=lambda case: prompt_of(tiny_llm, case.question), score=lambda case, answer: 1.0,
                max_new_tokens=lambda case: 16,
            )  # fmt: skip
            assert row["refused"] == "memory ran out."
    assert len(requests(tmp_path)) == 2


@pytest.mark.parametrize("command", ["needle", "qa"])
def test_it_has_no_options_beside_those_of_infinipot_bench_and_its_own(command: str) -> None:
    theirs = {option.name for option in peers.main.commands[command].params}
    assert theirs - {option.name for option in bench.commands[command].params} == {"keep", "presses", "python", "share"}


def test_an_environment_is_made_in_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ModelError, match="is not empty"):
        make_environment(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


# --- kvpress itself, on tiny random models ---

UNKNOWN = ["random", "streaming", "tova", "keydiff", "block-keydiff", "snapkv", "ada-snapkv", "expected-attention",
           "ada-expected-attention", "kvzip"]  # fmt: skip
KNOWN = ["snapkv", "ada-snapkv", "tova", "finch"]
MASKS = {"ada-snapkv", "ada-expected-attention", "kvzip"}


def some_ids(number: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(250), k=number)


def request_of(press: str, *behind: list[int], keep: int = 211, known: bool = False, **more: Any) -> dict[str, Any]:
    values = {"press": press, "keep": keep, "known": known, "behind": list(behind), "max_new_tokens": 12, "stop": []}
    return {**values, "share": False, "before": some_ids(20, 1), "context": some_ids(600, 2), **more}


def ids_of(answer: dict[str, Any]) -> list[list[int]]:
    return [said["ids"] for said in answer["answers"]]


def greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    return [int(i) for i in out[0, len(ids) :]]


@pytest.fixture(scope="module", params=[("llama", 3), ("qwen2", 3)], ids=["llama", "qwen2"])
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kvpress, PreTrainedModel]]:
    python = os.environ.get(peers.PYTHON_VARIABLE)
    if not python:
        pytest.skip(
            f"{peers.PYTHON_VARIABLE} names no python that has kvpress (`benchmarks/peers.py env DIR` makes one)"
        )
    family, layers = request.param
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(family, num_hidden_layers=layers)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with Kvpress.start(python, folder, "cpu", "float32", 1) as kvpress:
        yield kvpress, model


def test_without_a_press_it_is_plain_greedy_decoding(real: tuple[Kvpress, PreTrainedModel]) -> None:
    kvpress, model = real
    questions = [some_ids(15, 3), some_ids(9, 4), some_ids(1, 5)]
    asked = request_of("none", *questions)
    plain = [greedy(model, [*asked["before"], *asked["context"], *q]) for q in questions]
    assert len({tuple(p) for p in plain}) > 1
    assert ids_of(kvpress.ask(asked)) == plain
    assert ids_of(kvpress.ask(request_of("none", questions[0], known=True))) == plain[:1]
    for press in UNKNOWN:  # a press that has nothing to drop
        roomy = kvpress.ask(request_of(press, *questions, keep=620))
        assert (ids_of(roomy), roomy["compressed"], roomy["kept"]) == (plain, False, roomy["held"])


def test_exactly_what_was_asked_for_is_kept(real: tuple[Kvpress, PreTrainedModel]) -> None:
    for press in UNKNOWN:
        for keep in (100, 211, 619):
            found = real[0].ask(request_of(press, some_ids(15, 3), keep=keep))
            assert found["compressed"], press
            assert sum(found["kept"]) == pytest.approx(keep * 3), press
            assert found["held"] == [620 if press in MASKS else keep] * 3, press
            assert (found["kept"] == [keep] * 3) is (press != "kvzip"), press


@pytest.mark.parametrize("known", [False, True])
def test_sharing_what_is_read_changes_no_answer(real: tuple[Kvpress, PreTrainedModel], known: bool) -> None:
    """Over more contexts than are held, and after presses that mask."""
    asked = [
        request_of(press, some_ids(70 if known else 15, 3), known=known, context=some_ids(600, seed))
        for press in (KNOWN if known else UNKNOWN)
        for seed in (2, 3, 4, 5, 6, 2)
    ]
    alone = [real[0].ask(request) for request in asked]
    for request, expected in zip(asked, alone, strict=True):
        shared = real[0].ask({**request, "share": True})
        assert ids_of(shared) == ids_of(expected), request["press"]
        assert all(shared[name] == expected[name] for name in ("kept", "held", "compressed", "read_tokens"))
        assert (shared["memory_bytes"] is None) is (request["press"] != "kvzip")


def test_a_known_question_is_kept_on_top(real: tuple[Kvpress, PreTrainedModel]) -> None:
    for press in KNOWN:
        found = real[0].ask(request_of(press, some_ids(15, 3), known=True))
        assert found["read_tokens"] == 634, press
        assert found["kept"] == [211 + 14] * 3, press
    with pytest.raises(BudgetError, match="serves one question"):
        real[0].ask(request_of("snapkv", some_ids(15, 3), some_ids(9, 4), known=True))


def test_an_answer_depends_on_nothing_that_was_asked_before(real: tuple[Kvpress, PreTrainedModel]) -> None:
    kvpress, (one, two) = real[0], (some_ids(15, 3), some_ids(9, 4))
    answers = set()
    for press in UNKNOWN:
        first = kvpress.ask(request_of(press, one, two))
        kvpress.ask(request_of("ada-snapkv", two))
        kvpress.ask(request_of("finch", two, known=True))
        second = kvpress.ask(request_of(press, two, one))
        third = kvpress.ask(request_of(press, one))
        assert ids_of(second) == ids_of(first)[::-1], press
        assert ids_of(third) == ids_of(first)[:1], press
        assert first["read_seconds"] > 0
        assert second["read_seconds"] > 0
        assert third["read_seconds"] == 0  # from what is still there
        answers.add(str(ids_of(first)))
    assert len(answers) > 5  # presses differ


@pytest.mark.parametrize("real", [("llama", 1)], ids=["one-layer"], indirect=True)  # deeper ones saw what was dropped
def test_streaming_is_the_first_and_the_last_tokens_with_positions_of_their_own(
    real: tuple[Kvpress, PreTrainedModel],
) -> None:
    asked = request_of("streaming", some_ids(15, 3), keep=100)
    whole = [*asked["before"], *asked["context"]]
    assert ids_of(real[0].ask(asked)) == [greedy(real[1], [*whole[:4], *whole[-96:], *asked["behind"][0]])]


def test_what_cannot_be_done_is_said_and_the_next_request_is_fine(real: tuple[Kvpress, PreTrainedModel]) -> None:
    kvpress, question = real[0], some_ids(15, 3)
    plain = ids_of(kvpress.ask(request_of("none", question)))
    for asked, said in (
        (request_of("finch", question), "needs the question"),
        (request_of("nothing", question), "no press 'nothing'"),
        (request_of("snapkv", question, context=some_ids(30, 2), keep=20), "window size 64"),
        (request_of("tova", question, context=some_ids(4090, 2)), "trained on 4096"),
    ):
        with pytest.raises(BudgetError, match=said):
            kvpress.ask(asked)
        assert ids_of(kvpress.ask(request_of("none", question))) == plain


def test_answers_end_at_stop_texts_and_memory_is_measured(real: tuple[Kvpress, PreTrainedModel]) -> None:
    kvpress, question = real[0], some_ids(15, 3)
    whole = kvpress.ask(request_of("none", question))
    ids = ids_of(whole)[0]
    letter = byte_tokenizer().decode(ids[4:5])
    stopped = kvpress.ask(request_of("none", question, stop=[letter]))
    assert ids_of(stopped)[0] == ids[: next(i for i, t in enumerate(ids, 1) if byte_tokenizer().decode([t]) == letter)]
    assert whole["memory_bytes"] is None or whole["memory_bytes"] > 0
