r"""EleutherAI's lm-evaluation-harness, with a pot instead of a full cache: its model "infinipot".

The harness loads no models of others by name, so it is started through this module, with its own command line:

    pip install "infinipot-llm[eval]" lm-eval
    python -m infinipot_llm.evaluation.lm_eval run --model infinipot \
        --model_args model=qwen2.5-coder-0.5b,budget=4096,arm=infinipot \
        --tasks longbench_hotpotqa --apply_chat_template --limit 50

or from Python, after `import infinipot_llm.evaluation.lm_eval`, as `lm_eval.simple_evaluate(model="infinipot", ...)`.
Tasks of one's own are given with --include_path, as always.

--model_args, beside the fields of PotConfig (`kept`, `chunk`, ...):

    model           a name of the catalogue, a folder or a hub id
    budget          slots per layer and KV head
    arm             who decides what is kept: "infinipot", "streaming", "own:snapkv", "full", "recall", ... (arms.py)
    question_from   text that the question begins with, e.g. question_from=Question:
    hidden          True: the question is not known while reading
    device, dtype   as in InfiniPot.from_pretrained; the harness's own default, --device cuda:0, means "auto"

A request of the harness is one text, of which a pot must know what is document and what is question. Where
`question_from` is given, the question begins where that text stands last. Otherwise only the last 2,000 characters are
looked at, and it is the shortest end of the request that begins with a paragraph and holds at least 4 words; where
there is none, that begins with a line and holds as many; where there is none, the longest that begins with a line; and
of a single line, the longest that begins with a word. With a chat template, document and question are parts of the
last message of the user; what stands before it (examples as turns of their own) is never dropped, and counts in the
budget.

Decoding is greedy, one request at a time; the lengths of all requests are checked before the first is read. Only tasks
that generate text can be run: a likelihood (`loglikelihood`, multiple choice, perplexity) is that of a whole request,
and is refused.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from infinipot_llm.errors import BudgetError, InfiniPotError, ModelError, QuestionError

try:
    # The harness registers its own models only where no other was before.
    import lm_eval.models  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    from lm_eval.api.model import LM  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from lm_eval.api.registry import register_model  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from tqdm import tqdm
except ImportError as missing:
    _SENTENCE = f"the lm-evaluation-harness cannot be imported ({missing}): pip install lm-eval."
    if __name__ == "__main__":
        click.echo(f"Error: {_SENTENCE}", err=True)
        sys.exit(2)
    raise ModelError(_SENTENCE) from missing

from infinipot_llm.answering.prompt import Prompt, leading_ids
from infinipot_llm.documents import Document
from infinipot_llm.documents.clean import whole_characters
from infinipot_llm.engine import InfiniPot
from infinipot_llm.evaluation.arms import Examinee, parse_arm
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from infinipot_llm.pot.plan import plan
from infinipot_llm.pot.policies import make_policy

QUESTION_WORDS = 4
"""A question holds at least so many words: "Answer:" alone is none. A character of Chinese or Japanese is a word."""

QUESTION_CHARACTERS = 2000
"""The question is looked for in so many characters at the end of a request, unless `question_from` is given."""

ANSWER_TOKENS = 256
"""Longest answer where a task does not say, as in the harness."""

HARNESS_DEVICE = "cuda:0"
"""What the harness hands to a model where the user named no device, whatever the machine has."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_LINE = re.compile(r"^(?=[^\n]*\S)", re.M)
_PLACE = "<<message {} 5f0c>>"
_PLACES = re.compile(r"<<message (\d+) 5f0c>>")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first one given counts


def question_start(text: str, question_from: str | None = None) -> int:
    """Return the offset at which the question of a request begins, by the rule at the top of this file.

    White space between document and question belongs to the question.

    Args:
        text: A request, or the last message of one.
        question_from: Text that the question begins with; None: the last paragraphs.

    Raises:
        QuestionError: `question_from` is not there, or there is nothing before the question.
    """
    if question_from is not None:
        start = text.rfind(question_from)
        if start < 0 or not text[:start].strip():
            raise QuestionError(
                f"a request has no {question_from!r} with a document before it: choose another question_from."
            )
        return len(text[:start].rstrip())
    least = len(text) - QUESTION_CHARACTERS
    first = len(text) - len(text.lstrip())  # the question cannot begin with the first visible character
    lines = [m.start() for m in _LINE.finditer(text, max(least, first + 1, 0)) if m.start() > first]
    long_enough = [start for start in lines if len(_WORD.findall(text, start)) >= QUESTION_WORDS]
    paragraphs = [start for start in long_enough if text[len(text[:start].rstrip()) : start].count("\n") > 1]
    if lines:
        start = (paragraphs[-1:] or long_enough[-1:] or lines[:1])[0]
    else:  # one long line: from a word on
        words = [m.start() for m in re.finditer(r"(?<=\s)\S", text) if m.start() > first]
        if not words:
            raise QuestionError("a request is a single word, of which no part is a question: it cannot be asked here.")
        start = next((word for word in words if word >= least), words[-1])
    return len(text[:start].rstrip())


