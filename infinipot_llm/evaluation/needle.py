"""Needles: facts that stand at known depths of contexts of known lengths, and questions for them.

Hay and needles are generated (hay.py): nothing in them can have been learnt, and an answer is right or wrong by rule.

    single      a code or a figure, the only one of its form: the classic needle in a haystack
    number      a code or a figure
    name        who did something
    sentence    what to do, and where: half a point for each
    several     four facts of one town, spread from the depth on to the end: a quarter of a point for each
    key-value   a line of a long register whose lines all look alike: the hard one

But for `single`, facts of the same form on other towns stand around every needle, so that its form alone does not give
it away. Where one value is asked for, an answer that tells one of theirs too is wrong: whoever tells everything has
found nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infinipot_llm.errors import BudgetError, ModelError
from infinipot_llm.evaluation import hay, hay_words
from infinipot_llm.evaluation.cases import Case

if TYPE_CHECKING:
    from infinipot_llm.answering.prompt import Prompt, PromptForm
    from infinipot_llm.models.text import TextCodec

KINDS = ("single", "number", "name", "sentence", "several", "key-value")
NEW_TOKENS = {"single": 32, "number": 32, "name": 32, "sentence": 64, "several": 96, "key-value": 32}
"""Longest answer for every kind, in tokens."""

TOLERANCE = 16
"""By how many tokens a context may miss its length."""

_ROOM = 0.6  # the most of a context that needles and the facts like them may fill
_LINES = 8  # of a register in one paragraph

_NUMBERS = (
    ("The code of the storehouse at {town} is {value}.", "What is the code of the storehouse at {town}?", False),
    ("The great bell of {town} bears the number {value}.", "Which number does the great bell of {town} bear?", False),
    ("The deed of {town} is filed as number {value}.", "Under which number is the deed of {town} filed?", False),
    ("The last census counted {value} souls in {town}.", "How many souls did the last census count in {town}?", True),
    ("The new roof at {town} cost {value} crowns.", "How many crowns did the new roof at {town} cost?", True),
    ("The archive of {town} holds {value} letters.", "How many letters does the archive of {town} hold?", True),
)
_NAMES = (
    ("The key of the tower at {town} is kept by {value}.", "Who keeps the key of the tower at {town}?"),
    ("The clock of {town} was made by {value}.", "Who made the clock of {town}?"),
    ("The present mayor of {town} is {value}.", "Who is the present mayor of {town}?"),
    ("The charter of {town} was signed by {value}.", "Who signed the charter of {town}?"),
    ("The oldest inhabitant of {town} is {value}.", "Who is the oldest inhabitant of {town}?"),
)
_CUSTOMS = (
    ("The best thing to do in {town} is to {value}.", "What is the best thing to do in {town}, and where?"),
    ("Visitors to {town} are always told to {value}.", "What are visitors to {town} told to do, and where?"),
    ("By an old custom, newcomers to {town} must {value}.", "What must newcomers to {town} do by custom, and where?"),
)
_DEEDS = (
    ("eat a", "plum dumpling"), ("eat a", "saffron bun"), ("drink a", "cup of elder cordial"), ("fly a", "paper kite"),
    ("roll a", "wooden hoop"), ("bury a", "silver button"), ("plant a", "snowdrop bulb"), ("count the", "weathercocks"),
    ("play a", "game of draughts"), ("read a", "ghost story"), ("hum a", "hunting song"), ("blow a", "soap bubble"),
    ("throw a", "bay leaf"), ("wear a", "garland of ivy"), ("peel a", "roasted turnip"), ("ring a", "cow bell"),
    ("sharpen a", "penknife"), ("light a", "beeswax candle"), ("share a", "honey cake"), ("sketch a", "sleeping cat"),
)  # fmt: skip
_SPOTS = (
    ("on the steps of", "the old observatory"), ("under", "the striped awning"), ("behind", "the glass house"),
    ("beside", "the marble fountain"), ("on top of", "the grain elevator"), ("in front of", "the puppet theatre"),
    ("at the foot of", "the wireless mast"), ("inside", "the hollow oak"), ("at the end of", "the wooden pier"),
    ("next to", "the sundial terrace"), ("on the roof of", "the fish market"), ("below", "the painted ceiling"),
    ("in the middle of", "the hedge maze"), ("on the far side of", "the tennis court"), ("near", "the lion statue"),
    ("at the door of", "the tea pavilion"), ("above", "the echoing gorge"), ("by", "the mermaid stone"),
)  # fmt: skip
_GROUPS = (
    ("A crate addressed to {town} is marked {value}.", "How are the four crates addressed to {town} marked?", True),
    ("One of the four passes to {town} is number {value}.", "Which numbers have the four passes to {town}?", True),
    ("One of the four wardens of {town} is {value}.", "Who are the four wardens of {town}?", False),
    ("Among the four founders of {town} was {value}.", "Who were the four founders of {town}?", False),
)
_SHADES = (
    "amber azure beige bronze cobalt copper coral ebony emerald golden indigo ivory jade lilac ochre olive pearl rose "
    "ruby rust scarlet silver teal umber violet"
)
_BEASTS = (
    "badger beaver bison camel crane dingo eagle falcon ferret gecko gibbon heron ibex iguana jackal lemur lynx marten "
    "mole moose newt ocelot osprey otter panda plover puffin quail rabbit raven seal shrew stork tapir toad turtle "
    "vole walrus weasel wombat yak zebra"
)

_RUN = re.compile(r"(?<![^\W_])[0-9](?:[ ,.'’_]?[0-9])*(?![^\W_])")
_WHOLE = re.compile(r"[0-9]+|[0-9]{1,3}([ ,.'’_])[0-9]{3}(?:\1[0-9]{3})*")


def needle_cases(
    lengths: Sequence[int],
    depths: Sequence[int],
    kinds: Sequence[str],
    codec: TextCodec,
    *,
    seed: int = 0,
    repeats: int = 1,
) -> list[Case]:
    """Generate contexts with needles, one question for each.

    Every case has a context of its own, which depends on nothing but its length, depth, kind, number, the seed and the
    tokenizer: choosing more or fewer of them changes no other one. `references` holds all the values that are asked
    for, and an answer is worth the share of them that it tells (`score`).

    Args:
        lengths: Tokens of the contexts.
        depths: Where the needles stand, in percent of the paragraphs: 0 at the beginning, 100 at the end.
        kinds: Of `KINDS`.
        codec: The tokenizer that counts.
        seed: Of everything that is drawn.
        repeats: Contexts for each length, depth and kind.

    Raises:
        BudgetError: A kind is unknown, a depth is out of range, or a length has no room for the needles.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise BudgetError(f"there is no needle of kind {kind!r}: choose among {', '.join(KINDS)}.")
    for depth in depths:
        if not 0 <= depth <= 100:
            raise BudgetError(f"the depth {depth} is no percentage: give numbers from 0 to 100.")
    if repeats < 1:
        raise BudgetError(f"repeats is {repeats}: give at least 1.")
    return [
        _case(kind, length, depth, number, seed, codec)
        for kind in kinds
        for length in lengths
        for depth in depths
        for number in range(repeats)
    ]


