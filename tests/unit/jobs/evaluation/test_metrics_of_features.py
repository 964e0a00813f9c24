"""Kernel distance, neighbours, Inception Score, agreement, accuracy score: second implementations and exact cases."""

import contextlib
import io
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from scipy.stats import t
from sklearn.linear_model import RidgeClassifier
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from tandem.errors import InputError
from tandem.training.pictures import PictureSet
from tandem_jobs.evaluation.accuracy_score import (
    RIDGE,
    equally_many,
    linear_probe_hits,
    network_hits,
)
from tandem_jobs.evaluation.agreement import agreement
from tandem_jobs.evaluation.bootstrap import resampled_mean, t95
from tandem_jobs.evaluation.feature_arrays import StoredRows, group_of, in_sample
from tandem_jobs.evaluation.frechet import FeatureSums, frechet_distance
from tandem_jobs.evaluation.inception_score import ProbabilitySums, inception_score
from tandem_jobs.evaluation.kernel_distance import kernel_distance, mmd, subset_rows
from tandem_jobs.evaluation.neighbours import neighbours


def features(n: int, num_features: int = 24, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, num_features)) * np.linspace(0.2, 2, num_features) + 1 + shift).astype(np.float32)


def means(found) -> dict[str, float]:
    names = {"precision": found.precise, "recall": found.recalled, "density": found.density, "coverage": found.covered}
    return {name: float(values.mean()) for name, values in names.items()}


# Neighbours
@pytest.mark.parametrize("block", [64, 1000])
@pytest.mark.parametrize("nearest", [3, 5])
def test_neighbours_are_those_of_prdc(block, nearest):
    ours, reference = features(310, seed=1, shift=0.4), features(290, seed=2)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = compute_prdc(reference, ours, nearest)
    found = means(neighbours(ours, reference, nearest, block))
    assert found == pytest.approx(theirs, abs=5e-5)
    assert 0.1 < found["coverage"] < 0.9


def test_identical_sets_have_1_of_everything():
    same = features(250)
    assert means(neighbours(same, same.copy(), block=64)) == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), 1
    )


def test_a_collapsed_dataset_has_recall_0_and_a_collapsed_reference_is_refused():
    reference = features(60)
    collapsed = np.repeat(reference[:1], 40, axis=0)
    found = means(neighbours(collapsed, reference, block=16))
    assert (found["precision"], found["recall"]) == (1, 0)
    assert found["density"] > 0 and 0 < found["coverage"] < 0.2
    with pytest.raises(InputError, match="a reference of distinct images, got 40 images that have 3 equals each"):
        neighbours(reference, collapsed)
    with pytest.raises(InputError, match="at least 4 images in the dataset, got 1"):
        neighbours(reference[:1], reference)
    with pytest.raises(InputError, match="as many features as the reference has, 24, got 5"):
        neighbours(reference[:, :5], reference)


def test_neighbours_of_rows_in_a_file_hold_blocks_and_no_whole_matrix(tmp_path):
    np.save(tmp_path / "ours.npy", features(3000, 8, 1))
    np.save(tmp_path / "reference.npy", features(3000, 8, 2))
    ours, reference = StoredRows(tmp_path / "ours.npy"), StoredRows(tmp_path / "reference.npy")
    tracemalloc.start()
    found = neighbours(ours, reference, block=250)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # of a 36 MB matrix
    assert means(found)["precision"] > 0.9
    with pytest.raises(InputError, match="cannot be read"):
        StoredRows(tmp_path / "none.npy")


# Kernel distance
def test_the_kernel_distance_is_that_of_torchmetrics_on_the_same_subsets():
    ours, reference = features(200, seed=1, shift=0.2), features(230, seed=2)
    found = kernel_distance(ours, reference, size=50, subsets=6, seed=3)
    pairs = zip(subset_rows(200, 50, 6, 3), subset_rows(230, 50, 6, 4), strict=True)
    theirs = [poly_mmd(*(torch.from_numpy(x).double() for x in (reference[b], ours[a]))).item() for a, b in pairs]
    assert found.values == pytest.approx(theirs, rel=1e-8)
    metric = KernelInceptionDistance(torch.nn.Flatten(), subsets=1, subset_size=200)
    for array, real in ((reference[:200], True), (ours, False)):
        metric.update(torch.from_numpy(array).reshape(-1, 24, 1, 1), real=real)
    whole = kernel_distance(ours, reference[:200], size=200, subsets=1)
    assert whole.values.mean() == pytest.approx(metric.compute()[0].item(), rel=1e-4)


