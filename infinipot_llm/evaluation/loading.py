"""Questions from files: LongBench's JSON lines, SQuAD's JSON, and PDFs with a file of questions beside each.

set.jsonl               fields context, input, answers, all_classes, dataset, _id, length (LongBench's form)
set.json                SQuAD 1.1 or 2.0; questions without an answer are left out
folder/                 every NAME.questions.jsonl in it belongs to NAME.pdf, read as `infinipot read` does
NAME.pdf                one PDF with its NAME.questions.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import clean
from infinipot_llm.errors import BudgetError, DocumentError
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.tasks import TASKS

QUESTIONS = ".questions.jsonl"
BETWEEN = "\n\n"
"""Between two paragraphs that are joined."""


def load_cases(
    path: str | Path, *, task: str | None = None, limit: int | None = None, join: int | None = None
) -> list[Case]:
    """Load questions, their contexts and their right answers.

    Cases are grouped for the intervals by context (LongBench), by article (SQuAD), and by page where the question
    names one, or else each alone (PDFs: intervals then speak of further questions on these documents).

    Args:
        path: A file or folder of one of the forms above.
        task: Name of the task; None: what each line of LongBench's form says, and "qa" for the others.
        limit: Most cases, drawn evenly over contexts and within them, the same in every run. None: all.
        join: Of SQuAD: join paragraphs, in order, to contexts of about so many characters, so that several questions
            share one. None: every paragraph is a context.

    Raises:
        DocumentError: A file cannot be read, is not of its form, or holds no questions; the sentence names the line.
        BudgetError: Task, limit or join is out of range.
    """
    path = Path(path)
    if task is not None and task not in TASKS:
        raise BudgetError(f"there is no task {task!r}: give one of {', '.join(TASKS)}.")
    for name, value in (("limit", limit), ("join", join)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise BudgetError(f"{name} is {value!r}: give a whole number of at least 1.")
    if path.is_dir() or path.suffix.lower() == ".pdf":
        if join is not None:
            raise BudgetError(f"{path} is no SQuAD file, whose paragraphs alone can be joined: leave out join.")
        cases = _of_pdfs(path, task or "qa")
    else:
        cases = _of_file(path, task, join)
    if not cases:
        raise DocumentError(f"{path} holds no questions with answers: there is nothing to ask.")
    seen: set[str] = set()
    for case in cases:
        if case.key in seen:
            raise DocumentError(f"{path} has two questions of the name {case.key!r}: give each a name of its own.")
        seen.add(case.key)
    return cases if limit is None else _drawn(cases, limit)


def load_prompts(path: str | Path) -> dict[str, str]:
    """Load prompts by task, as LongBench's file `dataset2prompt.json` has them.

    Raises:
        DocumentError: The file cannot be read, or is not a JSON object of texts.
    """
    prompts = _json(_text(Path(path)), f"{path}")
    if not isinstance(prompts, dict) or not prompts or not all(isinstance(text, str) for text in prompts.values()):
        raise DocumentError(f"{path} holds no prompts: it must be a JSON object of task names and texts.")
    return prompts


def _of_file(path: Path, task: str | None, join: int | None) -> list[Case]:
    text = _text(path)
    if path.suffix.lower() == ".json":
        return _of_squad(_json(text, f"{path}"), f"{path}", task or "qa", join)
    if join is not None:
        raise BudgetError(f"{path} is no SQuAD file (.json), whose paragraphs alone can be joined: leave out join.")
    return [_longbench_case(row, where, number, task) for row, where, number in _rows(text, f"{path}")]


def _longbench_case(row: dict[str, Any], where: str, number: int, task: str | None) -> Case:
    context = _readable(row, "context", where)
    question = _readable(row, "input", where, may_be_empty=True)
    answers = _strings(row, "answers", where)
    name = task or _string(row, "dataset", where).removesuffix("_e")
    if name not in TASKS:
        raise DocumentError(f"{where}: the task {name!r} is unknown; name one of {', '.join(TASKS)} in its place.")
    classes = _strings(row, "all_classes", where) if row.get("all_classes") else ()
    if TASKS[name].metric == "classification" and not classes:
        raise DocumentError(f"{where}: the field all_classes, all labels there are, is missing, which {name} needs.")
    if not question.strip() and not TASKS[name].asks:
        raise DocumentError(f"{where}: the field input is empty, and {name} needs a question.")
    own = row.get("_id") or number
    facts = {"length": row["length"]} if isinstance(row.get("length"), int) else {}
    group = hashlib.sha256(context.encode()).hexdigest()[:16]
    return Case(f"{name}:{own}", context, question, answers, name, group, classes, facts)


def _of_squad(data: Any, where: str, task: str, join: int | None) -> list[Case]:
    """Return the questions of a SQuAD file in order; what is joined crosses the borders of articles."""
    paragraphs: list[tuple[str, list[tuple[str, str, str, tuple[str, ...]]]]] = []
    for a, article in enumerate(_items(data, "data", where)):
        at = f"{where}: data[{a}]"
        for p, paragraph in enumerate(_items(article, "paragraphs", at)):
            here = f"{at}.paragraphs[{p}]"
            asked = []
            for q, row in enumerate(_items(paragraph, "qas", here)):
                place = f"{here}.qas[{q}]"
                question = _readable(row, "question", place)
                answers = [_string(answer, "text", place) for answer in _items(row, "answers", place)]
                if answers and not row.get("is_impossible"):
                    own = str(row.get("id") or f"{a}.{p}.{q}")
                    asked.append((own, f"a{a}", question, tuple(dict.fromkeys(answers))))
            paragraphs.append((_readable(paragraph, "context", here), asked))
    cases = []
    for number, document in enumerate(_joined(paragraphs, join)):
        context = BETWEEN.join(text for text, _ in document)
        facts = {"document": number, "characters": len(context)}
        for _, asked in document:
            for own, group, question, answers in asked:
                key = own if join is None else f"{own}@{join}"  # another context, another case
                cases.append(Case(key, context, question, answers, task, group, facts=dict(facts)))
    return cases


def _joined(paragraphs: Sequence[tuple[str, Any]], characters: int | None) -> list[list[tuple[str, Any]]]:
    """Cut a row of paragraphs into documents of at least so many characters; a short rest joins the last one."""
    documents: list[list[tuple[str, Any]]] = []
    size = 0
    for paragraph in paragraphs:
        if not documents or characters is None or size >= characters:
            documents.append([])
            size = 0
        size += len(paragraph[0]) + (len(BETWEEN) if documents[-1] else 0)
        documents[-1].append(paragraph)
    if characters is not None and len(documents) > 1 and size < characters / 2:
        rest = documents.pop()
        documents[-1] += rest
    return documents


def _of_pdfs(path: Path, task: str) -> list[Case]:
    """Return the questions on every PDF of a folder that has some, or on one PDF."""
    if path.is_dir():
        files = sorted(path.glob(f"*{QUESTIONS}"))
        if not files:
            raise DocumentError(f"{path} holds no questions: put NAME{QUESTIONS} beside every NAME.pdf.")
    else:
        files = [path.with_name(path.name[: -len(".pdf")] + QUESTIONS)]
    cases = []
    for file in files:
        name = file.name.removesuffix(QUESTIONS)
        pdf = next((p for p in (file.with_name(name + end) for end in (".pdf", ".PDF")) if p.exists()), None)
        if pdf is None:
            raise DocumentError(f"{file} has no {name}.pdf beside it: rename or remove one of the two.")
        rows = list(_rows(_text(file), f"{file}"))
        document = Document.from_file(pdf)
        for row, where, number in rows:
            cases.append(_pdf_case(row, where, f"{name}:{number}", document, name, task))
    return cases


def _pdf_case(row: dict[str, Any], where: str, key: str, document: Document, name: str, task: str) -> Case:
    question = _readable(row, "question", where)
    several = "answers" in row or "answer" not in row
    answers = _strings(row, "answers", where) if several else (_string(row, "answer", where),)
    page = row.get("page")
    if page is not None and (isinstance(page, bool) or not isinstance(page, int) or page not in _pages(document)):
        raise DocumentError(f"{where}: the page {page!r} is none of {document.name}, which has {document.page_count}.")
    facts = {"document": name} if page is None else {"document": name, "page": page}
    group = key if page is None else f"{name} p. {page}"
    return Case(key, document.text, question, answers, task, group, facts=facts)


def _pages(document: Document) -> range:
    return range(1, document.page_count + 1)


def _text(path: Path) -> str:
    """Read a file of text.

    Raises:
        DocumentError: It cannot be read, is empty or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DocumentError(f"{path} does not exist: check the path.") from None
    except UnicodeDecodeError:
        raise DocumentError(f"{path} is no text in UTF-8: unpack or convert it first.") from None
    except (OSError, ValueError) as error:
        raise DocumentError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not text.strip():
        raise DocumentError(f"{path} is empty: there is nothing to ask in it.")
    return text