def score(case: Case, answer: str) -> float:
    """Return the share of a case's values that an answer tells, 0 to 1.

    A number counts with or without separators between its thousands, and not as part of a longer one; anything else
    in whole words, whatever the case of its letters, and in a sentence also in the plural. An answer that tells a
    value of another town (`Case.wrong`) is worth nothing.
    """
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    numbers = _numbers(text)
    ending = "s?" if case.task == "needle-sentence" else ""

    def tells(value: str) -> bool:
        if _WHOLE.fullmatch(value):
            return re.sub("[^0-9]", "", value) in numbers
        return value.casefold() in text and _holds(text, value, ending)

    if any(tells(value) for value in case.wrong):
        return 0.0
    return sum(tells(value) for value in case.references) / len(case.references)


def prompt_for(form: PromptForm, case: Case) -> Prompt:
    """Return the prompt that any document is asked with, around the question of a case."""
    from infinipot_llm.answering.prompt import Prompt

    asked = tuple(form.question(case.question))
    return Prompt(form.prefix, asked, asked, case.question)


@dataclass(frozen=True)
class _Fact:
    """What is hidden: sentences, the question for them, the values it asks for, and facts of the same form."""

    needles: tuple[str, ...]
    question: str
    values: tuple[str, ...]
    decoy: Callable[[], tuple[str, str]]
    """Returns a sentence, and the value that it tells."""
    avoid: frozenset[str]
    """Towns and people that the hay must not tell of."""


def _case(kind: str, length: int, depth: int, number: int, seed: int, codec: TextCodec) -> Case:
    rng = random.Random(f"{seed} {kind} {length} {depth} {number}")  # noqa: S311 -- repeatable, guards no secret
    fact = _FACTS[kind](rng)
    context, tokens, others = _context(rng, fact, kind, length, depth, codec)
    position = context.index(fact.needles[0]) / len(context)
    digest = hashlib.sha256(f"{context}\n{fact.question}".encode()).hexdigest()[:8]
    key = f"needle-{kind}-{length}-{depth}-{number}-{digest}"
    facts = {
        "kind": kind, "length": length, "depth": depth, "number": number, "seed": seed,
        "tokens": tokens, "position": round(position, 4),
    }  # fmt: skip
    wrong = others if len(fact.values) == 1 else ()
    return Case(key, context, fact.question, fact.values, f"needle-{kind}", key, facts=facts, wrong=wrong)


