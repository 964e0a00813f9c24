"""The class that the words of a prompt come nearest to, for `tandem serve --lenient`. Pure Python.

A name's score is the share of its words that are in the prompt, each weighted by how rare it is among all names, the
last word (a hyena *dog* is a dog) twice. Words count together only where they stand together in this order. A word with
a typing error counts by its likeness, a part of a synonym (a river *horse* is no horse) less than one of a usual name.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches

from tandem.class_names import ClassNames

MAX_WORDS = 100  # of a prompt that are looked at
MAX_TYPOS = 16  # words looked up by likeness: each is compared with all words of all names
LIKENESS, MIN_TYPO = 0.84, 5  # least likeness, and letters, of a word with a typing error; its first letter is right
ENOUGH = 0.5  # least score of a class that is made
HEAD_WEIGHT, PART_OF_SYNONYM = 2.0, 0.8
GAP = 1  # words that may stand between those of a name
STOP_WORDS = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "into", "is", "of", "on", "or", "the", "to"))
STOP_WORDS |= frozenset(("with", "photo", "photograph", "picture", "image"))


@dataclass(frozen=True)
class Match:
    """A class that a prompt comes near to: the name that it was found by, and its score from 0 to 1."""

    label: int
    name: str
    score: float


@dataclass(frozen=True)
class Name:
    label: int
    text: str
    words: tuple[str, ...]
    is_usual: bool


class NearestClass:
    """Searches the names and synonyms of all classes by words."""

    def __init__(self, classes: ClassNames):
        self.names: list[Name] = []
        self.by_word: dict[str, list[int]] = defaultdict(list)
        for label in range(len(classes)):
            for place, text in enumerate(classes.synonyms(label)):
                if words := tuple(words_of(text)):
                    for word in dict.fromkeys(words):
                        self.by_word[word].append(len(self.names))
                    self.names.append(Name(label, text, words, place == 0))
        self.by_letter: dict[str, list[str]] = defaultdict(list)
        for word in self.by_word:
            if len(word) >= MIN_TYPO:
                self.by_letter[word[0]].append(word)
        self.rarity = {word: math.log1p(len(self.names) / len(found)) for word, found in self.by_word.items()}

    def search(self, prompt: str) -> list[Match]:
        """The best match of each class that shares a word with the prompt: by score, then by its place in the prompt,
        then the longest."""
        asked = list(words_of(prompt))[:MAX_WORDS]
        found = self.known(asked)
        ranked = []
        for index in dict.fromkeys(index for word in found for index in self.by_word[word]):
            name = self.names[index]
            score = self.score(name, found)
            first = min(found[word][0] for word in name.words if word in found)
            ranked.append(
                ((-score, first, -len(name.words), not name.is_usual, name.label), Match(name.label, name.text, score))
            )
        best: dict[int, Match] = {}
        for _, match in sorted(ranked, key=lambda pair: pair[0]):
            best.setdefault(match.label, match)
        return list(best.values())

    def known(self, asked: list[str]) -> dict[str, tuple[int, float]]:
        """Words of names that are in the prompt: where first, and how like."""
        found: dict[str, tuple[int, float]] = {}
        unknown = []
        for place, word in enumerate(asked):
            if word in self.by_word:
                found.setdefault(word, (place, 1.0))
            elif len(word) >= MIN_TYPO:
                unknown.append((place, word))
        for place, word in unknown[:MAX_TYPOS]:
            for close in get_close_matches(word, self.by_letter.get(word[0], ()), 1, LIKENESS):
                found.setdefault(close, (place, SequenceMatcher(None, word, close).ratio()))
        return found

    def score(self, name: Name, found: dict[str, tuple[int, float]]) -> float:
        weights: dict[str, float] = defaultdict(float)
        for place, word in enumerate(name.words):
            weights[word] += self.rarity[word] * (HEAD_WEIGHT if place == len(name.words) - 1 else 1)
        credits = {word: weight * found[word][1] for word, weight in weights.items() if word in found}
        places = [found[word][0] for word in credits]
        together = places == sorted(places) and places[-1] - places[0] < len(places) + GAP
        score = (sum(credits.values()) if together else max(credits.values())) / sum(weights.values())
        is_whole = together and len(credits) == len(weights)
        return score if name.is_usual or is_whole else PART_OF_SYNONYM * score


def words_of(text: str) -> Iterable[str]:
    """Words without case, accents, plural endings and words that are in every prompt."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    for word in re.findall(r"[^\W_]+", re.sub(r"['\u2019]s\b", "", plain)):
        if word not in STOP_WORDS:
            yield singular(word)


def singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
