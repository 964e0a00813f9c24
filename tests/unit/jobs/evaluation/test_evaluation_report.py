"""The report: keys and names by extractor, JSON, the table of a card."""

import json

import pytest

from tandem.metrics import Estimate
from tandem_jobs.evaluation.report import Measured, Report, short
from tandem_workers.features.efficientnet import EfficientNetLite0
from tandem_workers.features.extractors import Extractor
from tandem_workers.features.inception import Inception
from tandem_workers.features.resizers import CLEAN, PILLOW, TENSORFLOW

LITE = EfficientNetLite0("efficientnet-lite0", "EfficientNet-Lite0", "x.pth", "ab" * 32, 224, PILLOW)
INCEPTION = Inception("inception", "Inception", "x.pt", "cd" * 32, 299, TENSORFLOW)


def report(extractor: Extractor, **more) -> Report:
    measured = (
        Measured("frechet", Estimate(12.34567, 12.1, 12.6), difference=Estimate(-0.5, -0.7, -0.3)),
        Measured("kernel", Estimate(-1e-5, -3e-5, 1e-5), std=2e-4),
        Measured("classifier_score", Estimate(8.5, 8.4, 8.6), std=0.1),
        Measured("recall", Estimate(0.61, 0.6, 0.62)),
        Measured("agreement", Estimate(0.9, 0.89, 0.91)),
    )
    return Report("out", 2400, extractor, measured, "pictures", 3000, **more)


def test_inception_has_the_keys_of_torch_fidelity_and_the_names_of_the_field():
    told = json.loads(json.dumps(report(INCEPTION).to_json()))
    assert told["frechet_inception_distance"] == 12.34567
    assert (told["kernel_inception_distance_mean"], told["kernel_inception_distance_std"]) == (-1e-5, 2e-4)
    assert (told["inception_score_mean"], told["inception_score_std"], told["recall"]) == (8.5, 0.1, 0.61)
    assert told["names"]["frechet_inception_distance"] == "FID"
    assert told["names"]["recall"] == "Recall"
    assert told["intervals_95"]["recall"] == [0.6, 0.62]


def test_no_other_network_has_a_number_called_fid():
    table, told = report(LITE).to_markdown(), report(LITE).to_json()
    assert not [key for key in told if "inception" in key]
    assert told["names"]["frechet_distance"] == "Fréchet distance (EfficientNet-Lite0)"
    assert told["names"]["agreement"] == "Agreement with the label (EfficientNet-Lite0)"
    assert "FID" not in table and "KID" not in table and "Inception" not in table
    assert told["extractor"]["sha256"] == "ab" * 32


def test_the_table_of_a_card():
    lines = (
        report(INCEPTION, against="other", notes=("sFID was left out: no spatial features.",))
        .to_markdown()
        .splitlines()
    )
    assert lines[2] == "| FID ↓ | 12.35 | 12.1 to 12.6 | -0.5 [-0.7, -0.3] |"
    assert lines[3] == "| KID ↓ | -1.000e-05 | -3.000e-05 to 1.000e-05 |  |"
    assert (
        lines[-2]
        == "2,400 images against 3,000 of pictures; features: Inception (cdcdcdcd), resized to 299 px by tensorflow."
    )
    assert lines[-1] == "- sFID was left out: no spatial features."
    assert short(0) == "0" and short(123456.0) == "1.235e+05"


def test_another_resizer_is_in_the_name_and_an_unknown_metric_is_refused():
    clean = Inception("inception", "Inception", "x.pt", "cd" * 32, 299, CLEAN)
    assert report(clean).to_json()["names"]["frechet_inception_distance"] == "FID (clean)"
    with pytest.raises(ValueError, match="expected one of frechet"):
        Measured("fid", Estimate(1, 0, 2))
