"""Passages of ours as nodes of LlamaIndex: real text, page and label, offsets, a score, what the answer cites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.indices.managed.infinipot.errors import InfiniPotIndexError
from llama_index.indices.managed.infinipot.rejoin import page_number

from infinipot_llm.documents import Document, Span

if TYPE_CHECKING:
    from infinipot_llm.memory.recall import Passage
    from infinipot_llm.models.text import TokenizedText

HIDDEN = (
    "page", "start_char_idx", "end_char_idx", "token_start", "token_end", "token_base", "score", "cited",
    "citation_score", "speaker", "time", "document_id", "total_pages", "reading_notes", "file_path", "file_size",
    "file_type", "creation_date", "last_modified_date",
)  # fmt: skip
"""Metadata that is for programs: an engine that writes metadata into prompts leaves them out."""

LEAST_LETTERS = 4
"""A piece of a passage with fewer letters and digits is a page number at the border, and no source of its own."""


@dataclass(frozen=True)
class Source:
    """A document of an index, as passages refer to it.

    Attributes:
        ref_doc_id: What the index calls it.
        document: The document.
        pages: What its reader said of each page; of the document, where it has no pages.
    """

    ref_doc_id: str
    document: Document
    pages: Sequence[BaseNode]

    def told_of(self, page: int) -> dict[str, Any]:
        """Return the metadata that the reader gave the page of this number."""
        numbered = [node for node in self.pages if page_number(node) == page]
        if numbered:
            return dict(numbered[0].metadata)
        return dict(self.pages[min(page, len(self.pages)) - 1].metadata)


def nodes_of(passages: Sequence[Passage], text: TokenizedText, sources: Mapping[str, Source]) -> list[NodeWithScore]:
    """Make nodes of passages, best first; one that reaches over a page border is cut there, so that labels are right.

    Their token ranges, in `token_start` and `token_end`, put together again, are the passages; `token_base` is where
    their document began.

    Args:
        passages: What was found.
        text: The tokens that they are ranges of.
        sources: The documents by name.
    """
    nodes: list[NodeWithScore] = []
    for passage in passages:
        pieces = [(first, end, _visible(text, first, end)) for first, end in _by_page(passage, text)]
        telling = [p for p in pieces if sum(map(str.isalnum, p[2].text if p[2] else "")) >= LEAST_LETTERS]
        telling = telling or [p for p in pieces if p[2] is not None]
        if not telling:  # blank pages
            continue
        starts = [passage.start, *(first for first, _, _ in telling[1:])]  # what tells nothing goes with what is before
        for (own, _, span), (first, end) in zip(telling, pairwise((*starts, passage.end)), strict=True):
            assert span is not None  # noqa: S101 - as chosen above
            source, left = sources[span.document], span.start + len(span.text) - len(span.text.lstrip())
            node = node_of(source, left, span.start + len(span.text.rstrip()), passage.score)
            begin = int(text.first[text.document_of(own)])  # of the document shown: `first` may be the end of another
            node.node.metadata.update(token_start=first, token_end=end, token_base=begin)
            nodes.append(node)
    return sorted(nodes, key=lambda node: -(node.score or 0.0))


def _visible(text: TokenizedText, first: int, end: int) -> Span | None:
    """Return what a range of tokens of one page shows; None where that is white space."""
    shown = text.per_document(first, end)
    span = text.span(*shown[0]) if shown else None
    return span if span is not None and span.text.strip() else None


def passages_in(
    nodes: Sequence[NodeWithScore], text: TokenizedText | None = None, sources: Mapping[str, Source] | None = None
) -> list[Passage]:
    """Return the passages that nodes were made of, in the order of the documents; of some nodes, these parts.

    Args:
        nodes: What a retriever gave.
        text: The tokens to find them in; None: those that they were found in. Documents may have come or gone since.
        sources: The documents of that text by name, in order.

    Raises:
        InfiniPotIndexError: A node is of something else, or of a document that is no longer there, or its text was
            changed.
    """
    from infinipot_llm.memory.recall import Passage

    found: list[Passage] = []
    try:
        moved = [_moved(n.node, text, sources or {}) for n in nodes]
        ranges = [
            (n.node.metadata["token_start"] + by, n.node.metadata["token_end"] + by, n.score or 0.0)
            for n, by in zip(nodes, moved, strict=True)
        ]
    except KeyError as error:
        raise InfiniPotIndexError(
            "a node is no passage of this index: answer from nodes that its retriever gave, or use another synthesizer."
        ) from error
    for start, end, score in sorted(ranges):
        if found and found[-1].end == start:
            found[-1] = Passage(found[-1].start, end, max(found[-1].score, score))
        else:
            found.append(Passage(start, end, score))
    return found


def _moved(node: BaseNode, text: TokenizedText | None, sources: Mapping[str, Source]) -> int:
    """Return by how many tokens the document of a node has moved since the node was found."""
    told = node.metadata
    base = told["token_base"]
    if text is None:
        return 0
    for first, source in zip(text.first, sources.values(), strict=False):
        if source.ref_doc_id == node.ref_doc_id and source.document.id == told["document_id"]:
            own = source.document.text[told["start_char_idx"] : told["end_char_idx"]]
            if node.get_content(MetadataMode.NONE) != own:
                raise InfiniPotIndexError(
                    f"the text of a passage of {told['file_name']} was changed (by a postprocessor?), and the model "
                    "would read it as it was: leave the postprocessor out, or answer with another synthesizer."
                )
            return int(first) - int(base)
    raise InfiniPotIndexError(
        f"{told['file_name']} was changed or taken out of the index after its passages were found: ask again."
    )


def _by_page(passage: Passage, text: TokenizedText) -> list[tuple[int, int]]:
    """Cut a range of tokens where a document or a page begins."""
    cuts = {int(f) for f in text.first}
    last = text.document_of(passage.end - 1)
    for number in range(text.document_of(passage.start), last + 1):
        document = text.documents[number]
        cuts.update(text.tokens_in(number, page.start, page.end)[0] for page in document.pages if page.start < page.end)
    inside = sorted(cut for cut in cuts if passage.start < cut < passage.end)
    return list(pairwise((passage.start, *inside, passage.end)))


def node_of(source: Source, start: int, end: int, score: float) -> NodeWithScore:
    """Make a node of the characters [start, end) of a document."""
    span = source.document.span(start, end)
    told = source.told_of(span.page)
    told.update(
        file_name=told.get("file_name") or source.document.name,
        page=span.page,
        page_label=span.page_label or str(span.page),
        start_char_idx=start,
        end_char_idx=end,
        score=round(score, 4),
        document_id=source.document.id,
    )
    if span.speaker is not None:
        told["speaker"] = span.speaker
    if span.time is not None:
        told["time"] = span.time
    node = TextNode(
        id_=f"{source.ref_doc_id}@{source.document.content_hash[:12]}:{start}-{end}",  # the same passage, the same id
        text=span.text,
        metadata=told,
        start_char_idx=start,
        end_char_idx=end,
        excluded_llm_metadata_keys=list(HIDDEN),
        excluded_embed_metadata_keys=list(HIDDEN),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source.ref_doc_id)},
    )
    return NodeWithScore(node=node, score=score)


def cited_first(
    nodes: Sequence[NodeWithScore], citations: Sequence[Mapping[str, Any]], sources: Mapping[str, Source]
) -> list[NodeWithScore]:
    """Return nodes with those first that an answer rests on, strongest first; the others keep their order.

    A cited node carries `cited`, the sentence, and `citation_score`, the share of the answer's support that falls on
    it. A cited sentence of none of the nodes becomes one of its own: with followup "reuse" or "reread" nothing was
    recalled.

    Args:
        nodes: What was recalled, best first.
        citations: Citations as plain values, best first.
        sources: The documents by name.
    """
    first: list[NodeWithScore] = []
    for citation in citations:
        source, at = sources[citation["document"]], (citation["start"], citation["end"])
        held = max((*first, *nodes), key=lambda n: _shared(n, source, *at), default=None)
        if held is None or not _shared(held, source, *at):
            held = node_of(source, *at, citation["score"])
        elif any(held is n for n in first):
            continue  # two sentences of one passage: the stronger one is shown
        else:
            held = NodeWithScore(node=held.node.model_copy(), score=held.score)
            held.node.metadata = dict(held.node.metadata)
        held.node.metadata.update(cited=citation["quote"], citation_score=citation["score"])
        first.append(held)
    moved = {n.node.node_id for n in first}
    return [*first, *(n for n in nodes if n.node.node_id not in moved)]


def _shared(node: NodeWithScore, source: Source, start: int, end: int) -> int:
    """Return how many of the characters [start, end) of a document a passage holds: it may begin within a sentence."""
    if node.node.ref_doc_id != source.ref_doc_id:
        return 0
    told = node.node.metadata
    return max(0, min(end, told["end_char_idx"]) - max(start, told["start_char_idx"]))
