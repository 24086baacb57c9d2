"""Beside langchain-huggingface with the same weights. It needs huggingface-hub below 2, so it is not among our
dependencies: install it into an environment of its own to run this.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_infinipot import ChatInfiniPot

from infinipot_llm.answering.messages import prompt_of, tidied
from infinipot_llm.answering.prompt import Message
from infinipot_llm.documents import Document

huggingface = pytest.importorskip("langchain_huggingface", reason="langchain-huggingface is not installed")

TEXT = "The mill at Oxley was sold in 1912. Jane Firth bought it for 4,100 crowns, and moved away."


@pytest.mark.filterwarnings("ignore")
def test_a_document_that_fits_is_answered_with_the_same_words(word_model: Path) -> None:
    ours = ChatInfiniPot(model=str(word_model), budget=2048, max_tokens=24, citations=False, store=False)
    block = {"type": "text-plain", "text": TEXT, "title": "mill.txt"}
    said = ours.invoke([("human", [block, {"type": "text", "text": "Who bought it?"}])])
    codec = ours.engine().llm.form.codec
    prompt = prompt_of(ours.engine().llm.form, tidied([Message("user", "Who bought it?")]), document=True)
    document = codec.document((Document.from_text(TEXT, name="mill.txt"),))
    ids = [*prompt.before, *document.ids.tolist(), *prompt.behind]
    whole = codec.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert codec.tokenizer(whole)["input_ids"] == ids  # the same tokens, or the comparison would be none
    theirs = huggingface.HuggingFacePipeline.from_model_id(
        model_id=str(word_model),
        task="text-generation",
        pipeline_kwargs={"max_new_tokens": 24, "do_sample": False, "return_full_text": False},
    )
    assert said.text == str(theirs.invoke(whole)).strip()
