"""`tandem verify --decode` before anything is decoded, and what it allows for."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.errors import InputError
from tandem_jobs.cli import main
from tandem_jobs.decode_check import MOST, Decoded, difference, find_vqvae
from tandem_workers.dataset.identity import Identity
from tandem_workers.models.model_set import resolve

PRESET = "vae_ch160v4096z32"  # also the name of published weights


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--decode", "1"], "holds no dataset: job.json is missing"),
        (["--vqvae", "embedded"], "expected --vqvae with --decode, got it alone"),
        (["--masks", "masks"], "expected --masks with --decode, got it alone"),
    ],
)
def test_what_cannot_be_decoded_is_said_in_one_line(tmp_path, capsys, more, expected):
    assert main(["verify", str(tmp_path), *more]) != 0
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert expected in error


def identity(sha256: str) -> Identity:
    return Identity({"weights_sha256": {"vqvae": sha256}})


def test_random_weights_are_told_from_the_published_ones_of_their_name():
    made_by = resolve("vqvae", PRESET, random_weights=True).ref
    found = find_vqvae(None, identity(made_by.sha256), {"weights": {"vqvae": PRESET}})
    assert found.ref.random_seed == made_by.random_seed is not None


def test_the_source_of_a_vqvae_is_taken_not_its_label():
    own = resolve("vqvae", "embedded", random_weights=False).ref.sha256
    info = {"weights": {"vqvae": "embedded, part vae"}, "sources": {"vqvae": "embedded"}}
    assert find_vqvae(None, identity(own), info).ref.sha256 == own
    with pytest.raises(InputError, match="--vqvae: expected the dataset's, sha256 aaaa"):
        find_vqvae(None, identity("a" * 64), info)


def test_what_a_codec_loses_is_no_problem_and_what_lies_beyond_is():
    decoded, lost = Decoded(), 5.0
    decoded.add("first", MOST + lost, MOST + lost, identical=False)
    assert decoded.problems == []
    decoded.add("second", MOST + lost + 0.1, MOST + lost, identical=False)
    assert [str(problem).split(":")[0] for problem in decoded.problems] == ["second"]
    assert (decoded.images, decoded.identical) == (2, 0) and decoded.mean == pytest.approx(9.05)


def test_a_difference_is_that_in_the_mask():
    one, other = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    other[0, 0], mask = 255, np.zeros((4, 4), bool)
    assert difference(one, other, None) == pytest.approx(255 / 16) and difference(one, other, mask) == 0
    mask[0, :2] = True
    assert difference(one, other, mask) == pytest.approx(127.5) and difference(one, other[:2], None) == 255