def test_the_kernel_distance_of_identical_sets_is_below_0():
    same = features(100)
    assert kernel_distance(same, same, size=100, subsets=1).values[0] < 0


def test_subsets_are_disjoint_as_long_as_images_last_and_the_same_for_two_datasets():
    rows = subset_rows(105, 10, 13, seed=1)
    assert rows.shape == (13, 10) and len(np.unique(rows[:10])) == 100
    assert all(len(np.unique(subset)) == 10 for subset in rows)
    first, second, reference = features(300, seed=1), features(300, seed=1) + 0.01, features(400, seed=2)
    measured = [kernel_distance(x, reference) for x in (first, second)]
    assert (measured[0].size, measured[0].disjoint) == (30, 10)
    apart, alone = measured[0].resampled().minus(measured[1].resampled()).estimate, measured[0].resampled().estimate
    assert apart.high - apart.low < 0.2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("ours", "keywords", "message"),
    [
        (features(1), {}, "at least 4 images in the dataset, got 1"),
        (features(9), {"size": 10}, "of 2 to 9 images, got 100 of 10"),
        (features(9) * np.nan, {}, "NaN or infinity"),
        (features(9)[:, 0], {}, r"expected features \[images, features\]"),
    ],
)
def test_wrong_features_are_refused(ours, keywords, message):
    with pytest.raises(InputError, match=message):
        kernel_distance(ours, features(50), **keywords)


# Inception Score
def test_the_inception_score_is_that_of_torchmetrics():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 3
    metric = InceptionScore(torch.nn.Flatten(), splits=1)
    metric.update(logits.reshape(200, 7, 1, 1))
    p, split = logits.softmax(1).numpy(), np.zeros(200, dtype=int)
    sums = ProbabilitySums(7, 1).add(p[:90], split[:90])
    sums += ProbabilitySums(7, 1).add(p[90:], split[90:])
    assert sums.scores()[0] == pytest.approx(metric.compute()[0].item(), rel=1e-4)
    ten = inception_score(ProbabilitySums(7).add(p, group_of(np.arange(200), 10)))
    assert ten.estimate.low < ten.value < ten.estimate.high
    assert 1 < ten.value < sums.scores()[0]  # fewer images a split


def test_the_inception_score_has_its_bounds_and_refuses_logits():
    certain, split = np.eye(5)[np.arange(20) % 5], np.zeros(20, dtype=int)
    assert ProbabilitySums(5, 1).add(certain, split).scores() == pytest.approx([5])
    assert ProbabilitySums(5, 1).add(certain[:1], split[:1]).scores() == pytest.approx([1])  # one image
    with pytest.raises(InputError, match="sum to 1"):
        ProbabilitySums(5, 1).add(certain * 3, split)
    with pytest.raises(InputError, match="images in each of 10 splits, got 1"):
        ProbabilitySums(5).add(certain[:1], split[:1]).scores()


# Agreement and intervals
def test_agreement_has_intervals_overall_and_for_each_class():
    labels = np.repeat([0, 1, 3, -1], [50, 30, 10, 5])
    predicted = np.concatenate([np.repeat([0, 1], 25), np.full(30, 1), np.full(10, 3), np.zeros(5, int)])
    found = agreement(np.arange(95), labels, predicted, num_classes=4)
    assert found.num_unlabelled == 5
    assert found.overall.value == pytest.approx(65 / 90)
    assert found.overall.estimate.low < 65 / 90 < found.overall.estimate.high
    assert {label: e.value for label, e in found.by_class.items()} == {0: 0.5, 1: 1, 3: 1}
    assert 0.7 < found.by_class[3].low < found.by_class[1].low < 1 == pytest.approx(found.by_class[3].high)
    assert found.worst_first()[0] == 0
    with pytest.raises(InputError, match="labels from 0 to 2 as the classifier has, got 3"):
        agreement(np.arange(95), labels, predicted, num_classes=3)
    with pytest.raises(InputError, match="got 2 images without one"):
        agreement(np.arange(2), np.full(2, -1), np.zeros(2, int), 3)


