"""What is asked and how: prompt, length of the answer and metric of each task; LongBench's English ones and ours.

Figures are comparable with published ones only with LongBench's own prompts, which are not copied here: give its file
`dataset2prompt.json` (see `loading.load_prompts`). Without it, prompts in our own words are used.

What else differs from LongBench: samsum's answers may be empty (there, at least one token is generated), and text of
the prompt, context and input are tokenised each on its own, so that a control token cannot come from a document.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

from infinipot_llm.answering.prompt import Prompt, PromptForm, leading_ids, rendered
from infinipot_llm.errors import ModelError, QuestionError
from infinipot_llm.evaluation.cases import Case
from infinipot_llm.evaluation.metrics import Metric

_CONTEXT = "<<context 5f0c>>"
_INPUT = "<<input 5f0c>>"

_ANSWER_BRIEFLY = (
    "Text:\n{context}\n\nUsing only the text above, answer in a few words and without explanation.\n\n"
    "Question: {input}\nAnswer:"
)
_ANSWER_ON_PAPER = (
    "Scientific article:\n{context}\n\nUsing only the article above, answer as briefly as you can: with words of the "
    'article, with "yes" or "no", or with "unanswerable" where the article does not tell.\n\n'
    "Question: {input}\nAnswer:"
)
_SUMMARISE_REPORT = "Report:\n{context}\n\nSummarise the report above on one page.\n\nSummary:"
_SUMMARISE_NEWS = "News articles:\n{context}\n\nSummarise all of the articles above on one page.\n\nSummary:"
_ASK_MEETING = (
    "Minutes of a meeting:\n{context}\n\nUsing only the minutes above, answer in one or more sentences.\n\n"
    "Request: {input}\nAnswer:"
)
_TYPE_OF_QUESTION = "Questions, each followed by its type; tell the type of the last one.\n\n{context}\n{input}"
_LIKE_EXAMPLES = "Passages with questions and their answers; answer the last one.\n\n{context}\n\n{input}"
_DIALOGUES = "Dialogues, each followed by its summary; summarise the last one.\n\n{context}\n\n{input}"
_COUNT = (
    "Paragraphs, some of which stand here more than once:\n\n{context}\n\n"
    "How many different paragraphs are there? Answer with the number alone.\n\nNumber:"
)
_FIND = (
    "Paragraphs:\n\n{context}\n\nA summary of one of them:\n\n{input}\n\n"
    'Which paragraph is it? Answer with its heading alone, for example "Paragraph 7".\n\nHeading:'
)
_NEXT_LINE = "The next line of this program is wanted.\n{context}The next line:\n"
_NEXT_LINE_OF_FILE = "The next line of this program is wanted.\n{context}{input}The next line:\n"


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of question.

    Attributes:
        name: As LongBench calls it, or "qa" for ours.
        metric: What answers are scored by.
        max_new_tokens: Longest answer.
        prompt: Our wording, with the fields {context} and {input}; None: the model's own `PromptForm`.
        asks: What is asked where a case has no question of its own; passages are looked for with it.
        chat: Whether the prompt is a turn of the user's, by the model's chat template, or plain text to go on from.
        first_line: Whether only the first line of an answer is scored.
        stop: Texts that end an answer.
        also: Further metrics that are reported.
    """

    name: str
    metric: Metric
    max_new_tokens: int
    prompt: str | None
    asks: str = ""
    chat: bool = True
    first_line: bool = False
    stop: tuple[str, ...] = ()
    also: tuple[Metric, ...] = ()

    def prompt_for(self, form: PromptForm, case: Case, template: str | None = None) -> Prompt:
        """Return the tokens around a case's context.

        Args:
            form: The model's way of putting questions.
            case: What is asked.
            template: A prompt of LongBench's form, with {context} once and {input}: trusted text, in which control
                tokens are control tokens, as opposed to context and input. None: our wording.

        Raises:
            QuestionError: The template cannot be used, or there is nothing to ask.
            ModelError: The model's chat template does not keep what a user says.
        """
        asked = case.question if case.question.strip() else self.asks
        query = tuple(form.question(asked))
        wording = self.prompt if template is None else template
        if wording is None:
            return Prompt(form.prefix, query, query, asked.strip())
        turn = _with_places(wording, self.name)
        tokenizer = form.codec.tokenizer
        if self.chat and form.chat:
            whole, first = _user_turn(tokenizer, turn), []
        else:
            whole, first = turn, leading_ids(tokenizer)
        before, _, behind = whole.partition(_CONTEXT)
        if whole.count(_CONTEXT) != 1 or whole.count(_INPUT) != turn.count(_INPUT):
            raise ModelError(
                "this model's chat template does not keep the user's text as it is: it cannot be used here."
            )
        question = _tokens(form, behind, case.question)
        if not question:
            raise QuestionError(
                f"the prompt of {self.name} ends with the context: put what is asked behind {{context}}, as {{input}}."
            )
        return Prompt((*first, *_tokens(form, before, case.question)), tuple(question), query, asked.strip())


