"""Citations of a tiny model: what they rest on is chance, that they are true quotations with true pages is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, tiny_model

from infinipot_llm.answering import citations as citations_module
from infinipot_llm.answering.answer import Citation
from infinipot_llm.answering.citations import Traced, says_nothing_found, trace
from infinipot_llm.config import PotConfig
from infinipot_llm.documents import Document, Page
from infinipot_llm.documents.sentences import sentences
from infinipot_llm.engine import InfiniPot
from infinipot_llm.memory.memory import DocumentMemory
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.text import TextCodec, TokenizedText
from infinipot_llm.pot.pot import PREFIX, Pot

CODEC = TextCodec(byte_tokenizer())
PAGES = [
    "The mill burned in 1903. It stood by the river.",
    "  It was rebuilt in 1904 for 68,211 crowns.\nÉlan naïf: 東京. ",
    "The owner moved away. Nobody saw him again.",
]


def paged(name: str, labels: list[str | None]) -> Document:
    pages, start = [], 0
    for number, (text, label) in enumerate(zip(PAGES, labels, strict=True), 1):
        pages.append(Page(number, label, start, start + len(text)))
        start += len(text) + 2
    return Document(name, "\n\n".join(PAGES), tuple(pages))


FIRST = paged("first", ["i", "ii", "1"])
SECOND = paged("second", [None, None, None])


@pytest.fixture(scope="module", params=FAMILIES)
def memory(request: pytest.FixtureRequest) -> Iterator[DocumentMemory]:
    config = PotConfig(budget=360, max_new_tokens=12, question_tokens=32, shelf="int8", recalled="load")
    with InfiniPot(Adapter(tiny_model(request.param, num_hidden_layers=2)), CODEC, config) as llm:
        read = llm.read([FIRST, SECOND], question="Who moved away?")
        assert read.stats.cycles > 0
        yield read


def check(found: tuple[Citation, ...]) -> None:
    by_name = {d.name: d for d in (FIRST, SECOND)}
    for one in found:
        document = by_name[one.document]
        assert one.quote == document.text[one.start : one.end]
        assert one.quote == one.quote.strip() != ""
        page = document.page_at(one.start)
        assert (one.page, one.page_label) == (page.number, page.label)
        assert (one.start, one.end) in sentences(document.text, page.start, page.end)
        assert 0.0 <= one.score <= 1.0
    assert len({(c.document, c.start) for c in found}) == len(found)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert sum(c.score for c in found) <= 1.0 + 1e-3


@pytest.mark.parametrize("question", ["When?", "Who moved away?", "How much?"])
def test_citations_are_quotations_with_their_page_and_label(memory: DocumentMemory, question: str) -> None:
    answer = memory.ask(question)
    assert len(answer.citations) <= 3
    check(answer.citations)


def test_most_citations_are_as_many_as_asked_for(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bars lowered, so that a random model cites all that it may."""
    monkeypatch.setattr(citations_module, "LEAST_DROP", -1e9)
    monkeypatch.setattr(citations_module, "SHARE_OF_FIRST", -1e9)
    question = memory._form.question("When?")
    before = memory.pot.state()
    for limit, expected in ((3, 3), (1, 1), (99, citations_module.CANDIDATES)):
        found = trace(
            memory._adapter, memory.pot, memory.text, question, CODEC.untrusted("1903, 1904"), "1903, 1904", limit
        ).citations
        assert len(found) == expected
        for one in found:
            document = {d.name: d for d in (FIRST, SECOND)}[one.document]
            assert one.quote == document.text[one.start : one.end]
            assert one.page == document.page_at(one.start).number
            assert one.page_label == document.page_at(one.start).label
    assert {c.document for c in found} == {"first", "second"}
    assert all(torch.equal(before[name], value) for name, value in memory.pot.state().items())


def probability(
    adapter: Adapter, pot: Pot, question: list[int], answer: list[int], hidden: tuple[int, int] | None = None
) -> float:
    if hidden is not None:
        return citations_module._without(adapter, pot, question, answer, hidden)
    with pot.scratch():
        return citations_module._log_probability(adapter, pot, question, answer)


