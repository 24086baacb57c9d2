"""The command line as a user meets it: answers, JSON, and one sentence and exit code 2 for everything that is wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_model
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen import canvas

from infinipot_llm import cli

FACT = "The mill at Arden burned down in 1874.\n"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad documents."""
    folder = tmp_path_factory.mktemp("papers")
    (folder / "good.txt").write_text(FACT * 20, encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_text(" \n\n ", encoding="utf-8")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "fake.pdf").write_text("this is no PDF", encoding="utf-8")
    pdf = canvas.Canvas(str(folder / "good.pdf"))
    for number in range(3):
        pdf.drawString(72, 700, f"Page number {number + 1} tells of the year {1870 + number}.")
        pdf.showPage()
    pdf.save()
    whole = (folder / "good.pdf").read_bytes()
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.4\n" + bytes(reversed(whole[200:700])))
    image = canvas.Canvas(str(folder / "scan.pdf"))
    image.rect(50, 50, 300, 300, fill=1)
    image.showPage()
    image.save()
    writer = PdfWriter(clone_from=PdfReader(folder / "good.pdf"))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(folder / "locked.pdf")
    return folder


Run = Callable[..., tuple[int, str, str]]


def files(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `infinipot ARGUMENTS` in an empty folder; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFINIPOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INFINIPOT_STORE", str(tmp_path / "memories"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infinipot", *map(str, arguments)])
        before = files(tmp_path)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        new = files(tmp_path) - before
        memories = {p for p in new if p.parent.name == "memories" and p.suffix in (".infinipot", ".json")}
        assert new == (set() if code else memories), "the command left something behind"
        return code, out, err

    return call


def test_ask_answers_and_says_what_it_cost(run: Run, model_folder: Path, papers: Path) -> None:
    code, out, err = run("ask", papers / "good.txt", "When?", "--model", model_folder, "--max-new-tokens", 8)
    assert code == 0
    assert out.strip()
    assert "760 tokens read" not in err  # bytes: 20 x 39
    assert "780 tokens read" in err
    assert "0 cycles" in err
    assert "peak memory" in err


def test_ask_json(run: Run, model_folder: Path, papers: Path) -> None:
    options = ("--model", model_folder, "--max-new-tokens", 8, "--json", "--budget", 400)
    code, out, _ = run("ask", papers / "good.txt", papers / "good.pdf", "When?", *options)
    values = json.loads(out)
    assert code == 0
    assert values["usage"]["read"]["cycles"] > 0
    assert values["usage"]["read"]["slots"] <= 400
    assert values["finish_reason"] in ("stop", "length")
    assert {"text", "citations", "usage"} <= values.keys()


