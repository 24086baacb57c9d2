"""What commands that compare arms share: their options, a run with its clock, and what is written of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infinipot_llm.cli.opening import load_engine
from infinipot_llm.cli.options import make_config
from infinipot_llm.models.catalogue import DEFAULT_MODEL
from infinipot_llm.progress import EVERY, duration

if TYPE_CHECKING:
    from infinipot_llm.answering.prompt import Prompt, PromptForm
    from infinipot_llm.engine import InfiniPot
    from infinipot_llm.evaluation.arms import Arm
    from infinipot_llm.evaluation.cases import Case
    from infinipot_llm.evaluation.rows import Row, Rows
    from infinipot_llm.evaluation.runs import Reading, Step


def arm_options(policies: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of every command that compares arms; those named here are compared by default."""
    options = (
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="Folder for results; it is made if need be."
        ),
        click.option("--hidden", is_flag=True, help="Read without knowing the question."),
        click.option("--base", help="The arm that others are compared with.  [default: full, or the first]"),
        click.option("--budget", type=int, default=2048, show_default=True, help="Slots of the cache, in tokens."),
        click.option(
            "--policies",
            default=policies,
            show_default=True,
            help="What keeps the cache small: policies, own:POLICY as its authors run it, full, recall; with settings, "
            "as in infinipot:kept=0.25:neighbours=8.",
        ),
    )

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            command = option(command)
        return command

    return added


def listed(text: str, option: str) -> list[str]:
    """Split the value of an option at its commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise click.UsageError(f"{option} is {text!r}: give values with commas between them.")
    if doubled := [part for part in parts if parts.count(part) > 1]:
        raise click.UsageError(f"{option} names {doubled[0]} twice.")
    return parts


def parse_length(text: str) -> int:
    """Return the tokens that a length names: 4k are 4,096."""
    found = re.fullmatch(r"([0-9]{1,9})([kKmM]?)", text)
    if not found or not int(found[1]):
        raise click.UsageError(f"the length {text!r} is no number of tokens: give for example 6000, 8k or 1m.")
    return int(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[found[2].lower()]


def parse_depth(text: str) -> int:
    """Return a depth in percent."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 100:
        raise click.UsageError(f"the depth {text!r} is no percentage: give whole numbers from 0 to 100.")
    return int(text)


def parse_arms(options: dict[str, Any], more: Iterable[str] = ()) -> list[Arm]:
    """Return the arms that --policies names, and more, and check --base against them."""
    names = dict.fromkeys([*listed(options["policies"], "--policies"), *more])
    base = options["base"]
    if base is not None and base not in names:
        raise click.UsageError(f"--base is {base!r}, which is none of the arms: choose one of {', '.join(names)}.")
    from infinipot_llm.evaluation.arms import parse_arm

    return [parse_arm(name) for name in names]


def open_rows(folder: Path, name: str) -> Rows:
    """Open the rows in a folder that may not be there yet, and say what is wrong with them."""
    from infinipot_llm.evaluation.rows import Rows

    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise click.UsageError(f"--out is no folder that there could be ({error.strerror}): give another.") from error
    if not there.is_dir():
        raise click.UsageError(f"--out is {folder}, and {there} is a file: give a folder.")
    if not os.access(there, os.W_OK):
        raise click.UsageError(f"--out is {folder}, and nothing can be written in {there}: give another folder.")
    rows = Rows(folder / name)
    if rows.dropped:
        click.echo(f"infinipot: note: the last line of {rows.path} is torn; it is dropped and run again", err=True)
    return rows


def load(options: dict[str, Any], arms: Sequence[Arm], max_new_tokens: int) -> InfiniPot:
    """Load the model; there is a shelf only for the arm that needs one."""
    shelf = "keys" if any(arm.recalls for arm in arms) else "off"
    made: InfiniPot = load_engine(options, make_config({**options, "shelf": shelf}, max_new_tokens=max_new_tokens))
    return made


