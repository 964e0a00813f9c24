"""Fréchet distance from sums: closed forms, scipy and torchmetrics, intervals, bad input."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from tandem.errors import InputError
from tandem_jobs.evaluation.bootstrap import draws
from tandem_jobs.evaluation.feature_arrays import group_of
from tandem_jobs.evaluation.frechet import (
    FeatureSums,
    Gaussian,
    frechet_distance,
    read_gaussian,
    resampled_frechet,
    streamed_frechet,
)


def features(n: int, num_features: int = 16, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Correlated features of several scales, float32."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(num_features, num_features)) * np.linspace(0.1, 2, num_features)
    return (rng.normal(size=(n, num_features)) @ mixing + shift + 3).astype(np.float32)


def gaussian(array: np.ndarray) -> Gaussian:
    return FeatureSums(array.shape[1], 1).add(array).gaussian()


@pytest.mark.parametrize(
    ("n", "num_features"), [(500, 16), (40, 64)], ids=["many images", "fewer images than features"]
)
def test_the_distance_is_that_of_scipy_and_torchmetrics(n, num_features):
    ours, theirs = features(n, num_features, 1), features(n + 30, num_features, 2, shift=0.3)
    value = frechet_distance(gaussian(ours), gaussian(theirs))
    left, right = np.cov(ours.T.astype(float)), np.cov(theirs.T.astype(float))
    root = np.trace(sqrtm(left @ right)).real
    means = ours.mean(0, dtype=float) - theirs.mean(0, dtype=float)
    assert value == pytest.approx(means @ means + np.trace(left) + np.trace(right) - 2 * root, rel=1e-4)
    metric = FrechetInceptionDistance(torch.nn.Flatten(), input_img_size=(num_features, 1, 1))
    for array, real in ((theirs, True), (ours, False)):
        metric.update(torch.from_numpy(array).reshape(-1, num_features, 1, 1), real=real)
    assert value == pytest.approx(metric.compute().item(), rel=1e-4)
    assert gaussian(ours).few_images == (n < num_features)


def test_a_known_shift_and_scale_have_their_analytic_distance():
    base = features(300)
    assert frechet_distance(gaussian(base), gaussian(base + 2)) == pytest.approx(16 * 4, rel=1e-6)
    trace = np.trace(gaussian(base).covariance)
    centred = base - base.mean(0)
    assert frechet_distance(gaussian(3 * centred), gaussian(centred)) == pytest.approx((3 - 1) ** 2 * trace, rel=1e-5)


@pytest.mark.parametrize("n", [300, 10])
def test_identical_sets_have_the_distance_0(n):
    ours = gaussian(features(n, 32))
    assert frechet_distance(ours, ours) == pytest.approx(0, abs=1e-5 * np.trace(ours.covariance))


def test_sums_add_up_over_blocks_in_any_order_and_groups():
    array = features(101)
    group = group_of(np.arange(101), 5)
    parts = [FeatureSums(16, 5).add(array[i::3], group[i::3]) for i in (2, 0, 1)]
    for part in parts[1:]:
        parts[0] += part
    whole = gaussian(array)
    np.testing.assert_allclose(parts[0].gaussian().covariance, whole.covariance, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(whole.covariance, np.cov(array.T.astype(float)), rtol=1e-10, atol=1e-10)
    assert parts[0].n.tolist() == [21, 20, 20, 20, 20]
    with pytest.raises(InputError, match=r"expected sums of \[5, 16\]"):
        parts[0] += FeatureSums(16, 4)


def test_memory_of_the_sums_does_not_grow_with_the_images():
    def peak(blocks: int) -> int:
        tracemalloc.start()
        sums = FeatureSums(128, 4)
        for block in range(blocks):
            sums.add(np.full((200, 128), block, np.float32), np.arange(200) % 4)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    assert peak(50) == pytest.approx(peak(5), rel=0.05)


def test_constant_images_have_a_distance_and_one_image_has_none():
    other = features(300)
    constant = gaussian(np.full((20, 16), 2.5, np.float32))
    means = np.square(other.mean(0, dtype=float) - 2.5).sum()
    expected = means + np.trace(gaussian(other).covariance)
    assert frechet_distance(constant, gaussian(other)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(gaussian(other), constant) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(constant, constant) == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match="at least 2 images for a covariance, got 1"):
        gaussian(other[:1])


def test_linear_resamples_spread_as_exact_ones():
    ours, reference = features(600, 12, 1), gaussian(features(2000, 12, 2, shift=0.2))
    group = group_of(np.arange(600), 20)
    sums = FeatureSums(12, 20).add(ours, group)
    measured = resampled_frechet(sums, reference, rounds=200)
    blocks = [(ours[i::3], group[i::3]) for i in range(3)]
    streamed = streamed_frechet(FeatureSums(12, 1).add(ours), reference, blocks, rounds=200)
    np.testing.assert_allclose(streamed.resamples, measured.resamples, rtol=1e-9)
    exact = []
    for counts in draws(20, 200):
        drawn = np.repeat(ours, counts[group], axis=0)
        exact.append(frechet_distance(gaussian(drawn), reference))
    assert measured.value == pytest.approx(frechet_distance(gaussian(ours), reference))
    assert measured.resamples.std() == pytest.approx(np.std(exact), rel=0.1)
    assert np.corrcoef(measured.resamples, exact)[0, 1] > 0.9


def test_datasets_of_the_same_seeds_are_compared_with_a_smaller_interval():
    ours, reference = features(600, 12, 1), gaussian(features(2000, 12, 2, shift=0.2))
    near = ours + 0.02
    group = group_of(np.arange(600), 20)
    first, second = (resampled_frechet(FeatureSums(12, 20).add(x, group), reference) for x in (ours, near))
    paired, alone = first.minus(second).estimate, first.estimate
    assert paired.value == pytest.approx(first.value - second.value)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    with pytest.raises(InputError, match="on the same draws"):
        first.minus(resampled_frechet(FeatureSums(12, 20).add(ours, group), reference, rounds=9))


def test_statistics_alone_are_a_reference(tmp_path):
    array = features(200)
    mean, covariance = gaussian(array).mean, gaussian(array).covariance
    np.savez(tmp_path / "adm.npz", mu=mean, sigma=covariance, mu_s=mean[:3], sigma_s=covariance[:3, :3])
    read = read_gaussian(tmp_path / "adm.npz", "adm.npz")
    assert frechet_distance(gaussian(features(200, seed=5)), read) > 0 and not read.few_images
    assert read_gaussian(tmp_path / "adm.npz", "adm.npz", spatial=True).mean.shape == (3,)
    with pytest.raises(InputError, match="as many features as the reference has, 16, got 8"):
        frechet_distance(gaussian(features(50, 8)), read)


def test_wrong_statistics_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(3))
    with pytest.raises(InputError, match=r"mu and sigma in s\.npz, got \['mu'\]"):
        read_gaussian(tmp_path / "s.npz", "s.npz")
    with pytest.raises(InputError, match="cannot be read"):
        read_gaussian(io.BytesIO(b"no zip"), "s.npz")
    with pytest.raises(InputError, match=r"a mean \[F\] and a covariance"):
        Gaussian(np.zeros(3), np.zeros((2, 2)))
    with pytest.raises(InputError, match="finite covariance"):
        Gaussian(np.zeros(2), np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="NaN or infinity for 1 of 4 images"):
        FeatureSums(2, 1).add(np.array([[0, 1], [np.nan, 2], [0, 0], [1, 1]]))


def test_intervals_are_about_as_wide_as_the_spread_of_fresh_datasets():
    reference, group = gaussian(features(4000, 32, 2, shift=0.3)), group_of(np.arange(640), 20)
    sets = [features(640, 32, seed) for seed in range(100, 150)]
    true = np.std([frechet_distance(gaussian(ours), reference) for ours in sets])
    found = [resampled_frechet(FeatureSums(32, 20).add(ours, group), reference).estimate for ours in sets[:12]]
    assert 0.8 < np.mean([e.high - e.low for e in found]) / (2 * 2.09) / true < 1.7
