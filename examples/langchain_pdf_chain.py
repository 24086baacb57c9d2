"""Ask a PDF through LangChain: a chain, a question after it, a stream; nothing is read twice.

    python examples/langchain_pdf_chain.py [FILE] [QUESTION ...]

INFINIPOT_MODEL names another model than the default.
"""

import base64
import mimetypes
import os
import sys
import time
from pathlib import Path

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_infinipot import ChatInfiniPot

SAMPLE = Path(__file__).parent / "documents" / "hollin_valley.pdf"
QUESTIONS = ["What did the replacement pump at Tarnbrook pumping station cost?", "Who built the replacement pump?"]


def main(file: str, questions: list[str]) -> None:
    """Ask every question of the file, in one chain."""
    llm = ChatInfiniPot(model=os.environ.get("INFINIPOT_MODEL", "qwen2.5-coder-0.5b"), budget=4096, max_tokens=64)
    prompt = ChatPromptTemplate(
        [
            ("system", "Answer from the document, in a few words."),
            (
                "human",
                [
                    {"type": "file", "base64": "{data}", "mime_type": "{kind}"},
                    {"type": "text", "text": "{question}"},
                ],
            ),
        ]
    )
    chain = prompt | llm
    document = {
        "data": base64.b64encode(Path(file).read_bytes()).decode(),
        "kind": mimetypes.guess_type(file)[0] or "text/plain",
    }
    for question in questions:
        started = time.perf_counter()
        answer = chain.invoke({**document, "question": question})
        tokens = answer.usage_metadata["input_token_details"]
        print(f"\n{question}\n{answer.text}")
        for citation in answer.content_blocks[0].get("annotations", []) if answer.content_blocks else []:
            place = citation["extras"]
            print(f"  page {place['page']} (printed {place.get('page_label')}): {citation['cited_text'].strip()}")
        print(f"  {tokens}, {time.perf_counter() - started:.0f} s")

    print(f"\n{questions[-1]} (streamed)")
    for piece in (chain | StrOutputParser()).stream({**document, "question": questions[-1]}):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(SAMPLE), sys.argv[2:] or QUESTIONS)
