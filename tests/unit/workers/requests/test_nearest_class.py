"""Prompts matched to classes by the words of their names."""

from __future__ import annotations

import pytest

from tandem.class_names import ClassNames, imagenet_names
from tandem_workers.requests.nearest_class import ENOUGH, NearestClass

EMBEDDED = (
    "face",
    "person",
    "hand",
    "heart",
    "clock",
    "flag",
    "mammal",
    "fruit",
    "vehicle",
    "building",
    "sign",
    "shape",
)


@pytest.fixture(scope="module")
def imagenet() -> NearestClass:
    return NearestClass(imagenet_names())


@pytest.mark.parametrize(
    ("prompt", "name", "score"),
    [
        ("A photo of a golden retriever in the snow", "golden retriever", 1.0),
        ("two golden retrievers", "golden retriever", 1.0),  # plurals
        ("a Golden-Retriever's bowl", "golden retriever", 1.0),
        ("golden retreiver", "golden retriever", 0.9),  # typing errors
        ("a hot dog with mustard", "hot dog", 1.0),
        ("volcanoes", "volcano", 0.9),
        ("a retriever", "golden retriever", 0.6),  # the last word of a name counts most
        ("a red sports car on a road", "sports car", 1.0),
        ("goldfish in a bowl", "goldfish", 1.0),
        ("A serene watercolor painting of a lakeside with a canoe", "lakeside", 1.0),  # what comes first
        ("a dragon over mountains", "Komodo dragon", 0.6),
    ],
)
def test_the_class_whose_name_is_in_the_prompt_is_found(imagenet, prompt, name, score):
    best = imagenet.search(prompt)[0]
    assert best.name == name
    assert score <= best.score < score + 0.1


@pytest.mark.parametrize(
    "prompt",
    [
        "a unicorn",
        "",
        "!?",
        "a photo of the",
        "water",
        "an astronaut riding a horse",
        "a sunset over the sea",
        "\u732b",
    ],
)
def test_a_prompt_that_names_no_class_is_not_near_enough(imagenet, prompt):
    assert not [match for match in imagenet.search(prompt) if match.score >= ENOUGH]


def test_words_count_together_only_side_by_side_and_in_order(imagenet):
    best = imagenet.search("a dog on a hot day")[0]
    assert best.name != "hot dog" and "dog" in best.name and best.score < 0.7


def test_the_usual_name_goes_before_a_synonym_of_another_class():
    found = NearestClass(ClassNames(("Cat, tom", "tom"))).search("a tom")
    assert [(match.label, match.score) for match in found] == [(1, 1.0), (0, 1.0)]


@pytest.mark.parametrize(
    ("prompt", "name"), [("a smiling face with sunglasses", "face"), ("FLAGS!", "flag"), ("some biulding", "building")]
)
def test_few_classes_are_found_too(prompt, name):
    assert NearestClass(ClassNames(EMBEDDED)).search(prompt)[0].name == name


def test_a_long_prompt_is_read_to_a_bound(imagenet):
    assert imagenet.search("word " * 90 + "goldfish")[0].name == "goldfish"
    assert not imagenet.search("word " * 200 + "goldfish")


def test_classes_without_words_match_nothing():
    assert NearestClass(ClassNames(("!", "dog"))).search("a dog !")[0].label == 1
