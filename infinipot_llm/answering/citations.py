"""Citations: the passages that an answer rests on, found by taking them away.

Two steps. Attention names candidates: where the answer's tokens look in the pot. Then each candidate passage is
hidden from every layer and head, question and answer are run again, and the fall of the answer's log-probability says
how far the answer rests on it. Averaged attention alone is an unreliable witness; a passage whose absence changes
nothing is not cited.
Shapes: `L` layers, `K` KV heads, `S` slots, `N` document tokens, `A` answer tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infinipot_llm.answering.answer import Citation
from infinipot_llm.answering.token_sentences import TokenSentences
from infinipot_llm.documents import Span
from infinipot_llm.models.adapter import Adapter
from infinipot_llm.models.slots import Attending
from infinipot_llm.models.text import TokenizedText
from infinipot_llm.pot.catalyst import attention_received
from infinipot_llm.pot.novelty import surprise
from infinipot_llm.pot.pot import Pot

CANDIDATES = 6
"""Passages taken away one by one; each costs one forward of question and answer."""

ANSWER_TOKENS = 48
"""Only the start of a long answer is traced."""

LEAST_DROP = 0.5
"""Nats that the answer must lose without a passage for the passage to be cited (a fall of its probability by 40 %)."""

SHARE_OF_FIRST = 0.4
"""A further passage is cited when its drop is at least this share of the first one's."""

REFUSAL_CHARACTERS = 160
"""An answer that refuses says so at once; later it may quote that somebody found nothing."""

