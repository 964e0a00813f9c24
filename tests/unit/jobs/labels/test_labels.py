"""Label rows from classes, checked before anything starts."""

import pytest

from tandem.class_names import ClassNames
from tandem.errors import LabelError
from tandem_jobs.labels.labels import choose_classes, rows_of_classes
from tandem_workers.storage.layout import MAX_ROWS

NAMES = ClassNames(("ant", "bee", "cat", "dog", "sea lion"))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("cat,ant", [2, 0]),
        ("1-3", [1, 2, 3]),
        ("3, sea lion ,0-1,3", [3, 4, 0, 1]),
    ],
)
def test_classes_by_name_number_and_range(text, labels):
    assert choose_classes(text, NAMES) == labels


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("catt", "got 'catt'", "did you mean cat"),
        ("5", "expected labels 0 to 4, got 5", None),
        ("2-9", "expected labels 0 to 4, got 9", None),
        ("3-1", "an ascending range, got 3-1", None),
        ("", "got ''", "classes are"),
        ("-1", "got '-1'", None),
        ("0-" + "9" * 5000, "expected a class name or a number from 0 to 4, got '0-9", None),
    ],
)
def test_a_wrong_class_is_named(text, message, hint):
    with pytest.raises(LabelError, match=message) as caught:
        choose_classes(text, NAMES)
    assert hint is None or hint in caught.value.hint


def test_rows_go_round_the_classes():
    assert rows_of_classes([2, 0], per_class=3, images=None).label.tolist() == [2, 0] * 3
    assert rows_of_classes([2, 0, 1], per_class=None, images=5).label.tolist() == [2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("per_class", "images", "message"),
    [
        (9_999_999_999_999, None, f"--per-class: expected at most {MAX_ROWS // 3} for 3 classes, got 9999999999999"),
        (None, 10**12, f"--images: expected at most {MAX_ROWS} for 3 classes, got 1000000000000"),
    ],
)
def test_more_images_than_a_job_can_have_are_refused_with_the_most(per_class, images, message):
    with pytest.raises(LabelError, match=message):
        rows_of_classes([2, 0, 1], per_class, images)


def test_a_list_that_is_also_one_name_has_to_say_which():
    """'Cat, tom' is a class, and 'tom' another one."""
    classes = ClassNames(("ant", "Cat, tom", "tom", 'the "x", y'))
    with pytest.raises(LabelError, match=r"names 1 \(Cat, tom\), and a list of 1 \(Cat, tom\) and 2 \(tom\)") as caught:
        choose_classes("cat,tom", classes)
    assert caught.value.hint == """for the former: '"cat,tom"'; for the latter: 1,2"""
    assert choose_classes('"cat, tom"', classes) == [1]
    assert choose_classes("1,2", classes) == [1, 2]
    assert choose_classes('ant,"the ""x"", y"', classes) == [0, 3]