def describe(llm: InfiniPot, options: dict[str, Any]) -> str:
    """Return in a few words what was measured on."""
    known = "question hidden while reading" if options["hidden"] else "question known while reading"
    dtype = str(llm.adapter.dtype).removeprefix("torch.")
    return f"{model_name(options)}, {dtype}, budget {llm.config.budget:,}, {known}"


def model_name(options: dict[str, Any]) -> str:
    """Return what a model is called, without the folders it lies in."""
    model = options["model"] or DEFAULT_MODEL
    return Path(model).resolve().name if Path(model).is_dir() else model


def report(path: Path, about: str, rows: Sequence[Row], base: str | None, more: Sequence[str] = ()) -> None:
    """Print the tables of a run, and write them to a file, beside those of other runs."""
    from infinipot_llm.evaluation.tables import NOTE, summary

    tables = [summary(rows, base)]
    for name in dict.fromkeys(name for row in rows for name in list(row.get("scores", {}))[1:]):
        tables.append(summary([row for row in rows if name in row.get("scores", {})], base, score=name))
    write_report(path, f"{about}; run {run_name(rows, base)}", f"{NOTE}\n\n" + "\n".join([*tables, *more]))


def run_name(rows: Sequence[Row], base: str | None = None) -> str:
    """Return 8 hex digits that stand for a run: the same settings, arms, cases and base have the same."""
    from infinipot_llm.evaluation.rows import IDENTITY, digest

    return digest({"rows": [[row[name] for name in IDENTITY] for row in rows], "base": base})[:8]


def write_report(path: Path, heading: str, text: str) -> None:
    """Print what a run came to, and write it to a file, in place of what stands there under this heading."""
    from infinipot_llm.errors import StoreError

    click.echo(text)
    first = f"# {' '.join(heading.split())}"
    draft = path.with_name(f"{path.name}.new")  # whoever stops this loses no other report
    try:
        there = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
        sections = [part for part in re.split(r"(?m)^(?=# )", there) if part.strip()]
        others = [part.strip() for part in sections if part.splitlines()[0] != first]
        whole = "\n\n".join([*others, f"{first}\n\n{text.strip()}"]) + "\n"
        draft.write_bytes(whole.encode("utf-8", "surrogateescape"))
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}): give another place.") from error


class Questions:
    """The questions of a data set, with their prompts."""

    def __init__(self, data: Path, task: str | None, prompts: Path | None, limit: int | None, join: int | None) -> None:
        """Read a data set, and say what is wrong with it before a model is loaded.

        Args:
            data: A file or a folder; see evaluation/loading.py.
            task: Task of all questions.
            prompts: LongBench's dataset2prompt.json, or a file like it.
            limit: Most questions.
            join: SQuAD: characters of a context.
        """
        from infinipot_llm.evaluation.loading import load_cases, load_prompts
        from infinipot_llm.evaluation.metrics import scores
        from infinipot_llm.evaluation.tasks import TASKS

        self.name = data.name
        known = {} if prompts is None else load_prompts(prompts)
        self.cases = [marked(case) for case in load_cases(data, task=task, limit=limit, join=join)]
        self._firsts = {case.task: case for case in reversed(self.cases)}
        if prompts is not None and (missing := [name for name in self._firsts if name not in known]):
            raise click.UsageError(f"{prompts} has no prompt for {missing[0]}: add it, or leave out --prompts.")
        for name, case in self._firsts.items():
            scores(TASKS[name], "x", case)  # says what a metric lacks
        self.templates = {name: known.get(name) for name in self._firsts}
        self.max_new_tokens = max(TASKS[name].max_new_tokens for name in self._firsts)

    def shown_first(self, case: Case) -> bool:
        """Whether the prompt of a case shows the question before the context."""
        template = self.templates.get(case.task)
        return template is not None and "{input}" in template.partition("{context}")[0]

    def check_hidden(self) -> None:
        """Refuse prompts that show the question before the context, where it is to be hidden while that is read."""
        for name, case in self._firsts.items():
            if self.shown_first(case):
                raise click.UsageError(
                    f"the prompt of {name} has {{input}} before {{context}}, which shows the question while reading: "
                    "put it behind, or leave out --hidden."
                )

    def prompts(self, form: PromptForm) -> Callable[[Case], Prompt]:
        """Return what makes the prompt of a case, tried on one case of each task."""
        from infinipot_llm.evaluation.tasks import TASKS

        def prompt_for(case: Case) -> Prompt:
            return TASKS[case.task].prompt_for(form, case, self.templates.get(case.task))

        for case in self._firsts.values():
            prompt_for(case)
        return prompt_for

    def asked(self, form: PromptForm) -> dict[str, Any]:
        """Return how the questions are asked and scored, as `runs.run` takes it."""
        from infinipot_llm.evaluation.metrics import scores
        from infinipot_llm.evaluation.tasks import TASKS

        return {
            "prompt_for": self.prompts(form),
            "score": lambda case, answer: scores(TASKS[case.task], answer, case),
            "max_new_tokens": lambda case: TASKS[case.task].max_new_tokens,
            "stop": lambda case: TASKS[case.task].stop,
            "shown_first": self.shown_first,
        }


