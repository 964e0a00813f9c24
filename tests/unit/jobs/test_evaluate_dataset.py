"""`tandem evaluate DATASET` on features that are there: numbers, notes and errors, without Ray."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from prdc import compute_prdc
from scipy.linalg import sqrtm

from support.damage import make
from support.evaluations import evaluated, extract_here, features_of, pictures, refused, save_folder
from support.picture_sources import MeanColours, save_torchscript
from tandem_jobs.cli import main
from tandem_jobs.run import block_run
from tandem_workers.dataset.card_section import write_section
from tandem_workers.dataset.success_file import read_success
from tandem_workers.dataset.verify import verify
from tandem_workers.features.embedded_classifier import embedded_class_names
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage import layout


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def started(*_):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(block_run, "open_session", started)


@pytest.fixture
def colours(tmp_path):
    """A network of 3 features and 2 logits."""
    return save_torchscript(tmp_path / "colours.pt", MeanColours(), '{"size": 16, "title": "Colours"}')


@pytest.fixture
def places(tmp_path, colours):
    found = [save_folder(tmp_path / f"set{i}", pictures(60 + 10 * i, seed=i, shift=5 * i)) for i in range(3)]
    extract_here(colours, *found)
    return found


def test_all_metrics_are_those_of_other_implementations_on_the_same_features(places, colours, capsys, tmp_path):
    dataset, reference, test = places
    args = (dataset, "--reference", reference, "--test", test, "--features", colours, "--out", str(tmp_path / "out"))
    found, said = evaluated(capsys, *args)
    x, y = (features_of(colours, place).astype(float) for place in (dataset, reference))
    root = sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    distance = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert found["frechet_distance"] == pytest.approx(distance, rel=1e-4)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = compute_prdc(y, x, 3)
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-4)
    assert 0 <= found["classification_accuracy_score"] <= 1
    assert found["names"]["frechet_distance"] == "Fréchet distance (Colours)"
    assert set(found["intervals_95"]) == set(found["names"]) and len(found["names"]) == 10
    for name, (low, high) in found["intervals_95"].items():
        assert low <= found[name] <= high
    assert (found["images"], found["reference_images"]) == (60, 70)
    assert "agreement with the label left out: the classes of Colours have no names that are known here." in said
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    assert "| Fréchet distance (Colours) ↓ |" in (tmp_path / "out" / "report.md").read_text()
    assert evaluated(capsys, *args)[0] == found


def test_identical_sets_have_a_distance_of_0_and_1_of_the_rest(places, colours, capsys):
    found, said = evaluated(capsys, places[0], "--reference", places[0], "--against", places[0], "--features", colours)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert [found[name] for name in ("precision", "recall", "density", "coverage")] == [1, 1, 1, 1]
    assert all(each == {"value": 0, "low": 0, "high": 0} for each in found["difference_to_against"].values())
    assert "are paired: its images have the same indices and labels" in said


def test_differences_are_paired_where_images_are_and_wider_where_not(places, colours, capsys, tmp_path):
    base = pictures(60, seed=0)
    noisy = np.random.default_rng(5).integers(0, 3, base.shape, dtype=np.uint8)
    twin = save_folder(tmp_path / "twin", base + noisy)
    other = save_folder(tmp_path / "other", np.concatenate([base + noisy, base[:1]]))
    extract_here(colours, twin, other)
    args = (places[0], "--reference", places[1], "--features", colours)
    paired, _ = evaluated(capsys, *args, "--against", twin)
    apart, said = evaluated(capsys, *args, "--against", other)
    assert "are not paired, as its images have other indices or labels" in said
    widths = [
        each["high"] - each["low"]
        for each in (found["difference_to_against"]["frechet_distance"] for found in (paired, apart))
    ]
    assert widths[0] < widths[1] / 3


@pytest.mark.parametrize("form", ["webdataset", "parquet", "folder"])
def test_the_same_images_in_other_files_have_the_same_numbers(form, colours, capsys, tmp_path):
    make(tmp_path / "out", form)
    assert main(["export", str(tmp_path / "out"), "--to", "npz", str(tmp_path / "out.npz")]) == 0
    twins = [str(tmp_path / "out"), str(tmp_path / "out.npz")]
    reference = save_folder(tmp_path / "reference", pictures(30, seed=3))
    extract_here(colours, *twins, reference)
    found = [evaluated(capsys, twin, "--reference", reference, "--features", colours)[0] for twin in twins]
    for each in found:
        for key in ("dataset", "settings", "notes"):
            del each[key]
    assert found[0] == found[1]


def test_agreement_is_by_names_and_the_embedded_classifier_is_chosen_for_its_classes(capsys, tmp_path):
    names = embedded_class_names()[3:6]
    dataset = save_folder(tmp_path / "set", pictures(30, 64), names)
    extract_here("embedded", dataset)
    found, said = evaluated(capsys, dataset)
    assert said.startswith("--features embedded: the classes are those of the embedded model\n")
    assert set(found["agreement_by_class"]) == set(names)
    assert "without --reference there is no Fréchet distance, kernel distance, precision" in said
    pixels = np.concatenate([[*open_pictures(dataset).read(0).decoded()]])
    np.savez(tmp_path / "set.npz", pixels, open_pictures(dataset).read(0).label + 3)
    extract_here("embedded", str(tmp_path / "set.npz"))
    bare, said = evaluated(capsys, str(tmp_path / "set.npz"), "--features", "embedded")
    assert "labels are numbers alone; --class-names says what they stand for" in said and "agreement" not in bare
    named, _ = evaluated(capsys, str(tmp_path / "set.npz"), "--class-names", "embedded")
    assert named["agreement_by_class"] == found["agreement_by_class"]
    other = save_folder(tmp_path / "more", pictures(30, 64), (*names, "unicorn"))
    extract_here("embedded", other)
    more, said = evaluated(capsys, other, "--features", "embedded")
    assert set(more["agreement_by_class"]) == set(names) and "it does not know unicorn" in said


def test_pictures_show_classes_and_the_nearest_real_ones(capsys, tmp_path):
    names = embedded_class_names()[3:6]
    base = pictures(30, 64)
    dataset = save_folder(tmp_path / "set", base, names)
    reference = save_folder(tmp_path / "reference", base[::-1], names)
    extract_here("embedded", dataset, reference)
    out = tmp_path / "out"
    evaluated(capsys, dataset, "--reference", reference, "--out", str(out))
    drawn = {path.name for path in out.iterdir()} - {"report.json", "report.md"}
    assert drawn == {"agreement.png", "worst_classes.png", "best_classes.png", "nearest.png"}
    assert all(f"]({name})" in (out / "report.md").read_text() for name in drawn)
    sheet = np.asarray(Image.open(out / "nearest.png").convert("RGB"))
    cells = [sheet[6:134, 6:134], sheet[sheet.shape[0] // 2 + 3 :][:128, 6:134]]
    np.testing.assert_array_equal(*cells)  # the same picture is the nearest


def test_a_network_on_pixels_is_named_in_the_accuracies(places, colours, capsys):
    steps = ("--classifier-steps", "3")
    args = (places[0], "--reference", places[1], "--test", places[2], "--features", colours, *steps)
    found, _ = evaluated(capsys, *args)
    assert (
        found["names"]["classification_accuracy_score"]
        == "Accuracy after training on the dataset (network on pixels, 3 steps)"
    )
    assert 0 <= found["classification_accuracy_score"] <= 1
    assert "expected --test with --classifier-steps" in refused(capsys, places[0], *steps)


def test_statistics_alone_give_the_distance_and_beside_pictures_only_for_inception(places, colours, capsys, tmp_path):
    x = features_of(colours, places[1]).astype(float)
    np.savez(tmp_path / "stats.npz", mu=x.mean(0), sigma=np.cov(x.T))
    args = (places[0], "--features", colours)
    whole, _ = evaluated(capsys, *args, "--reference", places[1])
    found, said = evaluated(capsys, *args, "--reference", str(tmp_path / "stats.npz"))
    assert found["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-6)
    assert "precision" not in found and found["reference_images"] is None
    assert "statistics alone give no kernel distance, precision, recall, density, coverage" in said
    pixels = np.concatenate([[*open_pictures(places[1]).read(0).decoded()]])
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu=np.zeros(5), sigma=np.eye(5))
    extract_here(colours, str(tmp_path / "adm.npz"))
    both, said = evaluated(capsys, *args, "--reference", str(tmp_path / "adm.npz"))
    assert "its statistics are of Inception features; those of its pictures were measured instead" in said
    assert both["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-6)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    error = refused(capsys, places[0], "--features", "embedded", "--reference", str(tmp_path / "wide.npz"))
    assert "expected statistics of 128 features, as embedded classifier makes, got 2,048" in error


def test_notes_on_sizes_few_images_and_classes_that_the_reference_lacks(colours, capsys, tmp_path):
    mixed = save_folder(tmp_path / "mixed", pictures(6, 16), ("ant", "bee", "cat"))
    save_folder(tmp_path / "mixed", pictures(3, 24), ("ant",), first=6)
    reference = save_folder(tmp_path / "reference", pictures(3, 24, seed=1))
    extract_here(colours, mixed, reference)
    found, said = evaluated(capsys, mixed, "--reference", reference, "--features", colours)
    assert "images of 2 sizes (6 of 16 x 16, 3 of 24 x 24), all resized to 16 x 16." in said
    assert "images of 24 x 24, resized to 16 x 16." in said
    assert "the reference has 3 images, no more than the 3 features: its covariance is singular" in said
    assert "the reference lacks 1 of the 3 classes of the dataset (cat), 2 images." in said
    assert "coverage, kernel distance left out: expected at least 4 images in the reference, got 3." in said
    assert "frechet_distance" in found and "precision" not in found


def test_constant_images_have_numbers(places, colours, capsys, tmp_path):
    constant = save_folder(tmp_path / "constant", np.repeat(pictures(1), 12, axis=0))
    extract_here(colours, constant)
    found, _ = evaluated(capsys, constant, "--reference", places[0], "--features", colours)
    assert found["recall"] == 0 and found["classifier_score_mean"] == pytest.approx(1)
    found, said = evaluated(capsys, places[0], "--reference", constant, "--features", colours)
    assert "left out: expected a reference of distinct images" in said and found["frechet_distance"] > 0


def test_wrong_input_is_one_line(places, colours, capsys, tmp_path):
    one = save_folder(tmp_path / "one", pictures(1))
    extract_here(colours, one)
    assert f"error: {one}: expected two images or more, got 1" in refused(capsys, one, "--features", colours)
    assert "did you mean efficientnet-lite0?" in refused(capsys, places[0], "--features", "efficientnet-lite1")
    assert "expected pictures at nowhere, there is nothing" in refused(capsys, places[0], "--reference", "nowhere")
    assert "expected --reference with --test" in refused(capsys, places[0], "--test", places[1])
    unfinished = make(tmp_path / "unfinished")
    unfinished.remove(layout.SUCCESS)
    assert "is not complete: it has no _SUCCESS" in refused(capsys, unfinished.uri, "--features", colours)
    new = save_folder(tmp_path / "new", pictures(4))
    (tmp_path / "file").write_text("")
    error = refused(capsys, new, "--features", colours, "--features-out", str(tmp_path / "file" / "below"))
    assert f"error: features of {new}: cannot " in error and "hint: --features-out PLACE keeps them" in error
    assert "--card: expected a finished dataset of Tandem with a README.md" in refused(
        capsys, places[0], "--features", colours, "--card"
    )
    extract_here(colours, new)
    save_folder(tmp_path / "new", pictures(5))
    assert "holds features of something else" in refused(capsys, new, "--features", colours)


def test_features_of_several_places_fit_into_one_folder(places, colours, capsys, tmp_path):
    kept = str(tmp_path / "kept")
    extract_here(colours, *places[:2], features_out=kept)
    found, _ = evaluated(capsys, places[0], "--reference", places[1], "--features", colours, "--features-out", kept)
    assert found["settings"]["features"]["dataset"].startswith(f"{kept}/set0-")


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_run_killed_while_it_writes_the_card_leaves_a_complete_dataset(tmp_path, monkeypatch, written):
    store = make(tmp_path / "out")
    write_section(store, "first")
    replace, left = type(store).replace, iter(range(written))

    def killed(self, path, data):
        next(left)  # StopIteration is the kill
        replace(self, path, data)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "replace", killed)
        with pytest.raises(StopIteration):
            write_section(store, "second")
    assert read_success(store) is not None
    write_section(store, "third")
    assert verify(store).problems == [] and verify(store).complete
    card = store.read(layout.CARD).decode()
    assert "third" in card and "first" not in card and "second" not in card


def test_the_card_gets_one_table_and_the_dataset_stays_verified(colours, capsys, tmp_path):
    store = make(tmp_path / "out")
    extract_here(colours, store.uri)
    for _ in range(2):
        evaluated(capsys, store.uri, "--features", colours, "--card")
        card = store.read(layout.CARD).decode()
        assert card.startswith("# a card\n") and card.count("## Evaluation") == card.count("| Metric | Value |") == 1
        assert verify(store).problems == [] and verify(store).complete
    make(tmp_path / "out")  # the same command again leaves it
    assert store.read(layout.CARD).decode() == card
    (tmp_path / "out" / layout.CARD).write_text("edited")
    assert "was changed since the dataset was closed" in refused(capsys, store.uri, "--features", colours, "--card")
