"""`tandem study training-free`, `tradeoff`, `scales` and `fine-tuned` with tiny models of the embedded classes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_models import PATCH_NUMS
from tandem.errors import InputError
from tandem.training.pictures import PictureSet
from tandem_jobs.cli import main
from tandem_jobs.evaluation.bootstrap import Resampled
from tandem_jobs.evaluation.frechet import FeatureSums
from tandem_jobs.study import paper
from tandem_jobs.study.real_pictures import check_pictures
from tandem_jobs.study.single_scale import findings
from tandem_workers.features.extractors import FEATURES, LOGITS

IMAGES = 26


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all studies: what one has made, the next uses."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def study(inputs, out, capsys):
    threads = torch.get_num_threads()
    models = [f"--{role}={inputs / role}.safetensors" for role in ("drafter", "refiner", "vqvae")]

    def run(name: str, *flags: str, code: int = 0) -> tuple[dict, str, str]:
        """JSON, page and what was said."""
        small = ["--images", str(IMAGES), "--batch", "13", "--threads", "1", "--rounds", "50"]
        real = [] if "--reference" in flags else ["--data", str(inputs / "data")]
        assert main(["study", name, "--out", str(out), *models, *small, *real, *flags]) == code
        said = capsys.readouterr()
        if code:
            return {}, "", said.err
        page = (out / f"{name}.md").read_text()
        return json.loads(said.out.splitlines()[-1]), page, said.err

    yield run
    torch.set_num_threads(threads)


def kept(out, name: str) -> dict[str, np.ndarray]:
    with np.load(next((out / "features").glob(f"{name}-0-{IMAGES}-*.npz"))) as arrays:
        return dict(arrays)


def test_training_free_measures_all_settings_once(study, inputs, out):
    values, page, said = study("training-free")
    assert list(values["settings"]) == ["refiner", "code-1", "code-2", "code-3", "drafter"]
    assert said.count(f"{IMAGES} images in") == 5
    assert (values["reference_images"], values["images"], values["features"]["network"]) == (24, IMAGES, "embedded")
    labels = np.arange(IMAGES) % 12
    for name, found in values["settings"].items():
        assert found["agreement"]["value"] == pytest.approx((kept(out, name)[LOGITS].argmax(1) == labels).mean())
        assert 1 <= found["classifier_score_mean"]["value"] <= 12
        for key in ("frechet_distance", "precision", "recall"):
            one, beyond = found[key], found["minus_drafter"][key]
            assert one["low"] <= one["value"] <= one["high"] and beyond["low"] <= beyond["value"] <= beyond["high"]
            drafter = values["settings"]["drafter"][key]["value"]
            assert beyond["value"] == pytest.approx(one["value"] - drafter)
    assert values["settings"]["code-3"]["paper"]["fid"] == 1.99  # one scale is left to the refiner
    assert values["settings"]["code-1"]["paper"]["fid"] == paper.TRAINING_FREE[7].fid
    assert {"heldout_psnr_db", "memorisation", "classifier_on_heldout"} <= values.keys()
    assert values["memorisation"]["setting"] == "code-3"
    assert "| CoDe, N = 3 of 4 |" in page and "(arXiv" not in page
    assert {path.name for path in out.glob("*.png")} == {"training-free.png", "nearest.png"}
    again, _, said = study("training-free")
    assert again == values and "images in" not in said


def test_kept_images_are_those_of_the_same_numbers_alone(study):
    _, _, said = study("training-free", "--draft-steps", "3")
    assert "images in" not in said
    for flags, numbers in ((["--int8"], (True, False)), (["--fp8"], (False, True))):
        values, _, said = study("training-free", "--draft-steps", "3", *flags)
        assert (values["preparation"]["int8"], values["preparation"]["fp8"]) == numbers
        assert said.count(f"{IMAGES} images in") == 3
    values, _, said = study("training-free", "--draft-steps", "3", "--dtype", "bfloat16")
    assert values["dtype"] == "bfloat16" and said.count(f"{IMAGES} images in") == 3


def test_statistics_alone_give_the_distance_alone(study, out, tmp_path):
    study("training-free", "--draft-steps", "3")
    gaussian = FeatureSums(128, 1).add(kept(out, "drafter")[FEATURES]).gaussian()
    np.savez(tmp_path / "own.npz", mu=gaussian.mean, sigma=gaussian.covariance)
    values, page, _ = study("training-free", "--draft-steps", "3", "--reference", str(tmp_path / "own.npz"))
    drafter = values["settings"]["drafter"]
    assert drafter["frechet_distance"]["value"] == pytest.approx(0, abs=1e-4)
    assert "precision" not in drafter and "memorisation" not in values
    assert "Precision and recall are left out" in page
    _, _, said = study("training-free", "--reference", "x.npz", "--data", "y", code=2)
    assert "expected --data or --reference, got both" in said


def test_pictures_of_any_kind_are_a_reference_as_they_are(study, inputs):
    values, page, _ = study("training-free", "--draft-steps", "3", "--reference", str(inputs / "data" / "train"))
    assert values["reference_images"] == 24 and values["settings"]["drafter"]["recall"]["value"] >= 0
    assert "nearest.png" not in page


def test_tradeoff_uses_the_images_of_training_free(study):
    study("training-free")
    values, page, said = study("tradeoff", "--repeats", "2")
    assert f"{IMAGES} images in" not in said
    rows = values["settings"]
    assert [row["steps"] for row in rows.values()] == ["4", "1+3", "2+2", "3+1", "4"]
    assert all(row["images_per_s"]["value"] > 0 and row["memory_bytes"] > 0 for row in rows.values())
    assert rows["drafter"]["speed_up"] == {"value": 1, "low": 1, "high": 1}
    assert len(rows["code-2"]["parameters"]) == 2 and rows["drafter"]["parameters"] > rows["refiner"]["parameters"]
    assert (rows["code-3"]["paper_draft_steps"], rows["code-1"]["paper_draft_steps"]) == (9, 7)
    assert "| 1 |" in page and "| 9 | 1.2 | 0.734 | 0.04 | -0.01 |" in page


def test_scales_are_made_by_smaller_models_one_at_a_time(study, inputs):
    middle = str(inputs / "middle.safetensors")
    values, page, _ = study("scales", "--sizes", middle, "--only-scales", "1,4")
    rows = values["rows"]
    assert [(row["scale"], row["role"]) for row in rows] == [(1, "refiner"), (4, "refiner"), (1, middle), (4, middle)]
    assert rows[0]["parameters"] < rows[2]["parameters"] < values["drafter"]["parameters"]
    assert all(row["minus_drafter"]["frechet_distance"]["value"] != 0 for row in rows)
    assert "| 4 | " in page and "0.32" in page  # the paper's 0.3 B model at its scale 4, 2.27 - 1.95
    for flags, said in (
        (["--sizes", str(inputs / "drafter.safetensors")], "each once"),
        (["--sizes", middle, "--only-scales", "5"], "--only-scales: expected scales from 1 to 4"),
        (["--sizes", middle, "--draft-steps", "2"], "--draft-steps: expected none"),
    ):
        assert said in study("scales", *flags, code=2)[2]


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ((0.5, 0.3, 0.05, 0.0), ("at scale 1, 2.", "as the paper claims")),
        ((0.0, 0.05, -0.3, 0.4), ("at scale 4; at scale 3 the smaller one is better.", "no trend shows")),
        ((0.0, 0.0, 0.0, 0.0), ("at no scale.", "no trend shows")),
        ((0.0, 0.1, 0.3, 0.4), ("at scale 3, 4.", "the other way round")),
    ],
)
def test_findings_say_at_which_scales_the_large_model_is_needed(costs, said):
    noise = np.random.default_rng(1).standard_normal((len(costs), 1000))
    by_scale = {k: Resampled(value, value + 0.048 * noise[k - 1], 20) for k, value in enumerate(costs, 1)}
    found = findings(4, {"0.9 M": by_scale})
    assert len(found) == 2 and said[0] in found[0] and said[1] in found[1]


def test_fine_tuned_pairs_are_compared_with_a_control_at_every_n(study, inputs, out):
    drafter, middle, refiner = (f"{inputs / name}.safetensors" for name in ("drafter", "middle", "refiner"))
    flags = ["--tuned", f"2=,{middle}", "--tuned", f"3={middle},{refiner}", "--control", f"{drafter},{middle}"]
    values, page, _ = study("fine-tuned", *flags)
    assert values["draft_steps"] == [2, 3] and list(values["settings"]) == ["2", "3"]
    names = ["training-free", "fine-tuned", "control", "fine-tuned refiner alone"]
    assert list(values["settings"]["2"]) == list(values["settings"]["3"]) == names
    for found in values["settings"].values():
        distance = {name: one["frechet_distance"]["value"] for name, one in found.items()}
        minus = found["fine-tuned"]["frechet_minus"]
        assert minus.keys() == {"training-free", "control", "fine-tuned refiner alone", "drafter"}
        for other in ("training-free", "control"):
            gain = minus[other]
            assert gain["value"] == pytest.approx(distance["fine-tuned"] - distance[other])
            assert gain["low"] <= gain["value"] <= gain["high"]
        assert all(one["nearest_picture"] > 0 for one in found.values())
    # at N = 2 the control is the fine-tuned pair itself, as both have the drafter and this refiner
    assert values["settings"]["2"]["fine-tuned"]["frechet_minus"]["control"] == {"value": 0, "low": 0, "high": 0}
    assert "N = 2: fine-tuned CoDe's Fréchet distance is within its interval of control's: 0.000" in page
    assert "| 3 | fine-tuned |" in page and "| 9 | 1.94 |" in page and "](fine-tuned.png)" in page
    assert Image.open(out / "fine-tuned.png").width > 900

    losses = values["heldout_cross_entropy"]
    roles = {"drafter", "refiner", "tuned-refiner-2", "tuned-drafter-3", "tuned-refiner-3"}
    assert losses.keys() == roles | {"control-drafter", "control-refiner"}
    assert losses["control-drafter"] == losses["drafter"] != losses["refiner"]
    sizes = [n * n for n in PATCH_NUMS]
    for found in losses.values():
        mean = sum(n * one["value"] for n, one in zip(sizes, found["scales"], strict=True)) / sum(sizes)
        assert found["all"]["value"] == pytest.approx(mean) and found["all"]["low"] < mean < found["all"]["high"]


def test_a_distilled_pair_is_compared_with_the_guided_one(study, inputs, out):
    pair = f"{inputs / 'drafter'}.safetensors,{inputs / 'refiner'}.safetensors"
    values, page, _ = study("fine-tuned", "--distilled", pair, "--draft-steps", "2,3", "--repeats", "2", "--cfg", "2")
    assert list(values["distilled"]) == ["2", "3"]
    for found in values["distilled"].values():
        assert {found[f"{name}_ratio"] for name in ("rows", "kv_bytes", "flops")} == {0.5}
        for kind in ("tokens", "pixels"):
            ratio = found[f"{kind}_time_ratio"]
            assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
        assert found["frechet_within_margin"] == (found["frechet_minus_guided"]["high"] <= 0.05)
        assert found["agreement_within_margin"] == (found["agreement_minus_guided"]["low"] >= -0.01)
    assert "Distilled, N = 2: Fréchet distance" in page and "Time to tokens" in page
    assert kept(out, "distilled-2")[FEATURES].shape == (IMAGES, 128)
    again, _, said = study("fine-tuned", "--distilled", pair, "--draft-steps", "2", "--repeats", "1", "--cfg", "2")
    assert "images in" not in said and again["settings"]["2"] == values["settings"]["2"]


def test_a_study_that_was_stopped_makes_the_missing_parts(study, monkeypatch):
    monkeypatch.setattr("tandem_jobs.study.subject.PART_IMAGES", 13)
    _, _, said = study("training-free", "--draft-steps", "3", "--seed", "5")
    assert said.count("13 images in") == 3 * 2
    _, _, said = study("training-free", "--draft-steps", "3", "--seed", "5", "--images", "39")
    assert said.count("13 images in") == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected fine-tuned models: --tuned N=DRAFTER,REFINER, or --distilled DRAFTER,REFINER; none is embedded"),
        (["--tuned", "4=x.safetensors"], "--draft-steps: expected 1 to 3"),
        (["--tuned", "3=missing.pth"], "missing.pth"),
        (["--distilled", "a,b"], "expected --draft-steps, as no pair is for one N alone"),
        (["--distilled", "a", "--draft-steps", "2"], "--distilled: expected one pair for all N, DRAFTER,REFINER"),
        (["--tuned", "3=a", "--draft-steps", "2"], "--draft-steps: expected every N of the pairs, got none of 3"),
    ],
)
def test_fine_tuned_says_in_one_line_what_it_lacks(study, flags, message):
    said = study("fine-tuned", *flags, code=2)[2]
    assert message in said and said.count("error:") == 1


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a",), "two or more classes to tell apart, got 'a' alone"),
        (("a", "b", "c"), r"expected the 2 classes of the models in their order \(a, b\), got 3 \(a, b, c\)"),
        (("b", "a"), r"in their order \(a, b\), got 2 \(b, a\)"),
    ],
)
def test_pictures_of_other_classes_than_the_models_are_refused(classes, message):
    models = SimpleNamespace(image_size=16, class_names=("a", "b"))
    pixels = torch.zeros(len(classes), 3, 16, 16, dtype=torch.uint8)
    pictures = PictureSet(pixels, torch.arange(len(classes)), classes, classes)
    with pytest.raises(InputError, match=message):
        check_pictures(models, pictures)


def test_the_papers_rows_are_found_by_the_scales_left():
    assert [paper.same_left(left) for left in (1, 4, 9, 10, 0)] == [9, 6, 1, None, None]


def test_without_a_folder_of_pictures_npm_fetches_those_of_the_embedded_classes(monkeypatch, inputs, capsys):
    monkeypatch.setenv("PATH", "")
    models = [f"--{role}={inputs / role}.safetensors" for role in ("drafter", "refiner", "vqvae")]
    assert main(["study", "training-free", "--out", str(inputs / "new"), *models, "--images", "4"]) == 2
    said = capsys.readouterr().err
    assert "npm is needed to fetch emoji-datasource-google@16.0.0, and was not found" in said
    assert "give their folder with --data" in said