@dataclass
class Bench:
    """A run of cases through arms, with lines on standard error.

    Attributes:
        llm: The model.
        arms: Who is asked.
        rows: Where results go.
        options: Of the command.
        prompts: What else decides an answer: templates by task.
    """

    llm: InfiniPot
    arms: Sequence[Arm]
    rows: Rows
    options: dict[str, Any]
    prompts: dict[str, str | None] | None = None

    def settings(self) -> dict[str, Any]:
        """Return everything beside arm, case and `hidden` that decides an answer, as plain JSON values."""
        from importlib.metadata import version

        from infinipot_llm import __version__
        from infinipot_llm.evaluation.runs import sources_digest
        from infinipot_llm.memory.saved import fingerprints

        config = {k: v for k, v in self.llm.config.to_dict().items() if k not in ("shelf", "policy")}  # arms' own
        return {
            "model": model_name(self.options),
            "dtype": str(self.llm.adapter.dtype).removeprefix("torch."),
            "device": self.llm.adapter.device.type,
            "budget": self.llm.config.budget,
            "config": config,
            "fingerprints": fingerprints(self.llm.adapter, self.llm.form),
            "heads": self.llm.heads.to_dict(),
            "prompts": self.prompts,
            "release": __version__,
            "sources": sources_digest(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "bm25s")},
        }

    def run(self, cases: Sequence[Case], **how: Any) -> list[Row]:
        """Say how much there is to do, do what was not done before, and return all rows.

        Args:
            cases: What is asked.
            **how: As `runs.run` takes it.
        """
        from infinipot_llm.evaluation.arms import Examinee
        from infinipot_llm.evaluation.runs import plan_readings, run

        settings, hidden = self.settings(), bool(self.options["hidden"])
        counts: dict[str, int] = {}
        for case in cases:
            if case.context not in counts:
                counts[case.context] = case.facts.get("tokens") or len(self.llm.form.codec.untrusted(case.context))
        left = plan_readings(cases, self.arms, self.rows, settings, hidden=hidden)
        clock = Clock(left, counts)
        asked = sum(len(reading.cases) for reading in left)
        before = len(cases) * len(self.arms) - asked
        click.echo(
            f"infinipot: {asked} answers to give, for which {len(left)} contexts are read, {clock.tokens:,} tokens in "
            f"all" + (f"; {before} were given before" if before else ""),
            err=True,
        )
        _make(self.options["out"])
        try:
            return run(
                Examinee(self.llm), cases, self.arms, self.rows, settings=settings, hidden=hidden, progress=clock, **how
            )
        except KeyboardInterrupt:
            click.echo(f"\ninfinipot: {self.rows.path} keeps what is done; the same command goes on there", err=True)
            raise

    def count_hits(self, cases: Sequence[Case], prompt_for: Callable[[Case], Prompt]) -> list[Row]:
        """Count hits for every case and arm that has no row yet, and return all rows.

        An arm whose budget is too small, and a context that the model cannot read at once, leave rows with the reason
        in `refused`.
        """
        from infinipot_llm.errors import BudgetError
        from infinipot_llm.evaluation.hits import hit_rates
        from infinipot_llm.evaluation.runs import settings_digest

        settings = self.settings()
        which = settings_digest(settings, hidden=False)
        _make(self.options["out"])
        for number, case in enumerate(cases, start=1):
            left = [arm for arm in self.arms if self.rows.find(arm.name, case.key, which) is None]
            if not left:
                continue
            prompt = prompt_for(case)
            reserve = max(self.llm.config.question_tokens, len(prompt.behind)) + self.llm.config.max_new_tokens
            about = {"task": "hit-rate", "group": case.group, "facts": case.facts}
            about |= {name: settings[name] for name in ("model", "dtype", "budget")}
            try:
                found = hit_rates(self.llm, left, case.context, prompt, reserve)
                values: dict[str, dict[str, Any]] = {
                    name: {"refused": cycles} if isinstance(cycles, str) else {"hits": [asdict(h) for h in cycles]}
                    for name, cycles in found.items()
                }
            except BudgetError as error:
                values = {arm.name: {"refused": str(error)} for arm in left}
            for name, value in values.items():
                self.rows.add({"arm": name, "key": case.key, "settings": which, **about, **value})
            click.echo(f"infinipot: {number} of {len(cases)} contexts", err=True)
        found_rows = (self.rows.find(arm.name, case.key, which) for arm in self.arms for case in cases)
        return [row for row in found_rows if row is not None]