def test_a_passage_is_hidden_and_only_that(memory: DocumentMemory) -> None:
    """Hiding nothing changes nothing; what stands in hidden slots has no say, in any layer or head."""
    question, answer = memory._form.question("When?"), CODEC.untrusted("1903")
    adapter, pot = memory._adapter, memory.pot
    whole = probability(adapter, pot, question, answer)
    assert probability(adapter, pot, question, answer, (0, 0)) == pytest.approx(whole, rel=1e-4)
    hidden = (pot.origin >= 0) & (pot.origin < 40)
    without = probability(adapter, pot, question, answer, (0, 40))
    state = [(layer.rotated_keys.clone(), layer.value_states.clone()) for layer in pot.cache.layers]
    for layer, mark in zip(pot.cache.layers, hidden, strict=True):
        held = layer.value_states[0, :, : pot.length]
        held[mark] = torch.randn(held[mark].shape, generator=torch.Generator().manual_seed(1)) * 1e3
    assert probability(adapter, pot, question, answer, (0, 40)) == pytest.approx(without, rel=1e-4)
    assert probability(adapter, pot, question, answer) != pytest.approx(whole, rel=1e-2)
    for layer, (keys, values) in zip(pot.cache.layers, state, strict=True):
        layer.rotated_keys.copy_(keys)
        layer.value_states.copy_(values)
    assert probability(adapter, pot, question, answer) == whole


def test_support_is_what_the_document_adds_to_the_answers_likelihood(memory: DocumentMemory) -> None:
    """Against a pot that never held it."""
    adapter, pot = memory._adapter, memory.pot
    question, answer = memory._form.question("When?"), CODEC.untrusted("1903")
    before = pot.state()
    found = trace(adapter, pot, memory.text, question, answer, "1903")
    bare = Pot(adapter, pot.budget)
    bare.place(*memory.setup.prefix, torch.full((memory.setup.prefix[0].shape[2],), PREFIX))
    expected = probability(adapter, pot, question, answer)
    # The question stands where it stood: hiding slots moves nothing.
    hidden = probability(adapter, pot, question, answer, (0, len(memory.text)))
    assert found.supported == pytest.approx(expected - hidden, rel=1e-4, abs=1e-4)
    assert found.supported != 0.0
    nothing = trace(adapter, bare, memory.text, question, answer, "1903")
    assert nothing.supported == pytest.approx(0.0, abs=1e-3)
    assert all(torch.equal(before[name], value) for name, value in pot.state().items())


@pytest.mark.parametrize("followup", ["recall", "reuse", "reread"])
def test_an_answer_says_how_far_the_document_supports_it(memory: DocumentMemory, followup: str) -> None:
    answer = memory.ask("When?", followup=followup)
    assert isinstance(answer.supported, float)
    assert answer.to_dict()["supported"] == answer.supported
    assert memory.ask("When?", followup=followup, citations=False).supported is None
    check(answer.citations)


def test_what_was_not_recalled_is_not_cited(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citations_module, "LEAST_DROP", -1e9)
    for tokens in (5, 40):
        answer = memory.ask("When?", followup="recall", recall=tokens)
        assert answer.usage.recalled_tokens == tokens
        found = {(span.document, span.start, span.end) for span, _ in memory.recall("When?", tokens)}
        for one in answer.citations:
            assert any(d == one.document and a < one.end and one.start < b for d, a, b in found)


def test_a_quotation_begins_with_its_first_word_though_a_token_begins_with_a_blank() -> None:
    words = ["The mill", " burned.", "\n\n ", " It was", " rebuilt. "]
    ends = torch.tensor([len(w) for w in words]).cumsum(0).numpy().astype("int32")
    starts = ends - torch.tensor([len(w) for w in words]).numpy().astype("int32")
    page = Page(1, "iv", 0, int(ends[-1]))
    document = Document("d", "".join(words), (page,))
    text = TokenizedText((document,), starts, starts, ends, torch.tensor([0, len(words)]).numpy())
    looked_at = torch.tensor([0.1, 0.0, 0.5, 0.3, 0.2])  # most at the line break, which is no passage
    first, second = citations_module._candidates(text, looked_at, "rebuilt")
    assert (first.tokens, second.tokens) == ((3, 5), (0, 2))
    found = citations_module._citation(first, 0.5)
    assert found.length == len(document.text)
    assert (found.quote, document.text[found.start : found.end]) == ("It was rebuilt.", "It was rebuilt.")
    assert (found.document, found.page, found.page_label, found.score) == ("d", 1, "iv", 0.5)