def test_intervals_of_groups_are_as_wide_as_those_of_images():
    values = np.random.default_rng(0).normal(size=4000)
    estimate = resampled_mean(values, group_of(np.arange(4000), 40)).estimate
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 / np.sqrt(4000), rel=0.3)
    with pytest.raises(InputError, match="two groups"):
        resampled_mean(values[:1], np.zeros(1, int))


@pytest.mark.parametrize("degrees", [1, 5, 6, 9, 19, 200])
def test_the_quantile_is_that_of_scipy(degrees):
    assert t95(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=5e-3)


def test_groups_and_sample_depend_on_indices_and_not_on_their_order():
    index = np.arange(1000) * 7
    order = np.random.default_rng(0).permutation(1000)
    assert (group_of(index[order], 20) == group_of(index, 20)[order]).all()
    assert set(np.bincount(group_of(index, 20))) == {50}
    assert (in_sample(index[order], 100) == in_sample(index, 100)[order]).all()
    assert in_sample(index, 100).sum() == 100 and in_sample(index, 5000).all()
    assert group_of(index[:3], 20).max() == 2  # fewer images than groups


# Accuracy score
def blobs(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    return (rng.normal(size=(n, 6)) + np.eye(6)[labels] * 2 + shift).astype(np.float32), labels


def test_the_linear_probe_is_that_of_scikit_learn():
    train, test = blobs(300, 0), blobs(400, 1)
    variance = train[0].var(axis=0, dtype=float).mean()
    theirs = RidgeClassifier(alpha=RIDGE * variance * 300).fit(*train).predict(test[0])
    blocks = [tuple(side[rows] for side in train) for rows in (slice(0, 120), slice(120, 300))]
    hits = linear_probe_hits(blocks, [test], num_classes=3)
    assert (hits == (theirs == test[1])).all()
    assert 0.7 < hits.mean() < 1


def test_a_dataset_is_compared_with_as_many_real_pictures_of_each_class():
    dataset, real, test = blobs(200, 0, shift=0.5), blobs(500, 1), blobs(300, 2)
    ours, theirs = equally_many(dataset[1], real[1])
    assert (np.bincount(dataset[1][ours]) == np.bincount(real[1][theirs])).all()
    hits = [linear_probe_hits([(x[r], y[r])], [test], 3) for (x, y), r in ((dataset, ours), (real, theirs))]
    assert 0.5 < hits[0].mean() <= hits[1].mean()
    with pytest.raises(InputError, match="two classes or more"):
        equally_many(np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(InputError, match="got 20 equal images"):
        linear_probe_hits([(np.ones((20, 6)), np.arange(20) % 2)], [test], 3)
    with pytest.raises(InputError, match="a label from 0 to 1 for each of 200 images"):
        linear_probe_hits([dataset], [test], 2)


def test_a_network_on_pixels_learns_from_the_dataset_alone():
    labels = torch.arange(64) % 2
    pixels = (labels * 200 + 20).to(torch.uint8)[:, None, None, None].expand(64, 3, 16, 16).contiguous()
    pictures = PictureSet(pixels, labels, tuple(f"{i}" for i in range(64)), ("dark", "light"))
    assert network_hits(pictures, pictures, steps=12, batch=16).mean() > 0.9
    other = PictureSet(pixels, labels, pictures.names, ("light", "dark"))
    with pytest.raises(InputError, match="same classes and size"):
        network_hits(pictures, other, steps=1)


# All of them on small sets
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(2, 9),
    st.integers(1, 5),
    st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    st.sampled_from([0.0, 5.0]),
)
def test_small_and_constant_sets_have_a_number_or_a_clear_error(n, m, num_features, scale, offset):
    rng = np.random.default_rng(n * 10 + m)
    ours = (rng.normal(size=(n, num_features)) * scale + offset).astype(np.float32)
    reference = (rng.normal(size=(m, num_features)) + offset).astype(np.float32)

    def gaussian(x):
        return FeatureSums(num_features, 1).add(x).gaussian()

    for measure in (
        lambda: frechet_distance(gaussian(ours), gaussian(reference)),
        lambda: kernel_distance(ours, reference).resampled().estimate.high,
        lambda: sum(means(neighbours(ours, reference)).values()),
        lambda: mmd(ours[:2].astype(float), reference[:2].astype(float)) if n > 1 else 0.0,
    ):
        try:
            value, error = measure(), "expected"
        except InputError as refused:
            value, error = 0.0, str(refused)
        assert np.isfinite(value)
        assert error.startswith("expected") and "\n" not in error
