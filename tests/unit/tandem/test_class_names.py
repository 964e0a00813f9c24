"""Which label a text means, and the names of ImageNet-1k."""

import pytest

from tandem.class_names import ClassNames, check_names, imagenet_names, with_synonyms
from tandem.errors import InputError, LabelError

NAMES = ClassNames(("ant", "bee, honeybee", "Cat, tom", "tom", "sea lion"))
AMBIGUOUS = {
    *("cardigan", "catamount", "crane", "crawfish", "grass snake", "horn", "maillot", "panda", "panther"),
    *("sand viper", "sus scrofa", "wagon"),
}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *[("ant", 0), (" ANT\n", 0), ("0", 0), ("004", 4)],
        *[("honeybee", 1), ("Bee,   Honeybee", 1), ("cat", 2), ("Cat, tom", 2), ("tom", 3), ("TOM", 3)],
        *[("sea lion", 4), ("Sea_Lion", 4), ("sea   lion", 4)],
        *[("#4", 4), (" #04 ", 4)],
    ],
)
def test_a_class_goes_by_name_synonym_and_number_in_any_case(text, label):
    assert NAMES.find(text) == label


@pytest.mark.parametrize(
    "text", ["5", "#5", "#", "##1", "-1", "1.0", "\u00b2", "\u0663", "bugs", "ant,", ",", " ", "", "9" * 200]
)
def test_what_no_class_goes_by_is_refused(text):
    with pytest.raises(LabelError, match="expected a class name or a number from 0 to 4, got"):
        NAMES.find(text)


def test_the_nearest_names_are_shown_as_they_are_written():
    with pytest.raises(LabelError) as caught:
        NAMES.find("catt")
    assert caught.value.hint == "did you mean Cat?"
    assert NAMES.near("quartz") == "classes are ant, bee, Cat, tom, sea lion"


def test_accents_may_be_composed_or_not():
    assert ClassNames(("gr\u00e9vy", "x")).find("Gre\u0301vy") == 0


@pytest.mark.parametrize(("names", "label"), [(("1", "0"), 0), (("cat", "Cat"), 1)])
def test_a_whole_name_as_it_is_written_goes_first(names, label):
    assert ClassNames(names).find(names[label]) == label


def test_the_list_of_imagenet_is_whole():
    names = imagenet_names()
    assert len(names) == len(set(names)) == len(set(names.wnids)) == 1000
    assert list(names.wnids) == sorted(names.wnids)
    known = {
        0: ("n01440764", "tench, Tinca tinca"),
        207: ("n02099601", "golden retriever"),
        281: ("n02123045", "tabby, tabby cat"),
        388: ("n02510455", "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca"),
        999: ("n15075141", "toilet tissue, toilet paper, bathroom tissue"),
    }
    assert {label: (names.wnids[label], names[label]) for label in known} == known


def test_every_class_of_imagenet_is_found_by_name_id_number_and_a_synonym_of_its_own():
    names = imagenet_names()
    for label, name in enumerate(names):
        assert names.find(name) == names.find(names.wnids[label]) == names.find(str(label)) == label
        assert any(
            names.find(text.upper()) == label for text in (*names.synonyms(label), name) if len(names.named(text)) == 1
        )
    assert {
        text.casefold() for label in range(1000) for text in names.synonyms(label) if len(names.named(text)) > 1
    } == AMBIGUOUS


@pytest.mark.parametrize(
    ("text", "both"),
    [
        ("crane", r"134 \(crane, n02012849\) and 517 \(crane, n03126707\)"),
        ("Maillot", r"638 \(maillot, n03710637\) and 639 \(maillot, n03710721\)"),
        ("cardigan", r"264 \(Cardigan, n02113186\) and 474 \(cardigan, n02963159\)"),
        ("PANDA", r"387 \(lesser panda, n02509815\) and 388 \(giant panda, n02510455\)"),
    ],
)
def test_a_name_of_two_classes_is_refused_with_both(text, both):
    with pytest.raises(LabelError, match=f"expected a name of one class, got '{text}', a name of {both}") as caught:
        imagenet_names().find(text)
    assert "label number" in caught.value.hint


def test_a_number_is_reached_though_a_class_is_called_so():
    names = ClassNames(("x", "3", "#0", "y" * 300, "two\nlines"))
    assert names.find("3") == 1
    assert [names.find(f"#{label}") for label in range(len(names))] == list(range(len(names)))
    assert [names.matching(f"#{label}")[0] for label in range(len(names))] == list(range(len(names)))


def test_the_usual_name_of_a_class_goes_before_a_rare_one_of_another():
    """'harp' is also a harmonica, and 'partridge' a ruffed grouse."""
    names = imagenet_names()
    assert [names.find(text) for text in ("harp", "partridge", "missile", "gong", "tub")] == [594, 86, 657, 577, 876]


def test_a_search_shows_first_what_the_text_means():
    names = imagenet_names()
    assert names.matching("harp")[0] == 594
    assert names.matching("crane")[:2] == [134, 517]
    assert names.matching("n02099601") == [207]
    assert names.matching("207")[0] == 207
    assert names.matching("Golden_Ret") == [207]
    assert len(names.matching("")) == 1000


def test_names_that_are_wordnet_ids_have_synonyms():
    """As of a model trained on folders of a subset of ImageNet."""
    names = with_synonyms(("n02099601", "n01440764"))
    assert [names.find(text) for text in ("Golden retriever", "tinca tinca", "N02099601")] == [0, 1, 0]
    assert list(names) == ["n02099601", "n01440764"]  # in columns
    assert with_synonyms(("n02099601", "cat")) == ClassNames(("n02099601", "cat"))


@pytest.mark.parametrize("names", [None, 7, True, {"a": 1}, ["a", None], ("a", "b"), "ab"])
def test_names_of_a_model_are_text(names):
    with pytest.raises(InputError, match="m: expected a list of names, got"):
        check_names(names, 2, "m")


@pytest.mark.parametrize("name", ["", " , ", "_", "\u00a0"])
def test_each_class_of_a_model_has_a_name(name):
    with pytest.raises(InputError, match=r"m: expected a name for each class, got '.*' for 1"):
        check_names(["a", name], 2, "m")


def test_names_of_a_model_are_counted():
    assert check_names(["a", "b"], 2, "m") == ("a", "b")
    with pytest.raises(InputError, match="m: expected 4 names, got 8"):
        check_names(list("abcdefgh"), 4, "m")