def _rows(text: str, where: str) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Yield the object, the place in words and the number, from 1, of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028 inside of texts
        if line.strip():
            place = f"{where}, line {number}"
            row = _json(line, place)
            if not isinstance(row, dict):
                raise DocumentError(f"{place}: this is no JSON object; every line must be one, in braces.")
            yield row, place, number


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise DocumentError(f"{where}{line}: this is no JSON ({error.msg}, column {error.colno}).") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise DocumentError(f"{where}: this JSON is beyond what can be read; is it the right file?") from None


def _string(row: Any, field: str, where: str, *, may_be_empty: bool = False) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise DocumentError(f"{where}: the field {field} is missing or no text.")
    if not may_be_empty and not value.strip():
        raise DocumentError(f"{where}: the field {field} is empty.")
    return value


def _readable(row: Any, field: str, where: str, *, may_be_empty: bool = False) -> str:
    """Return a text as documents and questions are read: clean, so that no part of it stops a run half-way."""
    value = clean(_string(row, field, where, may_be_empty=may_be_empty))
    if not may_be_empty and not value.strip():
        raise DocumentError(f"{where}: the field {field} is empty but for characters that are not read.")
    return value


def _strings(row: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = row.get(field)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or not any(v.strip() for v in value):
        raise DocumentError(f"{where}: the field {field} is missing or no list of texts.")
    return tuple(dict.fromkeys(value))


def _items(row: Any, field: str, where: str) -> list[Any]:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, list):
        raise DocumentError(f"{where}: the field {field} is missing or no list; is this a file of SQuAD's form?")
    return value


def _drawn(cases: Sequence[Case], limit: int) -> list[Case]:
    """Choose so many cases: as equally many of each context as there are, evenly spaced in it, in their order."""
    by_context: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        by_context.setdefault(case.context, []).append(index)
    groups = list(by_context.values())
    taken = [0] * len(groups)
    left = min(limit, len(cases))
    while left:
        open_groups = [g for g, members in enumerate(groups) if taken[g] < len(members)]
        round_ = open_groups if left >= len(open_groups) else _spread(open_groups, left)
        for g in round_:
            taken[g] += 1
        left -= len(round_)
    chosen = [index for members, many in zip(groups, taken, strict=True) for index in _spread(members, many)]
    return [cases[index] for index in sorted(chosen)]


def _spread(items: Sequence[int], many: int) -> list[int]:
    """Return so many of the items, evenly spaced from the first on."""
    return [items[i * len(items) // many] for i in range(many)]
