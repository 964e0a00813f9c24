"""The plot of training logs: which panels, and what is no log."""

import json

import pytest
from PIL import Image

from tandem.errors import InputError
from tandem_jobs.train.curves import CurvesSpec, panels_of, read_log, run

RECORDS = [
    {"step": 2, "loss": 3.0, "loss_scale_1": 1.0, "loss_scale_10": 5.0, "lr": 0.1},
    {"step": 4, "loss": float("nan"), "loss_scale_1": 0.5, "loss_scale_10": 4.0, "lr": 0.1},
    {"step": 4, "heldout_loss": 2.5},
]


@pytest.fixture
def logged(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path


def test_several_runs_share_panels_and_a_single_one_is_shown_by_scale(logged):
    both = {name: read_log(str(logged / name)) for name in ("one", "two")}
    assert {title: list(lines) for title, lines in panels_of(both).items()} == {
        "training loss": ["one", "two"],
        "held-out loss": ["one", "two"],
    }
    alone = panels_of({"one": both["one"]})
    assert alone["training loss of a scale's tokens"] == {
        "scale 1": [(2, 1.0), (4, 0.5)],
        "scale 10": [(2, 5.0), (4, 4.0)],
    }
    run(CurvesSpec(runs=[str(logged / "one")], out=logged / "curves.png"))
    with Image.open(logged / "curves.png") as image:
        assert image.width > 3 * image.height


@pytest.mark.parametrize("text", ["[1]\n", '{"loss": 1}\n', "{\n", '{"step": 1, "loss": "high"}\n', "\xff"])
def test_what_is_no_log_is_named(logged, text):
    (logged / "one" / "log.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"log\.jsonl"):
        read_log(str(logged / "one"))
    with pytest.raises(InputError, match=r"expected a training run with log\.jsonl, found none in "):
        read_log(str(logged / "nowhere"))
