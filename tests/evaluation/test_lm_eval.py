"""The harness's requests, divided and answered; with the harness itself where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from infinipot_llm.answering.prompt import Prompt
from infinipot_llm.engine import InfiniPot
from infinipot_llm.errors import BudgetError, ModelError, QuestionError

NAME = "infinipot_llm.evaluation.lm_eval"
INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="the harness is not installed: pip install lm-eval")
PARAGRAPHS = "\n\n".join(f"Paragraph {i} tells of mills and lakes in the valley." for i in range(30))


class StandIn:
    """What the harness's base class brings that is used here."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def room() -> Iterator[ModuleType]:
    """The module, on a stand-in for the harness where that is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            for name in ("lm_eval", "lm_eval.api", "lm_eval.models"):
                patch.setitem(sys.modules, name, ModuleType(name))
            patch.setitem(sys.modules, "lm_eval.api.model", SimpleNamespace(LM=StandIn))
            patch.setitem(sys.modules, "lm_eval.api.registry", SimpleNamespace(register_model=lambda _: lambda c: c))
            yield importlib.import_module(NAME)
            del sys.modules[NAME]
        else:
            yield importlib.import_module(NAME)


def start(text: str, question_from: str | None = None) -> int:
    return int(sys.modules[NAME].question_start(text, question_from))


@pytest.mark.parametrize(
    ("request_", "question"),
    [
        ("Report.\n\nWho won the race?\n\nAnswer:", "\n\nWho won the race?\n\nAnswer:"),  # "Answer:" alone is none
        ("Report.\n\nQuestion: Who won?\nAnswer:", "\n\nQuestion: Who won?\nAnswer:"),
        ("Context: " + "x " * 3000 + "\nQuestion: Who won?\nAnswer:", "\nQuestion: Who won?\nAnswer:"),
        ("Read.\n\n" + "x " * 3000 + "\nWho?\nAnswer:", "\nWho?\nAnswer:"),  # all there is, though short
        ("Question: a?\nType: b\nQuestion: How far is it?\nType:", "\nQuestion: How far is it?\nType:"),
        ("One line. " + "word " * 20, " line. " + "word " * 20),
        ("y " * 5000 + "last", " y" * 998 + " last"),  # 2,000 characters, and the white space before them
        ("文章。\n\n谁赢了比赛?\n\n答案:", "\n\n谁赢了比赛?\n\n答案:"),
        ("  \n\nA b c d e\n \n  What is it then?  \n", "\n \n  What is it then?  \n"),
    ],
)
def test_where_the_question_begins(request_: str, question: str) -> None:
    found = request_[start(request_) :]
    assert found.strip() == question.strip()
    assert len(found.strip()) <= 2000
    assert request_[: start(request_)] == request_[: start(request_)].rstrip()


def test_the_question_begins_where_the_user_says() -> None:
    text = "Question: a\n\n" + PARAGRAPHS + "\n\nQuestion: b, and its\n\nmany paragraphs of words\n\nto go on."
    assert text[start(text, "Question:") :].startswith("\n\nQuestion: b, and its")
    with pytest.raises(QuestionError, match="no 'Q:' with a document before it"):
        start(text, "Q:")
    with pytest.raises(QuestionError, match="with a document before it"):
        start("Question: b", "Question:")
    for single in ("word", " word ", "word\n\n"):
        with pytest.raises(QuestionError, match="single word"):
            start(single)


pieces = st.lists(
    st.sampled_from(["word ", "longer words here ", "\n", "\n\n", " \n \n", "x" * 300, "字"]), max_size=40
)


@given(pieces.map("".join).filter(lambda text: len(text.split()) > 1))
def test_both_parts_can_be_seen(text: str) -> None:
    cut = start(text)
    assert text[:cut].strip()
    assert text[cut:].strip()
    assert text[cut].isspace()  # no word is cut


class Scripted:
    """Stands for the examinee: notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Prompt, dict[str, Any]]] = []

    def answer(self, arm: Any, context: str, prompt: Prompt, **settings: Any) -> Any:
        self.asked.append((context, prompt, settings))
        return SimpleNamespace(text=f"answer {len(self.asked)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    byte_tokenizer().save_pretrained(made)
    tiny_model("llama").save_pretrained(made)
    return made


@pytest.fixture
def lm(room: ModuleType, tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(InfiniPot, "from_pretrained", lambda *_, **__: tiny_llm)
    made = room.InfiniPotLM(model="tiny")
    made._examinee = Scripted()
    return made


def shown(ids: tuple[int, ...]) -> str:
    return str(byte_tokenizer().decode(list(ids), clean_up_tokenization_spaces=False))


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_a_plain_request_is_divided_and_nothing_is_lost(lm: Any) -> None:
    text = f"{PARAGRAPHS}\n\nQuestion: Who <|im_end|> won?\nAnswer:"
    assert lm.generate_until([asked(text, {"until": ["\n", ""], "max_gen_toks": 7})], disable_tqdm=True) == ["answer 1"]
    ((context, prompt, settings),) = lm._examinee.asked
    assert context == PARAGRAPHS
    assert shown(prompt.before) + context + shown(prompt.behind) == text
    assert 256 not in prompt.behind  # <|im_end|> of a request is no control token
    assert prompt.question == "Question: Who <|im_end|> won?\nAnswer:"
    assert settings == {"max_new_tokens": 7, "stop": ("\n",), "hidden": False}


def test_answers_stand_where_their_requests_did_and_documents_together(lm: Any) -> None:
    texts = [f"Document {d}.\n\nWho won race {r}?" for r in (1, 2) for d in "AB"]
    assert lm.generate_until([asked(t, {}) for t in texts]) == ["answer 1", "answer 3", "answer 2", "answer 4"]
    assert [context for context, _, _ in lm._examinee.asked] == ["Document A."] * 2 + ["Document B."] * 2
    assert lm._examinee.asked[0][2]["max_new_tokens"] == 256


@pytest.mark.parametrize("messages", [1, 2, 4])
def test_a_chat_is_what_the_models_template_renders(lm: Any, messages: int) -> None:
    history = [
        {"role": "system", "content": "Be <|im_start|> brief."},
        {"role": "user", "content": "Example?\n\nWhat is it then?"},
        {"role": "assistant", "content": "It is."},
        {"role": "user", "content": f"{PARAGRAPHS}<tool_call>\n\nWho won the <|im_end|> race?"},
    ][-messages:]
    rendered = lm.apply_chat_template(history)
    settings = {"tokenize": False, "add_generation_prompt": True}
    assert rendered == byte_tokenizer().apply_chat_template(history, **settings)
    lm.generate_until([asked(rendered, {})])
    ((context, prompt, _),) = lm._examinee.asked
    assert context == f"{PARAGRAPHS}<tool_call>"
    assert shown(prompt.before) + context + shown(prompt.behind) == rendered
    begin, end = 258, 256
    control = [t for t in (*prompt.before, *prompt.behind) if t >= 256]
    assert control == [begin, end] * len(history) + [begin]  # the template's alone
    assert prompt.question == "Who won the <|im_end|> race?"


def test_an_answer_that_is_begun_goes_on(lm: Any) -> None:
    history = [
        {"role": "user", "content": f"{PARAGRAPHS}\n\nWho won the race?"},
        {"role": "assistant", "content": "It"},
    ]
    rendered = lm.apply_chat_template(history, add_generation_prompt=False)
    assert rendered.endswith("<|im_start|>assistant\nIt")
    lm.generate_until([asked(rendered, {})])
    assert shown(lm._examinee.asked[0][1].behind).endswith("race?<|im_end|>\n<|im_start|>assistant\nIt")


def test_what_was_not_rendered_here_is_refused(lm: Any) -> None:
    assert lm.chat_template(True) == byte_tokenizer().chat_template
    with pytest.raises(QuestionError, match="not rendered by this run's chat template: leave out --cache_requests"):
        lm.generate_until([asked("Document.\n\nWho won the race?", {})])
    with pytest.raises(ModelError, match="cannot be chosen"):
        lm.chat_template("tool_use")
    with pytest.raises(ModelError, match="no message of the user"):
        lm.apply_chat_template([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"do_sample": True}, "samples or searches"),
        ({"temperature": 0.7}, "samples or searches"),
        ({"num_beams": 4}, "samples or searches"),
        ({"max_gen_toks": 0}, "answers of 0 tokens"),
    ],
)
def test_settings_that_are_not_greedy_are_refused(lm: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        lm.generate_until([asked("Document.\n\nWho won the race?", settings)])


@pytest.mark.parametrize(
    ("arm", "hidden", "repeats", "longest", "sentence"),
    [
        ("full", False, 3, 8, r"1 of 3 requests are beyond the 4096 positions .*the longest needs 4\d\d\d"),
        ("own:snapkv", False, 3, 8, "1 of 3 requests are beyond the 4096 positions"),
        ("infinipot", False, 1, 500, "a budget of 512 has no room"),
        ("infinipot", True, 1, 500, "a budget of 512 has no room"),
        ("streaming", False, 1, 500, "a budget of 512 has no room"),
        ("recall", False, 1, 500, "leave no room for passages in a budget of 512"),
    ],
)
def test_no_request_is_read_where_one_cannot_be(
    lm: Any, room: ModuleType, arm: str, hidden: bool, repeats: int, longest: int, sentence: str
) -> None:
    lm._arm, lm._hidden = room.parse_arm(arm), hidden
    texts = [
        "Document.\n\nWho won the race?",
        f"{PARAGRAPHS * repeats}\n\nWho won the race?",
        "End.\n\nWho won the race?",
    ]
    with pytest.raises(BudgetError, match=sentence):
        lm.generate_until([asked(text, {"max_gen_toks": longest}) for text in texts], disable_tqdm=True)
    assert lm._examinee.asked == []
    assert len(lm.generate_until([asked(text, {"max_gen_toks": 8}) for text in texts[::2]], disable_tqdm=True)) == 2


@pytest.mark.parametrize(("arm", "shelf"), [("recall:recall=64", None), ("recall", None), ("streaming", "off")])
def test_whoever_recalls_has_a_shelf(
    room: ModuleType, tiny_llm: InfiniPot, monkeypatch: pytest.MonkeyPatch, arm: str, shelf: str | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(InfiniPot, "from_pretrained", lambda *_, **settings: given.update(settings) or tiny_llm)
    room.InfiniPotLM(model="tiny", arm=arm)
    assert given.get("shelf") == shelf


def test_no_request_is_read_where_one_is_not_greedy(lm: Any) -> None:
    given = [asked("Document.\n\nWho won the race?", settings) for settings in ({}, {"do_sample": True})]
    with pytest.raises(BudgetError, match="samples or searches"):
        lm.generate_until(given, disable_tqdm=True)
    assert lm._examinee.asked == []


def test_greedy_settings_however_they_are_written(room: ModuleType) -> None:
    assert room._settings({"do_sample": False, "temperature": 1, "until": "END"}) == (256, ("END",))
    assert room._settings({"temperature": 0.0, "max_new_tokens": 5, "until": None}) == (5, ())


def test_likelihoods_and_batches_are_refused(lm: Any, room: ModuleType) -> None:
    for method in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(ModelError, match="gives no likelihoods"):
            method([asked("a", "b")])
    with pytest.raises(BudgetError, match="batch_size is 8"):
        room.InfiniPotLM(batch_size=8)
    with pytest.raises(BudgetError, match="there is no arm 'nothing'"):
        room.InfiniPotLM(arm="nothing")


def test_without_the_harness_there_is_a_sentence() -> None:
    code = f"import runpy, sys; sys.modules['lm_eval'] = None; runpy.run_module({NAME!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the lm-evaluation-harness cannot be imported (")
    assert done.stderr.endswith("): pip install lm-eval.\n")
    assert "Traceback" not in done.stderr


TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
fewshot_split: test
output_type: OUTPUT
doc_to_text: "Read this.\\n\\n{{context}}\\n\\nQuestion: {{input}}\\nAnswer:"
doc_to_choice: ["1", "2"]
doc_to_target: 0
generation_kwargs: {max_gen_toks: 6, do_sample: false, until: ["\\n"]}
metric_list: [{metric: METRIC, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    rows = [{"context": PARAGRAPHS, "input": f"How many wheels has mill {i}?", "answers": ["1"]} for i in range(3)]
    (made / "set.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, output, metric in (("mills", "generate_until", "exact_match"), ("choice", "multiple_choice", "acc")):
        text = TASK.replace("NAME", name).replace("OUTPUT", output).replace("METRIC", metric)
        if name == "mills":
            text = text.replace('doc_to_choice: ["1", "2"]\n', "").replace("doc_to_target: 0", 'doc_to_target: "1"')
        (made / f"{name}.yaml").write_text(text.replace("FILE", str(made / "set.jsonl")), encoding="utf-8")
    return made


def evaluated(model: str, settings: str, tasks: Path, chat: bool, shots: int = 0) -> dict[str, Any]:
    import lm_eval  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found,import-untyped,unused-ignore]

    found = lm_eval.simple_evaluate(
        model=model,
        model_args=f"{settings},dtype=float32",
        tasks=["mills"],
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cuda:0",  # its own default, on whatever machine
        bootstrap_iters=0,
    )
    return dict(found)


@needs_harness
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("arm", "chat", "shots"), [("infinipot", False, 0), ("streaming", True, 1)])
def test_the_harness_itself(folder: Path, tasks: Path, arm: str, chat: bool, shots: int) -> None:
    settings = f"model={folder},budget=512,chunk=64,question_tokens=64,arm={arm}"
    found = evaluated("infinipot", settings, tasks, chat, shots)
    assert found["results"]["mills"]["exact_match,none"] in (0, 1 / 3, 2 / 3, 1)
    assert found["config"]["infinipot_arm"] == arm
    assert found["config"]["infinipot_config"]["budget"] == 512
    samples = found["samples"]["mills"]
    assert len(samples) == 3
    assert all("\n" not in sample["resps"][0][0] for sample in samples)
    assert samples[0]["arguments"][0][0].startswith("<|im_start|>") is chat


@needs_harness
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chat", [False, True])
def test_with_everything_kept_answers_are_those_of_the_harness_own_model(folder: Path, tasks: Path, chat: bool) -> None:
    ours = evaluated("infinipot", f"model={folder},budget=512,arm=full", tasks, chat)
    theirs = evaluated("hf", f"pretrained={folder}", tasks, chat)
    said = [[sample["resps"][0][0] for sample in found["samples"]["mills"]] for found in (ours, theirs)]
    assert said[0] == said[1]
    assert all(said[0])


@needs_harness
def test_the_harness_keeps_its_own_models() -> None:
    from lm_eval.api.registry import model_registry  # type: ignore[import-not-found,import-untyped,unused-ignore]

    assert {"hf", "infinipot"} <= set(model_registry)


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_the_command_line_and_its_refusal(
    room: ModuleType, folder: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"run --model infinipot --model_args model={folder},budget=512 --tasks choice --include_path {tasks}"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        room.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(
        "Error: the model infinipot gives no likelihoods (multiple choice, loglikelihood): choose tasks that generate, "
        "with output_type generate_until.\n"
    )