def test_standard_input(run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(FACT.encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    code, out, _ = run("ask", "-", "When?", "--model", model_folder, "--json", "--max-new-tokens", 4)
    assert code == 0
    assert json.loads(out)["usage"]["read"]["tokens_total"] == len(FACT)


def test_info(run: Run, model_folder: Path, papers: Path) -> None:
    wanted = ("info", papers / "good.pdf", "--model", model_folder, "--dtype", "float32")
    code, out, _ = run(*wanted, "--price-per-million", 2, "--json")
    values = json.loads(out)
    assert code == 0
    assert values["documents"][0]["pages"] == 3
    assert values["documents"][0]["empty_pages"] == []
    assert values["tokens_counted"] is True
    assert values["reading"]["full_cache_bytes"] == values["tokens"] * 2 * 3 * 2 * 16 * 4
    assert values["reading"]["pot_bytes"] == 4096 * 2 * 3 * 2 * 16 * 4 * 3 // 2
    assert values["reading"]["cycles"] == 0
    assert values["reading"]["pot_flops"] == values["reading"]["full_cache_flops"]
    assert values["hosted_cost_per_question"] == pytest.approx(values["hosted_tokens"] * 2e-6)


def test_info_without_a_model_estimates_and_says_so(run: Run, papers: Path) -> None:
    code, out, _ = run("info", papers / "good.pdf")
    assert code == 0
    assert "estimated" in out
    assert "infinipot models get qwen2.5-coder-0.5b" in out


def test_trace_shows_reasons(run: Run, model_folder: Path, papers: Path) -> None:
    question = ("-q", "When?", "--model", model_folder, "--slots", 24, "--json")
    code, out, _ = run("trace", papers / "good.txt", *question)
    cycles = json.loads(out)["cycles"]
    assert code == 0
    assert cycles[0]["tokens_read"] == 24
    assert sum(row["kept_by"] for row in cycles[0]["tokens"]) == 12 * cycles[0]["heads"]
    reasons = {reason for cycle in cycles for row in cycle["tokens"] for reason in row["why"]}
    assert {"novelty", "catalyst", "neighbour"} <= reasons


def test_models_list(run: Run) -> None:
    code, out, _ = run("models", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["qwen2.5-coder-0.5b"]["fetched"] is False


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("none.pdf", (), "none.pdf"),
        (".", (), "folder"),
        ("empty.txt", (), "empty"),
        ("blank.txt", (), "blank.txt"),
        ("scan.pdf", (), "OCR"),
        ("locked.pdf", (), "--password"),
        ("locked.pdf", ("--password", "wrong"), "password"),
        ("damaged.pdf", (), "damaged.pdf"),
        ("fake.pdf", (), "not a PDF"),
        ("binary.txt", (), "binary"),
        ("good.txt", ("--budget", 4), "budget"),
        ("good.txt", ("--budget", 70), "at least"),
        ("good.txt", ("--budget", 9000), "4096 positions"),
        ("good.txt", ("--kept", 1.5), "kept"),
        ("good.txt", ("--temperature", -1), "temperature"),
        ("good.txt", ("--device", "gpu9"), "device"),
        ("good.txt", ("--device", "cuda:7"), "cuda:7"),
        ("good.txt", ("--model", "gpt-9"), "smollm2-135m"),
        ("good.txt", ("--model", "smollm2-135m"), "infinipot models get smollm2-135m"),
        ("good.txt", ("--model", "nobody/nothing"), "infinipot models get nobody/nothing"),
        ("good.txt", ("--model", "."), "config.json"),
        ("good.txt", ("--model", "models/llama.GGUF"), "is a GGUF file"),
        ("good.txt", ("--model", "./qwen"), "there is no folder './qwen'"),
        ("good.txt", ("--model", "a/b/c"), "there is no folder 'a/b/c'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    run: Run, model_folder: Path, papers: Path, file: str, options: tuple[object, ...], says: str
) -> None:
    code, out, err = run("ask", papers / file, "When?", "--model", model_folder, "--max-new-tokens", 8, *options)
    assert code == 2
    assert out == ""
    assert err.startswith("infinipot: ")
    assert len(err.strip().splitlines()) == 1
    assert says in err


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_question(run: Run, papers: Path, question: str) -> None:
    code, out, err = run("ask", papers / "good.txt", question)
    assert (code, out) == (2, "")
    assert "question is empty" in err


def test_wrong_usage_exits_2(run: Run, papers: Path) -> None:
    assert run("ask", papers / "good.txt")[0] == 2
    assert run("sing")[0] == 2
    assert run("ask", papers / "good.txt", "When?", "--dtype", "int3")[0] == 2
    assert run("ask", papers / "good.txt", "When?", "--policy", "best")[0] == 2
    assert run("ask", papers / "good.txt", "When?", "--seed", 1)[0] == 2
    assert "the question" in run("ask", papers / "good.txt", papers / "good.pdf")[2]
    assert "in quotes" in run("ask", papers / "good.txt")[2]
    assert run("info", papers / "good.txt", "--price-per-million", -1)[0] == 2
    assert run("trace", papers / "good.txt", "-q", "x", "--slots", 8, "--budget", 64)[0] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--top-p", 0.5), "--top-p has no effect on greedy decoding"),
        (("--seed", 1), "--seed has no effect"),
        (("--shelf", "off", "--followup", "recall"), "nothing can be recalled"),
        (("--shelf", "off", "--recall", 99), "--recall has no effect"),
        (("--followup", "reuse", "--recall", 99), "--recall has no effect"),
        (("--followup", "reread", "--recall", 99), "--recall has no effect"),
        (("--questions", "list.txt"), "'When?' is no file: with --questions, name files alone"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    run: Run, papers: Path, options: tuple[object, ...], says: str
) -> None:
    code, out, err = run("ask", papers / "good.txt", "When?", *options)
    assert (code, out) == (2, "")
    assert says in err
    assert run("trace", papers / "good.txt", "-q", "x", "--shelf", "int8")[0] == 2  # it leaves nothing on disk


def test_a_folder_is_no_file_to_write(run: Run, papers: Path, tmp_path: Path) -> None:
    """Found out before the document is read for nothing."""
    code, out, err = run("read", papers / "good.txt", "-o", tmp_path, "--force")
    assert (code, out) == (2, "")
    assert "is a folder: name a file in it" in err


def test_letters_that_the_output_has_not_are_escaped(papers: Path, tmp_path: Path) -> None:
    """On Windows pipes have a code page of their own: an answer in Chinese was a traceback there."""
    (tmp_path / "中.txt").write_text("x")
    done = subprocess.run(
        [sys.executable, "-m", "infinipot_llm", "verify", "中.txt"], cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert b"\\u4e2d.txt" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_unsupported_architecture_is_refused(
    run: Run, papers: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=264)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    capsys.readouterr()
    code, out, err = run("ask", papers / "good.txt", "When?", "--model", folder)
    assert (code, out) == (2, "")
    assert "gpt2" in err
    assert len(err.strip().splitlines()) == 1


def test_incomplete_and_damaged_weights_are_refused(
    run: Run, model_folder: Path, papers: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("lacking")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code, _, err = run("ask", papers / "good.txt", "When?", "--model", folder)
    assert code == 2
    assert "layers.1.mlp.up_proj" in err
    whole = (model_folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, err = run("ask", papers / "good.txt", "When?", "--model", folder)
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_info_estimates_operations_and_refuses_what_ask_refuses(run: Run, model_folder: Path, papers: Path) -> None:
    shared = ("info", papers / "good.txt", "--model", model_folder, "--json", "--budget")
    small = json.loads(run(*shared, 640)[1])["reading"]
    whole = json.loads(run(*shared, 4096)[1])["reading"]
    assert small["cycles"] > 0
    assert small["pot_bytes"] * 4096 == whole["pot_bytes"] * 640
    assert run(*shared, 100)[0] == 2
    assert run(*shared, 9000)[0] == 2
    assert run("info", papers / "good.txt", "--model", "gpt-9")[0] == 2


def test_interrupt_while_reading_ends_cleanly(
    run: Run, model_folder: Path, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinipot_llm.pot.reader import Reader

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "read", interrupted)
    code, out, err = run("ask", papers / "good.txt", "When?", "--model", model_folder)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err


def test_no_control_characters_of_a_document_reach_the_terminal(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch, papers: Path
) -> None:
    from infinipot_llm.answering import answer as answers
    from infinipot_llm.memory.memory import DocumentMemory

    evil = "\x1b[31mred\x1b]0;title\x07 \u202eback"
    true_ask = DocumentMemory.ask

    def ask(self: DocumentMemory, question: str, **options: object) -> answers.Answer:
        said = true_ask(self, question, **{**options, "on_text": None})  # type: ignore[arg-type]
        options["on_text"](evil)  # type: ignore[operator]
        cited = answers.Citation(evil, 1, evil, 0, 1, evil, 1.0)
        return answers.Answer(evil, (cited,), "stop", said.usage)

    monkeypatch.setattr(DocumentMemory, "ask", ask)
    code, out, err = run("ask", papers / "good.txt", "When?", "--model", model_folder, "--max-new-tokens", 4)
    assert code == 0
    assert "red" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out + err)


def test_a_question_may_be_longer_than_the_name_of_a_file(run: Run, model_folder: Path, papers: Path) -> None:
    question = "화재는 언제 일어났습니까 " * 12
    asked = ("ask", papers / "good.txt", question, "--model", model_folder, "--max-new-tokens", 2, "--no-store")
    code, _, err = run(*asked, "--budget", 2000)
    assert (code, "Traceback" in err) == (0, False)


def test_a_question_that_is_too_long_is_refused_before_reading(
    run: Run, model_folder: Path, papers: Path, tmp_path: Path
) -> None:
    long = "When did it burn? " * 40
    listed = tmp_path / "questions.txt"
    listed.write_text(f"When?\n{long}\n", encoding="utf-8")
    for asked in ((long,), ("--questions", listed)):
        code, out, err = run("ask", papers / "good.txt", *asked, "--model", model_folder, "--budget", 500)
        assert (code, out) == (2, "")
        assert "leave no room for the document in a budget of 500" in err
        assert "reading" not in err
    assert not (tmp_path / "memories").exists()


def test_what_the_system_refuses_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, papers: Path) -> None:
    for error, said in (
        (OSError(28, "No space left on device", "/somewhere"), "/somewhere: No space left on device."),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "give a smaller"),
        (MemoryError(), "give a smaller"),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("infinipot_llm.cli.asking.load_documents", fail)
        code, out, err = run("info", papers / "good.txt")
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    monkeypatch.setattr("infinipot_llm.cli.asking.load_documents", lambda *_: {}["a bug"])
    with pytest.raises(KeyError):  # what is ours to mend is not hidden
        run("info", papers / "good.txt")


def test_files_of_one_name_are_told_apart(run: Run, model_folder: Path, tmp_path: Path) -> None:
    for year in ("2021", "2022"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "report.txt").write_text(FACT + year, encoding="utf-8")
    out = run("info", tmp_path / "2021" / "report.txt", tmp_path / "2022" / "report.txt", "--model", model_folder)[1]
    assert "2021/report.txt" in out
    assert "2022/report.txt" in out


def test_info_lowers_a_budget_that_nobody_asked_for(run: Run, papers: Path, tmp_path: Path) -> None:
    tiny_model("llama", max_position_embeddings=1024).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    code, out, _ = run("info", papers / "good.txt", "--model", tmp_path)
    assert (code, "a pot of 1,024 slots" in out) == (0, True)
    code, _, err = run("info", papers / "good.txt", "--model", tmp_path, "--budget", 4096)
    assert (code, "beyond the 1024 positions" in err) == (2, True)


def test_a_file_that_is_not_there_is_told_before_anything_slow_is_imported(tmp_path: Path) -> None:
    commands = [["ask", "nothing.pdf", "Why?"], ["chat", "nothing.pdf"]]
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom infinipot_llm.cli import cli\n"
        f"for command in {commands!r}:\n"
        "    done = CliRunner().invoke(cli, command)\n"
        "    print(type(done.exception).__name__, done.exception, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        assert line.endswith(" False"), line
    assert len(done.stdout.splitlines()) == 2