@pytest.mark.parametrize(
    ("answer", "text"), [([], ""), ([10, 10], "  \n"), ([33], ""), ([46, 78], "Not in the document.")]
)
def test_no_citation_without_an_answer(memory: DocumentMemory, answer: list[int], text: str) -> None:
    runs: list[int] = []
    handle = memory._adapter.backbone.register_forward_hook(lambda *_: runs.append(1))
    try:
        found = trace(memory._adapter, memory.pot, memory.text, memory._form.question("When?"), answer, text)
        assert found == Traced((), None)
    finally:
        handle.remove()
    assert not runs


@pytest.mark.parametrize(
    "text",
    [
        "Not in the document.",
        "The document does not say.",
        "The document does not mention it.",
        "The document doesn't say when it burned.",
        "It is not mentioned in the document.",
        "It is not mentioned.",
        "The report did not state the cost.",
        "The document didn't provide this.",
        "That cannot be found in the document.",
        "There is no mention of a fire in the document.",
        "The text provides no information about this.",
        "Not stated.",
        "It does not say.",
        "The document does not explicitly mention the cost.",
        "The report does not contain any information about the ferry.",
        "I cannot find it. The document says nothing.",
        "Sorry, I do not know.",
        "No information is provided.",
        "There is no information about the mill.",
        "It cannot be determined from the text.",
    ],
)
def test_an_answer_that_nothing_was_found(text: str) -> None:
    assert says_nothing_found(text)


@pytest.mark.parametrize(
    "text",
    [
        "There was no fire in the mill.",
        "The number is 42.",
        "Notwithstanding the flood, it opened in May.",
        "It was not rebuilt in 1904.",
        "No, it opened in May.",
        "The owner did not live in Paris.",
        "No. 42 in the annex",
        "It was noted in the document.",
        "He said it was not his mill.",
        "Nothing was lost in the fire.",
        "In the document of 1903.",
        "It does not contain alcohol or sugar.",  # these were taken for refusals, and lost their citations
        "The report did not satisfy the board.",
        "The report does not include the costs of the new pump.",
        "It could not be found after the flood.",
        "No information was lost in the fire.",
        "Not found guilty, he was released.",
        "The lease does not specify a term, so either side may end it.",
        'He said: "I do not know him."',
        "1903",
        "",
    ],
)
def test_an_answer_that_says_something(text: str) -> None:
    assert not says_nothing_found(text)


@pytest.mark.parametrize(
    ("passage", "question", "answer", "expected"),
    [
        ("Mont Blanc is the highest mountain of the Alps.", "What is the highest mountain?", "It is Mont Blanc.", True),
        ("Mont Blanc was climbed in 1786.", "What is the highest mountain?", "It is Mont Blanc.", False),
        ("The highest mountain of Asia is Everest.", "What is the highest mountain?", "It is Mont Blanc.", False),
        ("The bell weighs 4,215 pounds.", "How much does the bell weigh, in pounds?", "4,215", True),
        ("The bell weighs 4,21 pounds.", "How much does the bell weigh, in pounds?", "4,215", False),
        ("The highest mountain.", "What is the highest mountain?", "The highest mountain.", False),
        ("Mont Blanc", "", "Mont Blanc", False),
    ],
)
def test_a_passage_that_states_the_answer(passage: str, question: str, answer: str, expected: bool) -> None:
    assert citations_module.states(passage, question, answer) is expected


def test_a_fact_told_twice_is_cited_where_it_stands(memory: DocumentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hiding one passage changes nothing, those that state the answer are cited, and no others."""
    looked = citations_module._as_it_is
    monkeypatch.setattr(citations_module, "_as_it_is", lambda *given: (-1.0, looked(*given)[1]))
    monkeypatch.setattr(citations_module, "_without", lambda *_: -1.0)
    asked, question = memory._form.question("When?"), "When was the mill burned?"
    shared = (memory._adapter, memory.pot, memory.text, asked, [48, 49])
    found = trace(*shared, "In 1903", question_text=question).citations
    assert found
    assert all("1903" in c.quote and "mill" in c.quote and c.score == 0.0 for c in found)
    assert trace(*shared, "In 1999", question_text=question).citations == ()