def _with_places(template: str, name: str) -> str:
    """Fill a template of str.format's form with marks for its fields.

    Raises:
        QuestionError: It has other fields, lacks {context}, has it twice, or is no template.
    """
    text = ""
    try:
        for literal, field, spec, conversion in string.Formatter().parse(template):
            text += literal
            if field is None:
                continue
            if field not in ("context", "input") or spec or conversion:
                raise QuestionError(
                    f"the prompt of {name} has a field {{{field}}}: only {{context}} and {{input}} are known, and "
                    "braces that stand for themselves are doubled."
                )
            text += _CONTEXT if field == "context" else _INPUT
    except QuestionError:
        raise
    except ValueError as error:
        raise QuestionError(f"the prompt of {name} is no template ({error}): check its braces.") from error
    times = text.count(_CONTEXT)
    if times != 1:
        how = "lacks {context}" if not times else f"has {{context}} {times} times"
        raise QuestionError(f"the prompt of {name} {how}: it must stand there once, where the document goes.")
    return text


def _user_turn(tokenizer: Any, turn: str) -> str:
    """Render one turn of the user's and the start of the answer, without a system message of ours.

    Raises:
        ModelError: The chat template refuses it.
    """
    try:
        return rendered(tokenizer, [{"role": "user", "content": turn}])
    except Exception as error:  # templates raise whatever their author chose
        raise ModelError(f"this model's chat template does not take a question alone: {error}.") from error


def _tokens(form: PromptForm, trusted: str, question: str) -> list[int]:
    """Return the tokens of a piece of prompt, with the question, as untrusted text, where its mark stands."""
    ids: list[int] = []
    for number, piece in enumerate(trusted.split(_INPUT)):
        ids += form.codec.untrusted(question) if number else []
        ids += form.codec.trusted(piece) if piece else []
    return ids


def _qa(name: str, max_new_tokens: int, prompt: str = _ANSWER_BRIEFLY) -> Task:
    return Task(name, "token_f1", max_new_tokens, prompt)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("qa", "contains", 48, None, also=("token_f1",)),
        _qa("narrativeqa", 128),
        _qa("qasper", 128, _ANSWER_ON_PAPER),
        _qa("multifieldqa_en", 64),
        _qa("hotpotqa", 32),
        _qa("2wikimqa", 32),
        _qa("musique", 32),
        Task("gov_report", "rouge_l", 512, _SUMMARISE_REPORT, "Summarise the report."),
        Task("qmsum", "rouge_l", 512, _ASK_MEETING),
        Task("multi_news", "rouge_l", 512, _SUMMARISE_NEWS, "Summarise the articles."),
        Task("trec", "classification", 64, _TYPE_OF_QUESTION, chat=False, first_line=True),
        Task("triviaqa", "token_f1", 32, _LIKE_EXAMPLES, chat=False, first_line=True),
        Task("samsum", "rouge_l", 128, _DIALOGUES, chat=False, first_line=True, stop=("\n",)),
        Task("passage_count", "count", 32, _COUNT, "How many different paragraphs are there?"),
        Task("passage_retrieval_en", "retrieval", 32, _FIND),
        Task("lcc", "code_similarity", 64, _NEXT_LINE, "Which line comes next?", chat=False),
        Task("repobench-p", "code_similarity", 64, _NEXT_LINE_OF_FILE, "Which line comes next?", chat=False),
    )
}
"""All tasks by name. Lengths, metrics, and where no chat template is used, are those of LongBench."""
