"""With real weights: parity below the budget, facts found through a small pot, and pages cited as planted.

Skipped where the weights were not fetched (`make models`). All tests together read about 25,000 tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import fetched_model
from pypdf import PdfReader, PdfWriter
from pypdf.constants import PageLabelStyle
from reportlab.pdfgen import canvas

from infinipot_llm import Document, DocumentMemory, InfiniPot, PotConfig

pytestmark = pytest.mark.weights

SUBJECTS = [
    "the miller",
    "the ferry",
    "an old surveyor",
    "the parish",
    "the orchard",
    "a clerk",
    "the toll house",
    "the weir",
]
VERBS = ["was seen near", "had long belonged to", "stood apart from", "paid rent to", "was rebuilt beside"]
ENDS = ["before the harvest", "in a wet spring", "without much notice", "as the letters tell", "for many years"]


def prose(sentences: int, seed: int) -> str:
    """Plain sentences without numbers, different for every seed."""
    pick = random.Random(seed)
    return " ".join(
        f"{pick.choice(SUBJECTS).capitalize()} {pick.choice(VERBS)} {pick.choice(SUBJECTS)} {pick.choice(ENDS)}."
        for _ in range(sentences)
    )


FACTS = {  # page -> (planted sentence, question, what the answer must contain)
    3: ("The bridge at Colmere was opened in 1887.", "In which year was the bridge at Colmere opened?", "1887"),
    6: ("The bell of Saint Osric weighs 4,215 pounds.", "How much does the bell of Saint Osric weigh?", "4,215"),
    8: ("The harbour master of Tessel is Ingrid Vahl.", "Who is the harbour master of Tessel?", "Vahl"),
}
LABELS = ["i", "ii", "1", "2", "3", "4", "5", "6", "7"]


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """Real weights use both cores; tiny ones (conftest.py) are faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """A PDF of nine pages, labelled i, ii, 1 .. 7, with one fact on some of them."""
    folder = tmp_path_factory.mktemp("planted")
    pdf = canvas.Canvas(str(folder / "plain.pdf"))
    for page in range(1, 10):
        words = (prose(14, seed=page) + " " + FACTS.get(page, ("",))[0] + " " + prose(10, seed=50 + page)).split()
        for row, start in enumerate(range(0, len(words), 12)):
            pdf.drawString(60, 780 - 18 * row, " ".join(words[start : start + 12]))
        pdf.showPage()
    pdf.save()
    writer = PdfWriter(clone_from=PdfReader(folder / "plain.pdf"))
    writer.set_page_label(0, 1, style=PageLabelStyle.LOWERCASE_ROMAN)
    writer.set_page_label(2, 8, style=PageLabelStyle.DECIMAL)
    writer.write(folder / "labelled.pdf")
    return Document.from_file(folder / "labelled.pdf")


