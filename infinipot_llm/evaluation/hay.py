"""Prose for needles to stand in: paragraphs about towns that do not exist, from templates and word lists of our own.

Every paragraph tells one thing of one town, and a town's mill, lake or school is told of once, so that nothing in a
context contradicts anything else. The text means nothing to anybody, and says nothing that a model could have learnt.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from infinipot_llm.evaluation.hay_words import GIVEN, NTH, RIVERS, SURNAMES, THEMES, TOWNS, WORDS


def paragraphs(rng: random.Random, avoid: Collection[str] = ()) -> Iterator[list[str]]:
    """Yield paragraphs, as lists of sentences, until all towns are told of.

    No sentence comes twice, except that a template may have run out of new words after several hundred thousand tokens.

    Args:
        rng: Where choices come from: the same state gives the same text.
        avoid: Towns and full names of people that must not occur.
    """
    towns = [town for town in TOWNS if town not in avoid]
    rng.shuffle(towns)
    rivers = {town: rng.choice(RIVERS) for town in towns}
    told = [(town, theme) for town in towns for theme in range(len(THEMES))]
    # Towns come in companies, so that what is told of one is spread over many paragraphs and yet stays near.
    company = 12 * len(THEMES)
    seen: set[str] = set()
    for start in range(0, len(told), company):
        near = told[start : start + company]
        rng.shuffle(near)
        for town, theme in near:
            yield _paragraph(rng, town, rivers[town], rng.choice([t for t in towns if t != town]), theme, avoid, seen)


def person(rng: random.Random, avoid: Collection[str] = ()) -> str:
    """Return a full name that is not among those to avoid."""
    while (name := f"{rng.choice(GIVEN)} {rng.choice(SURNAMES)}") in avoid:
        pass
    return name


def _paragraph(
    rng: random.Random, town: str, river: str, other: str, theme: int, avoid: Collection[str], seen: set[str]
) -> list[str]:
    year = rng.randint(1790, 1890)
    fixed = {"town": town, "river": river, "other": other, "year": str(year), "person": person(rng, avoid)}
    sentences = []
    for position, variants in enumerate(THEMES[theme]):
        if position and rng.random() < 0.15:
            continue
        for _ in range(50):
            words = {**_draw(rng), **fixed}
            words["year2"] = str(year + rng.randint(6, 70))
            words["person2"] = person(rng, {*avoid, words["person"]})
            sentence = rng.choice(variants).format_map(words)
            if sentence not in seen:
                break
        seen.add(sentence)
        sentences.append(sentence)
    return sentences


def _draw(rng: random.Random) -> dict[str, str]:
    """Draw a word for every blank: `x2` is another one than `x`, and `x_` is `x` at the beginning of a sentence."""
    words: dict[str, str] = {}
    for name, choices in WORDS.items():
        words[name], words[f"{name}2"] = rng.sample(choices, 2)
    words["n"] = str(rng.randint(13, 980))
    words["n2"] = str(rng.randint(13, 48))
    words["big"] = f"{rng.randint(1000, 9800):,}"
    words["nth"] = rng.choice(NTH)
    return {**words, **{f"{name}_": word[0].upper() + word[1:] for name, word in words.items()}}