class Clock:
    """Estimates the time that is left from what reading and answering took so far, and says it now and then."""

    def __init__(self, readings: Sequence[Reading], counts: dict[str, int], every: float = EVERY) -> None:
        """Take what is to be read.

        Args:
            readings: All of the run.
            counts: Tokens of every context.
            every: Seconds between two lines.
        """
        self.tokens = sum(counts[reading.cases[0].context] for reading in readings)
        self._counts = counts
        self._every = every
        self._left = self.tokens
        self._read = self._reading = self._answering = 0.0
        self._answers = 0
        self._last: tuple[Reading | None, float] = (None, float("-inf"))

    def __call__(self, step: Step) -> None:
        """Take note of a step; print a line after the first and then every `every` seconds."""
        reading, said = self._last
        if step.reading is not reading:
            count = self._counts[step.reading.cases[0].context]
            self._left -= count
            self._read += 0 if "refused" in step.row else count
        self._reading += step.row.get("read_seconds", 0.0)
        self._answering += step.row.get("answer_seconds", 0.0)
        self._answers += "refused" not in step.row
        now = time.monotonic()
        if step.done < step.total and now - said >= self._every:
            said = now
            estimate = self.estimate(step.total - step.done)
            left = "" if estimate is None else f", about {duration(estimate)} left"
            click.echo(f"infinipot: {step.done} of {step.total} answers{left}", err=True)
        self._last = (step.reading, said)

    def estimate(self, answers: int) -> float | None:
        """Return the seconds that so many answers and what is still to be read will take, or None before any."""
        if not self._answers:
            return None
        return self._left * self._reading / max(1.0, self._read) + answers * self._answering / self._answers


def _make(folder: Path) -> None:
    from infinipot_llm.errors import StoreError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}): give another --out.") from error


def marked(case: Case) -> Case:
    """Return a case whose key also tells it from cases of the same name in other data."""
    import hashlib

    text = "\0".join((case.context, case.question, *case.references, *case.classes))
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return replace(case, key=f"{case.key}-{mark}")
