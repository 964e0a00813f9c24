"""Pairs of `tandem study fine-tuned`, and what is said of differences."""

import pytest

from tandem.errors import InputError
from tandem.metrics import Estimate
from tandem_jobs.study.fine_tuned import FineTunedSpec, judged
from tandem_jobs.study.subject import Subject
from tandem_jobs.study.tuned_pairs import EVERY_N, Contestants, Pair, draft_steps_of, parse_pairs
from tandem_jobs.study.without_guidance import verdict


@pytest.mark.parametrize(
    ("values", "pairs"),
    [
        (["4=a", "b", "5=c", "d"], {4: Pair("a", "b"), 5: Pair("c", "d")}),
        (["4=a", "5=", "d"], {4: Pair("a", None), 5: Pair(None, "d")}),
        (["a", "b"], {EVERY_N: Pair("a", "b")}),
        (["=", "hf://x/y@z=1/b"], {EVERY_N: Pair(None, "hf://x/y@z=1/b")}),
        ([], {}),
    ],
)
def test_pairs_are_read(values, pairs):
    assert parse_pairs("--tuned", values) == pairs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["4=a", "4=b"], "expected each N once, got N = 4 twice"),
        (["4=a", "b", "c"], "expected DRAFTER,REFINER, got a,b,c"),
        (["4="], "expected DRAFTER,REFINER, got no file"),
        (["a", "b", "4=c"], "expected N= before every pair or before none, got both"),
    ],
)
def test_wrong_pairs_are_refused(values, message):
    with pytest.raises(InputError, match=f"--tuned: {message}"):
        parse_pairs("--tuned", values)


def test_embedded_is_the_model_of_its_place(tmp_path):
    subject = Subject(FineTunedSpec(out=tmp_path, draft_steps=(5,)))
    roles = Contestants(subject, "control", {EVERY_N: Pair("embedded", "embedded")}).roles(5)
    hashes = [subject.refs[name].sha256 for name in roles]
    assert hashes == [subject.refs["drafter"].sha256, subject.refs["refiner"].sha256]
    assert hashes[0] != hashes[1]


def test_every_n_of_the_pairs_is_studied():
    some, every = {5: Pair("a"), 4: Pair("b")}, {EVERY_N: Pair("c")}
    assert draft_steps_of(None, some, every) == (4, 5)
    assert draft_steps_of((6, 5, 4), some, every) == (4, 5, 6)
    assert draft_steps_of((3,), {}, every) == (3,)


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.2, -0.1, "below"), (0.1, 0.2, "above"), (-0.1, 0.1, "within its interval of")]
)
def test_differences_are_judged_by_their_intervals(low, high, word):
    assert judged(Estimate((low + high) / 2, low, high)) == word


@pytest.mark.parametrize(
    ("frechet_high", "agreement_low", "holds"),
    [
        (0.05, -0.01, (True, True)),
        (0.051, -0.009, (False, True)),
        (0.01, -0.011, (True, False)),
        (0.0, None, (True, None)),
    ],
)
def test_the_ends_of_the_intervals_are_held_against_the_margins(frechet_high, agreement_low, holds):
    found = {
        "frechet_minus_guided": Estimate(0.0, -0.1, frechet_high),
        "agreement_minus_guided": None if agreement_low is None else Estimate(0.0, agreement_low, 0.1),
    }
    assert tuple(verdict(found).values()) == holds