@pytest.fixture(scope="module")
def default_llm() -> Iterator[InfiniPot]:
    name = fetched_model("qwen2.5-coder-0.5b")
    with InfiniPot.from_pretrained(name, budget=1024, max_new_tokens=32, device="cpu", dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def small_llm() -> Iterator[InfiniPot]:
    name = fetched_model("smollm2-135m")
    with InfiniPot.from_pretrained(name, budget=1024, max_new_tokens=24, device="cpu", dtype="float32") as llm:
        yield llm


def test_below_the_budget_the_answer_is_the_plain_models(small_llm: InfiniPot) -> None:
    document = Document.from_text(prose(20, seed=1) + " The lamp was lit in 1790. " + prose(10, seed=2))
    question = "When was the lamp lit?"
    memory = small_llm.read(document, question=question)
    ours = memory.ask(question, citations=False)
    form, adapter = small_llm.form, small_llm.adapter
    ids = torch.tensor([[*form.prefix, *memory.text.ids.tolist(), *form.question(question)]])
    adapter.close()
    plain = adapter.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    adapter.open()
    assert memory.stats.cycles == 0
    assert ours.text == form.codec.decode(plain[0, ids.shape[1] :].tolist()).strip()


def test_a_needle_survives_many_cycles(small_llm: InfiniPot) -> None:
    text = prose(110, seed=3) + "\nThe secret code of the blue house is 68211.\n" + prose(110, seed=4)
    answer = small_llm.ask(Document.from_text(text), "What is the secret code of the blue house?")
    assert answer.usage.read.cycles >= 4
    assert "68211" in answer.text
    assert "68211" in answer.citations[0].quote


@pytest.fixture(scope="module")
def memory(default_llm: InfiniPot, planted: Document) -> DocumentMemory:
    return default_llm.read(planted)


def test_planted_facts_are_answered_and_cited_on_their_page(memory: DocumentMemory, planted: Document) -> None:
    assert memory.stats.cycles > 0
    for page, (sentence, question, gold) in FACTS.items():
        answer = memory.ask(question, recall=256)
        assert answer.usage.recalled_tokens <= 256 < len(memory.text) // 4
        assert answer.supported is not None
        assert answer.supported > 2.0
        assert gold in answer.text, (question, answer.text)
        first = answer.citations[0]
        assert (first.page, first.page_label) == (page, LABELS[page - 1])
        assert " ".join(sentence.split()[-2:]) in " ".join(first.quote.split())
        assert planted.text[first.start : first.end] == first.quote


def test_other_scripts_are_read_and_quoted(default_llm: InfiniPot) -> None:
    korean = "회의는 세 시에 시작했다. 참석자는 열두 명이었다. 창고의 열쇠 번호는 4821이다. 다음 회의는 금요일이다. "
    arabic = "بدأ الاجتماع في الساعة الثالثة. رقم مفتاح المخزن هو 7359. حضر الاجتماع اثنا عشر شخصا. "
    for text, question, gold in (
        (korean, "창고의 열쇠 번호는 무엇입니까?", "4821"),
        (arabic, "ما هو رقم مفتاح المخزن؟", "7359"),
    ):
        answer = default_llm.ask(Document.from_text(text), question)
        assert gold in answer.text, answer.text
        assert gold in answer.citations[0].quote
        assert answer.citations[0].quote in text


def test_a_memory_stays_as_it_is_and_can_be_saved(
    default_llm: InfiniPot, memory: DocumentMemory, tmp_path: Path
) -> None:
    before = memory.pot.state()
    first = memory.ask("Who is the harbour master of Tessel?")
    again = memory.ask("Who is the harbour master of Tessel?")
    after = memory.pot.state()
    assert first.text == again.text
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = default_llm.load(memory.save(tmp_path / "planted.infinipot"))
    third = loaded.ask("Who is the harbour master of Tessel?")
    assert (third.text, third.citations) == (first.text, first.citations)


def test_a_follow_up_understands_who_is_meant(memory: DocumentMemory) -> None:
    chat = memory.chat()
    assert "1887" in chat.ask("When was the bridge at Colmere opened?", citations=False).text
    assert "Vahl" in chat.ask("And who is the harbour master of Tessel?", citations=False).text
    assert len(chat.turns) == 2


def test_the_demo(tmp_path: Path) -> None:
    """What `make demo` shows, on the pages around the fact, through a pot smaller than they are."""
    name = fetched_model("qwen2.5-coder-0.5b")
    report = Document.from_file(Path(__file__).parents[1] / "examples/documents/hollin_valley.pdf")
    part = Document(
        report.name,
        report.text[: report.pages[20].end],
        report.pages[:21],
    )
    config = PotConfig(budget=4096, max_new_tokens=32)
    with InfiniPot.from_pretrained(name, config=config, device="cpu", dtype="float32") as llm:
        answer = llm.ask(part, "What did the replacement pump at Tarnbrook pumping station cost?")
    assert answer.usage.read.cycles > 0
    assert "412,650" in answer.text
    assert answer.citations[0].page == 18
    assert answer.citations[0].page_label == "15"