def _context(
    rng: random.Random, fact: _Fact, kind: str, length: int, depth: int, codec: TextCodec
) -> tuple[str, int, tuple[str, ...]]:
    """Lay the needles into as much hay as makes `length` tokens; return the text, its tokens, the values of decoys."""
    drawn: dict[str, str] = {}

    def count(text: str) -> int:
        return len(codec.untrusted(text))

    def decoy() -> str:
        text, value = fact.decoy()
        drawn[text] = value
        return text

    decoys = [] if kind == "single" else [decoy() for _ in range(min(24, max(2, length // 400)))]
    hall = rng.choice(hay_words.HOUSES)
    items = [*(f"a {thing}" for thing in hay_words.THINGS), *(f"some {fruit}" for fruit in hay_words.FRUIT)]
    rng.shuffle(items)
    named = 12

    def inventory() -> str:  # a sentence of any length: it makes up for what whole sentences of hay leave
        return f"The inventory of {hall} names {', '.join(items[: named - 1])} and {items[named - 1]}."

    fixed = sum(count(f"{text}\n\n") for text in (*fact.needles, *decoys, inventory()))
    if fixed > _ROOM * length:
        least = int(fixed / _ROOM) + 1
        raise BudgetError(f"a context of {length} tokens has no room for a needle ({kind}): give at least {least}.")
    register = kind == "key-value"
    source = _register(decoy) if register else hay.paragraphs(rng, fact.avoid)

    def text_of(paragraphs: list[list[str]]) -> str:
        return "\n\n".join(("\n" if register else " ").join(sentences) for sentences in paragraphs)

    paragraphs = _take(source, length - fixed, count, text_of)
    last = [inventory()]
    paragraphs.append(last)
    _scatter(rng, paragraphs, decoys, fact.needles, depth)
    others = tuple(drawn[sentence] for sentences in paragraphs for sentence in sentences if sentence in drawn)
    for _ in range(8):
        last[0] = inventory()
        text = text_of(paragraphs)
        tokens = count(text)
        if abs(length - tokens) <= TOLERANCE // 2:
            return text, tokens, others
        missing = length - tokens
        while missing > 0 and named < len(items) and (cost := count(f", {items[named]}")) < 2 * missing:
            missing, named = missing - cost, named + 1
        while missing < 0 and named > 2 and (cost := count(f", {items[named - 1]}")) < -2 * missing:
            missing, named = missing + cost, named - 1
    if abs(length - tokens) <= TOLERANCE:
        return text, tokens, others
    raise ModelError("this tokenizer counts so unevenly that no context of a given length can be made for it.")


def _take(
    source: Iterator[list[str]], room: int, count: Callable[[str], int], text_of: Callable[[list[list[str]]], str]
) -> list[list[str]]:
    """Take paragraphs while they fit into `room` tokens, the last one only in part."""
    taken: list[list[str]] = []
    used = 0
    for sentences in source:
        if used + (cost := count(text_of([sentences, []]))) > room:
            used = count(text_of([*taken, []]))  # neighbours may share tokens, which adds up in a long text
            while used > room and taken:
                taken.pop()
                used = count(text_of([*taken, []]))
            if used + cost > room:
                while sentences and used + count(text_of([sentences, []])) > room:
                    sentences.pop()
                return [*taken, sentences] if sentences else taken
        taken.append(sentences)
        used += cost
    raise BudgetError("there is not so much hay: give lengths of less than a million tokens.")


def _scatter(
    rng: random.Random, paragraphs: list[list[str]], decoys: Sequence[str], needles: Sequence[str], depth: int
) -> None:
    """Put decoys anywhere, then the needles at their depths: as paragraphs of their own, or inside others."""
    places = sorted(((rng.random(), text) for text in decoys), reverse=True)
    count = len(paragraphs)
    for share, text in places:  # from the end, so that places before stay where they are
        _insert(rng, paragraphs, round(share * count), text)
    count = len(paragraphs)
    for number in reversed(range(len(needles))):
        share = (depth + (100 - depth) * number / len(needles)) / 100
        _insert(rng, paragraphs, round(share * count), needles[number])


def _insert(rng: random.Random, paragraphs: list[list[str]], index: int, text: str) -> None:
    if index >= len(paragraphs) or rng.random() < 0.5:
        paragraphs.insert(index, [text])
    else:
        paragraphs[index].insert(rng.randint(1, len(paragraphs[index])), text)


def _number_fact(rng: random.Random) -> _Fact:
    statement, question, figure = rng.choice(_NUMBERS)
    draw = _different(lambda: f"{rng.randint(10_000, 999_999):{',' if figure else ''}}")
    return _about_towns(rng, statement, question, (draw(),), draw)


def _name_fact(rng: random.Random) -> _Fact:
    statement, question = rng.choice(_NAMES)
    draw = _different(lambda: hay.person(rng))
    value = draw()
    return _about_towns(rng, statement, question, (value,), draw, people=(value,))


def _several_fact(rng: random.Random) -> _Fact:
    statement, question, numbers = rng.choice(_GROUPS)
    draw = _different(lambda: str(rng.randint(10_000, 999_999)) if numbers else hay.person(rng))
    values = tuple(draw() for _ in range(4))
    return _about_towns(rng, statement, question, values, draw, people=() if numbers else values)


def _custom_fact(rng: random.Random) -> _Fact:
    statement, question = rng.choice(_CUSTOMS)
    (deed, what), (at, where) = rng.choice(_DEEDS), rng.choice(_SPOTS)

    def other() -> str:
        does, thing = rng.choice([d for d in _DEEDS if d[1] != what])
        stands, spot = rng.choice([s for s in _SPOTS if s[1] != where])
        return f"{does} {thing} {stands} {spot}"

    fact = _about_towns(rng, statement, question, (f"{deed} {what} {at} {where}",), other)
    return replace(fact, values=(what, where.removeprefix("the ")))  # "beside marble fountain" is as good


def _register_fact(rng: random.Random) -> _Fact:
    shades, beasts = _SHADES.split(), _BEASTS.split()
    shade, beast, number = rng.choice(shades), rng.choice(beasts), rng.randint(100, 999)
    key = f"{shade}-{beast}-{number}"
    near = [  # keys that differ from the one asked for in one part
        f"{shade}-{beast}-{rng.choice([n for n in range(100, 1000) if n != number])}",
        f"{shade}-{rng.choice([b for b in beasts if b != beast])}-{number}",
        f"{rng.choice([s for s in shades if s != shade])}-{beast}-{number}",
    ]
    keys = _different(
        lambda: near.pop() if near else f"{rng.choice(shades)}-{rng.choice(beasts)}-{rng.randint(100, 999)}", key
    )
    draw = _different(lambda: str(rng.randint(100_000, 9_999_999)))
    value = draw()
    question = f"Which number stands behind {key}?"

    def line() -> tuple[str, str]:
        other, behind = keys(), draw()
        return f"{other}: {behind}", behind

    return _Fact((f"{key}: {value}",), question, (value,), line, frozenset())


def _about_towns(
    rng: random.Random,
    statement: str,
    question: str,
    values: tuple[str, ...],
    draw: Callable[[], str],
    people: tuple[str, ...] = (),
) -> _Fact:
    """Make a fact on a town: the town stands in it alone, and other towns' facts have other values."""
    towns = _different(lambda: rng.choice(hay_words.TOWNS))
    town = towns()
    needles = tuple(statement.format(town=town, value=value) for value in values)

    def decoy() -> tuple[str, str]:
        other, value = towns(), draw()
        return statement.format(town=other, value=value), value

    return _Fact(needles, question.format(town=town), values, decoy, frozenset((town, *people)))


def _different(draw: Callable[[], str], *taken: str) -> Callable[[], str]:
    """Return a function that draws what was not drawn before."""
    seen = set(taken)

    def drawn() -> str:
        while (value := draw()) in seen:
            pass
        seen.add(value)
        return value

    return drawn


def _register(line: Callable[[], str]) -> Iterator[list[str]]:
    """Yield blocks of lines, like those around them in everything but key and value."""
    for _ in range(60_000 // _LINES):  # there are more than a million keys
        yield [line() for _ in range(_LINES)]


_FACTS: dict[str, Callable[[random.Random], _Fact]] = {
    "single": _number_fact,
    "number": _number_fact,
    "name": _name_fact,
    "sentence": _custom_fact,
    "several": _several_fact,
    "key-value": _register_fact,
}


def _numbers(text: str) -> set[str]:
    """Return the whole numbers of a text, without the separators between their thousands."""
    found = set()
    for run in _RUN.finditer(text):
        whole = run.group()
        for part in [whole] if _WHOLE.fullmatch(whole) else whole.split():
            part = re.sub(r"\.0{1,2}$", "", part)
            listed = part.split(",")
            if _WHOLE.fullmatch(part):
                found.add(re.sub("[^0-9]", "", part))
            elif all(re.fullmatch("[0-9]{4,}", number) for number in listed):  # 48213,55512 are two
                found.update(listed)
    return found


def _holds(text: str, value: str, ending: str) -> bool:
    wanted = re.escape(value.casefold()) + ending
    return re.search(rf"(?<![^\W_])(?<![^\W_]-){wanted}(?![^\W_])(?!-[^\W_])", text) is not None