_SOURCE = r"(?:the|this) (?:given |provided )?(?:document|text|report|context|passage)"
_NOT = r"(?:(?:does|do|did) not|(?:does|do|did)n['’]t)"
_REFUSAL = re.compile(
    rf"\bnot (?:\w+ ){{0,2}}(?:in|by) {_SOURCE}\b"
    rf"|\b{_SOURCE} {_NOT} (?:\w+ly )?(?:say|mention|state|specify|tell|answer|discuss|address)\b"
    rf"|\b{_SOURCE} {_NOT} (?:\w+ly )?(?:contain|provide|give|include|have) (?:\w+ ){{0,2}}"
    r"(?:information|details?|answers?|mention|data)\b"
    rf"|\b{_SOURCE} {_NOT} (?:provide|tell|give) (?:this|that|it)\b"
    rf"|^\W*it {_NOT} (?:say|mention|state|specify|tell)\b"
    r"|^\W*(?:(?:it|this|that) (?:is|was) )?not (?:mentioned|stated|specified|provided|given|found)\b"
    r"(?=\W*$|[.,;!]| here\b| anywhere\b)"
    rf"|\b(?:cannot|can['’]t|could not) be (?:found|determined|answered)\b"
    rf"(?=\W*$|[.!]| (?:from|with|based|using)\b| (?:in|by) {_SOURCE})"
    r"|\b(?:is|are|there['’]s) no (?:information|mention|details?|answer)\b"
    rf"|\b{_SOURCE} (?:contains|provides|gives|has|had) no (?:information|mention|details?|answer)\b"
    r"|^\W*no (?:information|mention|details?)\b(?=\W*$|[.!]| (?:is|are|was|were) (?:given|provided|available|found)\b"
    r"| (?:about|on|of|regarding)\b)"
    r"|(?:^|[.!,:;] )I (?:do not|don['’]t|cannot|can['’]t) (?:know|find|answer)\b"
    r"|문서에 (?:없|나와 있지 않)|記載(?:されて|がありません|はありません)"
    r"|文[档中书]*(?:没有|未)提[到及]|غير مذكور|لا (?:يذكر|تذكر)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Traced:
    """Where an answer comes from.

    Attributes:
        citations: Passages that it rests on, strongest first.
        supported: Nats by which the document makes the answer likelier than the prompt alone; None when not looked for.
    """

    citations: tuple[Citation, ...]
    supported: float | None


def trace(
    adapter: Adapter,
    pot: Pot,
    text: TokenizedText,
    question: Sequence[int],
    answer: Sequence[int],
    answer_text: str,
    limit: int = 3,
    question_text: str = "",
) -> Traced:
    """Find the passages that an answer rests on, and how far it rests on the document at all.

    Args:
        adapter: The model.
        pot: The document state that the answer was decoded from; left as it was.
        text: The text that the pot was filled from.
        question: Tokens between document and answer.
        answer: Tokens of the answer.
        answer_text: Its text.
        limit: Most citations to give.
        question_text: The user's question alone, to recognise passages that state the answer.

    Returns:
        No citations when the answer is empty, says that the document does not tell, or rests on no passage that can be
        shown.
    """
    answer = list(answer[:ANSWER_TOKENS])
    if not answer or not answer_text.strip() or says_nothing_found(answer_text):
        return Traced((), None)
    with adapter.lock:
        whole, looked_at = _as_it_is(adapter, pot, len(text), question, answer)
        supported = whole - _without(adapter, pot, question, answer, (0, len(text)))
        passages = _candidates(text, looked_at, answer_text)
        if not passages:
            return Traced((), supported)
        drops = [whole - _without(adapter, pot, question, answer, passage.tokens) for passage in passages]
    order = sorted(range(len(passages)), key=lambda i: -drops[i])
    best = drops[order[0]]
    chosen = [i for i in order if drops[i] >= max(LEAST_DROP, SHARE_OF_FIRST * best)][:limit]
    if not chosen:  # a fact told in several places is missed in none of them: cite those that state it in so many words
        chosen = [i for i in order if states(passages[i].span.text, question_text, answer_text)][:limit]
    total = sum(max(d, 0.0) for d in drops) or 1.0
    return Traced(tuple(_citation(passages[i], max(drops[i], 0.0) / total) for i in chosen), supported)


def says_nothing_found(answer_text: str) -> bool:
    """Tell whether an answer says that the document does not tell."""
    return bool(_REFUSAL.search(answer_text[:REFUSAL_CHARACTERS]))


def states(passage: str, question: str, answer: str) -> bool:
    """Tell whether a passage states an answer in so many words.

    It does when it holds every word that the answer adds to the question, and at least a third of the question's words
    (short ones left out, unless they are numbers).
    """

    def content(text: str) -> set[str]:
        return {w for w in map(str.casefold, _WORD.findall(text)) if len(w) > 3 or w[0].isdigit()}

    there, asked = content(passage), content(question)
    added = content(answer) - asked
    return bool(added) and added <= there and bool(asked) and 3 * len(asked & there) >= len(asked)


def _as_it_is(
    adapter: Adapter, pot: Pot, tokens: int, question: Sequence[int], answer: Sequence[int]
) -> tuple[float, Tensor]:
    """Return log P(answer | pot, question), and the attention that its predictions pay to each token, [N] float32."""
    rows = len(answer) + 1  # the token before the answer predicts its first token
    origin = pot.origin.to(torch.int64)
    total = torch.zeros(tokens, dtype=torch.float32, device=origin.device)

    def observe(seen: Attending) -> None:
        keys = seen.key[:, :, : pot.length]
        received = attention_received(seen.query[:, :, -rows:], keys, seen.scaling, "sum")  # [K, S]
        held = origin[seen.layer] >= 0
        total.index_add_(0, origin[seen.layer][held], received[held].to(total))

    with pot.scratch():
        pot.cache.observer = observe
        found = _log_probability(adapter, pot, question, answer)
    return found, total.cpu()


@dataclass(frozen=True)
class _Passage:
    """A sentence of a document, its tokens [a, b), and how many characters the document has."""

    span: Span
    tokens: tuple[int, int]
    score: float
    length: int


def _candidates(text: TokenizedText, looked_at: Tensor, answer_text: str) -> list[_Passage]:
    """Return the sentences looked at most, those that share words with the answer first."""
    words = {w.casefold() for w in _WORD.findall(answer_text)}
    found: list[_Passage] = []
    sentences = TokenSentences(text)
    for token in looked_at.topk(min(256, int((looked_at > 0).sum()))).indices.tolist():
        if any(p.tokens[0] <= token < p.tokens[1] for p in found) or (sentence := sentences.at(token)) is None:
            continue
        where, start, end = sentence
        document, tokens = text.documents[where], text.tokens_in(*sentence)
        shared = sum(len(w) for w in {w.casefold() for w in _WORD.findall(document.text[start:end])} & words)
        mass = float(looked_at[tokens[0] : tokens[1]].sum())
        found.append(_Passage(document.span(start, end), tokens, mass * (1.0 + shared), len(document.text)))
    return sorted(found, key=lambda p: -p.score)[:CANDIDATES]


def _without(
    adapter: Adapter, pot: Pot, question: Sequence[int], answer: Sequence[int], hidden: tuple[int, int]
) -> float:
    """Return log P(answer | pot, question) in nats, with the document's tokens [a, b) hidden from every query."""
    with pot.scratch():
        pot.hide(*hidden)
        return _log_probability(adapter, pot, question, answer)


def _log_probability(adapter: Adapter, pot: Pot, question: Sequence[int], answer: Sequence[int]) -> float:
    """Forward question and answer behind a pot; returns log P(answer | pot, question) in nats."""
    ids = torch.tensor([*question, *answer], dtype=torch.long)
    states = adapter.forward(ids, pot.cache)  # [Q + A, E]
    before = states[len(question) - 1 : -1]  # [A, E]
    return -float(surprise(adapter, before, ids[len(question) :]).sum())


def _citation(passage: _Passage, score: float) -> Citation:
    """Turn a sentence into a citation; its quote is the document's own text."""
    span = passage.span
    where = (span.document, span.page, span.page_label, span.start, span.end)
    return Citation(*where, span.text, round(score, 4), span.speaker, span.time, passage.length)
