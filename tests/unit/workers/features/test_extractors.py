"""Extractors: networks of known weights, told apart by hash and resizer; wrong files are refused in one line."""

from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from support.picture_sources import MeanColours, TinyInception, save_torchscript
from tandem.errors import CheckpointError, InputError
from tandem.hashing import file_sha256
from tandem.training.classifier import load_classifier
from tandem.zoo import CARD, CLASSIFIER
from tandem_workers.features import inception
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.resizers import CLEAN, PILLOW, TENSORFLOW, resize

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def colours(tmp_path):
    return save_torchscript(tmp_path / "colours.pt", MeanColours(), '{"title": "Colours", "size": 16}')


def test_a_torchscript_file_is_described_by_itself_and_gives_features_and_logits(colours):
    chosen = pickle.loads(pickle.dumps(choose_extractor(colours)))
    assert (chosen.name, chosen.title, chosen.input_size) == ("colours", "Colours", 16)
    assert chosen.sha256 == file_sha256(colours)
    pixels = np.full((3, 16, 16, 3), 255, np.uint8)
    made = chosen.load(CPU)(pixels)
    np.testing.assert_allclose(made["features"][0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-5)
    np.testing.assert_allclose(made["logits"], 2 * made["features"][:, :2])
    assert made["features"].dtype == np.float32


def test_another_resizer_or_hash_is_another_extractor(colours, tmp_path):
    plain, clean = choose_extractor(colours), choose_extractor(colours, CLEAN)
    other = choose_extractor(save_torchscript(tmp_path / "colours2.pt", MeanColours(), '{"size": 16, "title": "X"}'))
    assert len({plain.folder, clean.folder, other.folder}) == 3
    assert plain.folder.startswith("colours-") and len(plain.folder) == len("colours-") + 8
    assert plain.number_name("Fréchet distance") == "Fréchet distance (Colours)"
    assert clean.number_name("kernel distance") == "kernel distance (Colours, clean)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("incepton", "features: expected inception, efficientnet-lite0, embedded or a TorchScript file"),
        ("missing.pt", "features: expected a weights file, found nothing at "),
        ("text.pt", "expected a TorchScript file"),
        ("odd.pt", "preprocessing.json: size: Input should be"),
    ],
)
def test_what_is_no_extractor_is_refused_in_one_line(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("no archive")
    save_torchscript(tmp_path / "odd.pt", MeanColours(), '{"size": 0}')
    with pytest.raises(InputError) as error:
        choose_extractor(name)
    assert message in one_line(error)
    with pytest.raises(InputError, match="resizer: expected one of pillow-bicubic, clean, tensorflow, got 'nearest'"):
        choose_extractor("embedded", "nearest")


def test_a_file_that_changed_is_not_loaded(colours, tmp_path):
    chosen = choose_extractor(colours)
    save_torchscript(tmp_path / "colours.pt", MeanColours(), '{"size": 8}')
    with pytest.raises(CheckpointError) as error:
        chosen.load(CPU)
    assert "colours: expected the file with sha256 " in one_line(error)


def test_inception_says_what_to_fetch_and_takes_no_other_file(colours, monkeypatch):
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    with pytest.raises(InputError) as error:
        choose_extractor("inception")
    assert "does not come with the package" in one_line(error)
    assert inception.URL in error.value.hint and inception.VARIABLE in error.value.hint
    monkeypatch.setenv(inception.VARIABLE, colours)
    with pytest.raises(CheckpointError) as error:
        choose_extractor("inception")
    assert "inception: expected the file with sha256 f58cb9b6ec323ed6…" in one_line(error)
    assert inception.URL in error.value.hint


def test_inception_gives_features_spatial_features_and_logits_without_bias(tmp_path):
    path = save_torchscript(tmp_path / "tiny.pt", TinyInception())
    chosen = inception.find_inception(path, sha256=file_sha256(path))
    network, module = chosen.load(CPU), torch.jit.load(path)
    made = network(np.stack([chosen.resized(pixels) for pixels in PIXELS]))
    with torch.no_grad():
        whole = module(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), True)
    np.testing.assert_allclose(made["features"], whole.numpy(), atol=1e-4)
    np.testing.assert_allclose(made["logits"], (whole @ module.output.weight.T).detach().numpy(), atol=1e-4)
    assert made["spatial"].shape == (2, 19 * 19 * 7)
    names = [chosen.number_name(quantity) for quantity in chosen.standard_names]
    assert names[:4] == ["FID", "sFID", "KID", "Inception Score"]
    assert inception.find_inception(path, CLEAN, chosen.sha256).number_name("Fréchet distance") == "FID (clean)"


def test_an_inception_network_that_computes_otherwise_is_refused(tmp_path):
    path = save_torchscript(tmp_path / "tiny.pt", TinyInception(off=100.0))
    with pytest.raises(CheckpointError, match="its own forward's features, layer by layer, got a difference of"):
        inception.find_inception(path, sha256=file_sha256(path)).load(CPU)


def test_the_embedded_classifier_has_the_hash_of_its_card_and_twelve_classes():
    chosen = choose_extractor("embedded")
    assert chosen.sha256 in CARD.read_text()
    made = chosen.load(CPU)(np.zeros((2, 64, 64, 3), np.uint8))
    assert (made["features"].shape, made["logits"].shape) == ((2, 128), (2, 12))
    assert load_classifier(CLASSIFIER)[1][:2] == ("face", "person")


@pytest.mark.skipif(not importlib.util.find_spec("efficientnet_lite_pytorch"), reason="comes with the extra evaluate")
def test_efficientnet_has_the_logits_of_its_own_forward():
    chosen = choose_extractor("efficientnet-lite0")
    assert chosen.number_name("Fréchet distance") == "Fréchet distance (EfficientNet-Lite0)"
    network = chosen.load(CPU)
    pixels = np.stack([chosen.resized(p) for p in PIXELS])
    made = network(pixels)
    with torch.no_grad():
        logits = network.module((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128)
    assert made["features"].shape == (2, 1280)
    np.testing.assert_allclose(made["logits"], logits.numpy(), atol=1e-4)


def test_resizers_differ_as_their_names_say():
    picture = PIXELS[0]
    rounded, clean = (resize(picture, 11, name) for name in (PILLOW, CLEAN))
    assert rounded.dtype == np.uint8 and clean.dtype == np.float32
    assert 0 < np.abs(rounded - clean).max() <= 1.5  # Pillow rounds twice: after rows, and after columns
    assert not np.allclose(resize(picture, 11, TENSORFLOW), clean, atol=5)  # it takes single pixels: aliased
    np.testing.assert_array_equal(resize(picture, 10, TENSORFLOW)[:, :, 0], picture[::2, ::3, 0])
    square = picture[:, :20]
    for name in (PILLOW, CLEAN, TENSORFLOW):
        np.testing.assert_allclose(resize(square, 20, name), np.asarray(Image.fromarray(square)), atol=1e-3)