@register_model("infinipot")  # type: ignore[untyped-decorator,unused-ignore]
class InfiniPotLM(LM):  # type: ignore[misc,unused-ignore]
    """A local model that answers the harness's requests through a cache of fixed size."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        budget: int | None = None,
        arm: str = "infinipot",
        question_from: str | None = None,
        hidden: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **knobs: Any,
    ) -> None:
        """Load a model; the top of this file describes the arguments.

        Args:
            model: What to load.
            budget: Slots per layer and KV head.
            arm: Who decides what is kept.
            question_from: Text that the question of a request begins with.
            hidden: Whether the question is unknown while reading.
            device: Where to run.
            dtype: In which precision.
            batch_size: 1 or "auto": requests are answered one by one.
            max_batch_size: Of no effect: the harness hands it on.
            **knobs: Further fields of PotConfig.

        Raises:
            ModelError: The model cannot be used.
            BudgetError: An argument is out of range.
        """
        super().__init__()
        if str(batch_size) not in ("1", "auto"):
            raise BudgetError(f"batch_size is {batch_size!r}: requests are answered one by one, so give 1.")
        self._arm = parse_arm(arm)
        self._question_from = None if question_from is None else str(question_from)
        self._hidden = hidden
        device = "auto" if device == HARNESS_DEVICE else device
        if not self._arm.recalls:  # the only one that asks the shelf
            knobs.setdefault("shelf", "off")
        self._llm = InfiniPot.from_pretrained(str(model), budget=budget, device=device, dtype=dtype, **knobs)
        self._examinee = Examinee(self._llm)
        self._chat = False
        self._said: dict[str, list[tuple[int, int]]] = {}

    @property
    def tokenizer_name(self) -> str:
        """Name that the harness keeps rendered requests under."""
        return self._llm.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside the results."""
        adapter = self._llm.adapter
        return {
            "infinipot_model": self._llm.name,
            "infinipot_arm": self._arm.name,
            "infinipot_hidden": self._hidden,
            "infinipot_config": self._llm.config.to_dict(),
            "infinipot_dtype": str(adapter.dtype).removeprefix("torch."),
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's chat template where the harness wants to use it.

        Raises:
            ModelError: The model has none, or has several and another than its default is wanted.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise ModelError(f"the chat template {chat_template!r} cannot be chosen: give --apply_chat_template alone.")
        template = getattr(self._llm.form.codec.tokenizer, "chat_template", None)
        if not template:
            raise ModelError("this model has no chat template: leave out --apply_chat_template.")
        self._chat = True
        return str(template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages by the model's chat template, and note what of the result was said, and by the template.

        Args:
            chat_history: Messages with role and content.
            add_generation_prompt: Whether an answer begins behind them; otherwise the last message, which is the
                assistant's, goes on.

        Raises:
            ModelError: The chat template refuses the messages, or changes them.
        """
        self._chat = True
        texts = [message["content"] for message in chat_history]
        places = [{"role": m["role"], "content": _PLACE.format(i)} for i, m in enumerate(chat_history)]
        settings = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        tokenizer = self._llm.form.codec.tokenizer
        try:
            whole = str(tokenizer.apply_chat_template(places, tokenize=False, enable_thinking=False, **settings))
        except Exception as error:  # templates raise whatever their author chose
            raise ModelError(f"this model's chat template does not take these messages: {error}.") from error
        pieces = _PLACES.split(whole)
        if pieces[1::2] != [str(i) for i in range(len(texts))]:
            raise ModelError("this model's chat template does not keep messages as they are: it cannot be used here.")
        text, said = pieces[0], []
        for number, behind in zip(pieces[1::2], pieces[2::2], strict=True):
            start = len(text)
            text += texts[int(number)]
            said.append((start, len(text)))
            text += behind
        asked = max((i for i, m in enumerate(chat_history) if m["role"] == "user"), default=None)
        if asked is None:
            raise ModelError("a request has no message of the user: it cannot be asked here.")
        self._said[_digest(text)] = [said[asked], *said]
        return text

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer requests; those of one document are answered together, as it may then be read once.

        Args:
            requests: The harness's instances, whose `args` are the text and the settings of generating.
            disable_tqdm: Whether to show no progress.

        Raises:
            InfiniPotError: A request cannot be answered; the sentence says why.
        """
        parts = [self._parts(request.args[0]) for request in requests]
        settings = [_settings(request.args[1]) for request in requests]
        self._check_lengths([(*part, longest) for part, (longest, _) in zip(parts, settings, strict=True)])
        turns: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for index, (context, prompt) in enumerate(parts):
            turns.setdefault((context, prompt.before), []).append(index)
        order = [index for turn in turns.values() for index in turn]
        answers = [""] * len(requests)
        for index in tqdm(order, desc="Running generate_until requests", disable=disable_tqdm):
            (context, prompt), (longest, stop) = parts[index], settings[index]
            outcome = self._examinee.answer(
                self._arm, context, prompt, max_new_tokens=longest, stop=stop, hidden=self._hidden
            )
            answers[index] = outcome.text
            self.cache_hook.add_partial("generate_until", requests[index].args, outcome.text)
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "the model infinipot gives no likelihoods (multiple choice, loglikelihood): choose tasks that generate, "
            "with output_type generate_until."
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "the model infinipot gives no likelihoods (perplexity): choose tasks that generate, with output_type "
            "generate_until."
        )

    def _check_lengths(self, asked: Sequence[tuple[str, Prompt, int]]) -> None:
        """Refuse a run whose arm cannot read or answer one of the requests, before hours are spent on the others.

        Args:
            asked: Document, tokens around it and longest answer, of every request.

        Raises:
            BudgetError: A request is beyond the trained window, where everything is read at once, or beyond the budget.
        """
        arm, llm = self._arm, self._llm
        config = replace(llm.config, policy=arm.policy, **dict(arm.changes))
        known = arm.wants_question and not self._hidden
        catalyses = make_policy(config, known=known).needs.catalyst and arm.own is None and not arm.recalls
        lengths: dict[str, tuple[int, int]] = {}  # of a document, and of the longest generic question about it
        slots = []
        for context, prompt, longest in asked:
            if context not in lengths:
                document = Document.from_text(context)
                generic = llm.generic_questions([document]) if catalyses and not known else ()
                catalyst = max((len(llm.form.question(question)) for question in generic), default=0)
                lengths[context] = len(llm.form.codec.document([document])), catalyst
            tokens, catalyst = lengths[context]
            before, reserve = len(prompt.before), max(config.question_tokens, len(prompt.behind)) + longest
            slots.append(before + tokens + reserve)
            if arm.recalls and before + len(prompt.behind) + longest >= config.budget:
                raise BudgetError(
                    f"a question of {before + len(prompt.behind)} tokens and its answer of {longest} leave no room for "
                    f"passages in a budget of {config.budget}: choose a larger budget."
                )
            if arm.policy != "full" and not arm.recalls:
                asks = len(prompt.behind) if catalyses and known else catalyst
                plan(config, llm.adapter.window, tokens, before, asks, reserve)
        if (arm.policy == "full" or arm.own == "whole") and max(slots, default=0) > llm.adapter.window:
            beyond = sum(needed > llm.adapter.window for needed in slots)
            raise BudgetError(
                f"{arm.name} reads everything at once, and {beyond} of {len(slots)} requests are beyond the "
                f"{llm.adapter.window} positions that the model was trained on (the longest needs {max(slots)}): "
                "choose tasks with shorter documents, or an arm that drops while reading."
            )

    def _parts(self, text: str) -> tuple[str, Prompt]:
        """Divide a request into its document and the tokens around it."""
        form = self._llm.form
        if self._chat:
            noted = self._said.get(_digest(text))
            if noted is None:
                raise QuestionError(
                    "a request was not rendered by this run's chat template: leave out --cache_requests, and tasks "
                    "that change rendered requests."
                )
            (start, end), said = noted[0], noted[1:]
            before: list[int] = []
        else:
            start, end, said = 0, len(text), [(0, len(text))]
            before = leading_ids(form.codec.tokenizer)
        text = whole_characters(text)  # no tokenizer takes others
        cut = start + question_start(text[start:end], self._question_from)
        before += self._tokens(text, said, 0, start)
        behind = self._tokens(text, said, cut, len(text))
        question = text[cut:end].strip()
        return text[start:cut], Prompt(tuple(before), tuple(behind), tuple(form.question(question)), question)

    def _tokens(self, text: str, said: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
        """Return the tokens of text[start:end]; what was said never becomes a control token."""
        codec = self._llm.form.codec
        ids: list[int] = []
        for a, b in said:
            if (template := text[start : min(a, end)]) and start < a:
                ids += codec.trusted(template)
            if max(start, a) < min(b, end):
                ids += codec.untrusted(text[max(start, a) : min(b, end)])
            start = max(start, min(b, end))
        return ids + (codec.trusted(text[start:end]) if start < end else [])


def _settings(given: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the length of the longest answer and the texts that end it, of a request's settings.

    Raises:
        BudgetError: The settings ask for something else than greedy decoding, or for no answer.
    """
    temperature = float(given.get("temperature") or 0.0)
    if given.get("do_sample", temperature > 0) or int(given.get("num_beams") or 1) > 1:
        raise BudgetError("a task samples or searches, and arms are compared by greedy decoding: set do_sample: false.")
    longest = int(next((given[name] for name in _LENGTHS if given.get(name) is not None), ANSWER_TOKENS))
    if longest < 1:
        raise BudgetError(f"a task wants answers of {longest} tokens: give max_gen_toks of at least 1.")
    until = given.get("until") or ()
    return longest, tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def main() -> None:
    """Run the harness's own command line with the model "infinipot" in it."""
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found,import-untyped,unused-ignore]

    try:
        cli_evaluate()
    except InfiniPotError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
