"""`tandem study spectrum`, `gallery` and `no-reference`, with tiny models."""

import json
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_models import CLASS_NAMES
from tandem.errors import InputError
from tandem_jobs.cli import main
from tandem_jobs.study.no_reference import paper_score, without_network
from tandem_jobs.study.spectrum import SpectrumSpec, high_share, spectrum_of
from tandem_jobs.study.studies import STUDIES
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Subject


@pytest.fixture
def study(tiny_models, tmp_path, capsys):
    threads = torch.get_num_threads()
    models = [word for role in ("drafter", "refiner", "vqvae") for word in (f"--{role}", tiny_models[role])]

    def run(name: str, *flags: str, code: int = 0) -> tuple[dict, str]:
        """Its JSON and its page, or the lines on stderr of a refused one."""
        out = tmp_path / "out"
        assert main(["study", name, *models, "--threads", "1", "--batch", "4", "--out", str(out), *flags]) == code
        said = capsys.readouterr()
        if code:
            return {}, said.err
        values = json.loads(said.out.splitlines()[-1])
        assert json.loads((out / f"{name}.json").read_text()) == values
        return values, (out / f"{name}.md").read_text()

    yield run
    torch.set_num_threads(threads)


def waves(cycles: int, amplitude: float, size: int = 32) -> np.ndarray:
    """An image [3, H, W] that is one cosine of so many cycles."""
    row = 0.5 + amplitude * np.cos(2 * np.pi * cycles * np.arange(size) / size)
    return np.broadcast_to(row, (3, size, size))


def test_the_spectrum_of_cosines_is_where_they_are():
    """Scales 1, 2, 3 make a plain image, a wave of 3 cycles, and one of 12, above half of Nyquist's 16."""
    low, both = waves(3, 0.2), waves(3, 0.2) + waves(12, 0.1) - 0.5
    images = np.stack([waves(1, 0.0), low, both])[:, None]
    spectrum = spectrum_of(images, ends=1)
    assert spectrum.high[0] == pytest.approx([0, 0, 1], abs=1e-9)
    assert (spectrum.high_first[0], spectrum.high_last[0]) == pytest.approx((0, 1), abs=1e-9)
    assert spectrum.first[0, 0] == pytest.approx(0)  # the plain image is the zero frequency alone
    assert spectrum.first[0, 1:].max() == -6.0
    assert spectrum.last[0].argmax() == 12
    of_two = spectrum_of(images, ends=2)
    assert of_two.high_last[0] == pytest.approx(0.1**2 / (0.1**2 + 0.2**2))
    ring = np.rint(np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32))) * 32) == 12
    expected = np.log10(2 * (0.1 / 2) / 0.5 / ring.sum())  # two of the ring's coefficients have half the amplitude each
    assert of_two.last[0, 12] == pytest.approx(expected)


def test_noise_has_the_share_of_the_area_above_half_nyquist():
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(8, 3, 64, 64)))
    assert high_share(noise).mean() == pytest.approx(1 - np.pi * 0.25**2, abs=0.01)
    assert high_share(np.zeros((3, 8, 8), complex)) == 0


def test_spectrum_of_both_models_with_intervals(study, tmp_path):
    values, page = study("spectrum", "--images", "6", "--ends", "2")
    assert set(values["high_share"]) == set(values["curves"]) == {"drafter", "refiner"}
    for shares in values["high_share"].values():
        assert len(shares["of_scale"]) == 4
        for one in (shares["first"], shares["last"], *shares["of_scale"]):
            assert one["low"] <= one["value"] <= one["high"]
    curve = values["curves"]["refiner"]["last"]
    assert len(curve["mean"]) == len(curve["half"]) == 9  # rings 0 to 8 of 16 px
    assert page.count("\n| ") >= 6
    assert "of their energy above half the Nyquist frequency" in values["findings"][0]
    assert (tmp_path / "out" / "spectrum.png").stat().st_size < 300_000
    assert sorted(path.name for path in (tmp_path / "out" / "ids").iterdir()) == ["drafter-0-6.npz", "refiner-0-6.npz"]


@pytest.mark.parametrize(
    ("flags", "message"), [(("--ends", "4"), "--ends: expected 1 to 3, got 4"), (("--images", "1"), "--images")]
)
def test_a_spectrum_that_cannot_be_is_refused(study, flags, message):
    _, said = study("spectrum", *flags, code=2)
    assert message in said


def test_gallery_has_the_same_seeds_in_a_column(study, tmp_path, tiny_models):
    values, page = study("gallery", "--images", "3", "--classes", "dog,bee", "--draft-steps", "2,3")
    assert (values["index"], values["classes"]) == ([3, 1, 7], ["dog", "bee", "dog"])
    assert list(values["token_ids_that_differ"]) == ["drafter", "code-3", "code-2", "refiner"]
    assert values["token_ids_that_differ"]["drafter"] == 0 < values["token_ids_that_differ"]["code-3"]
    with (
        Image.open(tmp_path / "out" / "gallery.png") as all_rows,
        Image.open(tmp_path / "out" / "gallery-pair.png") as two,
    ):
        assert all_rows.width == two.width and all_rows.height > 1.8 * two.height
    assert "Captions have no speed-up" in page
    subject = Subject(StudyOptions(out=tmp_path, images=8, batch=4, **tiny_models))
    whole = subject.ids(subject.code(3))
    index = np.array(values["index"])
    assert np.array_equal(subject.ids_of_batch(subject.code(3), index).numpy(), whole[index])
    assert [CLASS_NAMES[label] for label in subject.labels()[index]] == values["classes"]


def test_captions_of_the_gallery_have_the_measured_speed_up(study, tmp_path):
    study("gallery", "--images", "2", "--draft-steps", "2")
    hashes = json.loads((tmp_path / "out" / "gallery.json").read_text())["weights_sha256"]
    rows = [
        {"draft_steps": n, "batch": b, "speed_up": {"value": v}} for n, b, v in ((None, 1, 1), (2, 8, 2.54), (2, 1, 9))
    ]
    latency = {"weights_sha256": hashes, "rows": rows, "device": "cpu"}
    path = tmp_path / "out" / "latency.json"
    path.write_text(json.dumps(latency))
    values, page = study("gallery", "--images", "2", "--draft-steps", "2")
    assert values["speed_up"] == {"code-2": 2.54}
    assert "N = 2, 2.5x" in page and "at batch 8, on cpu" in page
    path.write_text(json.dumps(latency | {"weights_sha256": {}}))
    assert "of other weights" in study("gallery", "--images", "2", "--draft-steps", "2")[1]
    path.write_text("{}")
    assert "expected what tandem study latency writes" in study("gallery", "--images", "2", code=2)[1]


@pytest.fixture
def pyiqa(tmp_path, monkeypatch):
    """A module of that name: MUSIQ is the brightness, CLIPIQA lacks its file and asks for a host."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "pyiqa.py").write_text(
        """
import socket
__version__ = "0.1.0"
def create_metric(name, device=None):
    if name == "clipiqa":
        socket.getaddrinfo("example.com", 443)
    if name == "brisque":
        return lambda x: x.mean((1, 2, 3)) * float("nan")
    return lambda x: 100 * x.mean((1, 2, 3))[:, None]
"""
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    yield
    sys.modules.pop("pyiqa", None)


def test_scores_that_can_be_had_are_reported_and_the_others_named(study, pyiqa):
    found = socket.getaddrinfo
    values, page = study("no-reference", "--images", "6", "--draft-steps", "2")
    assert socket.getaddrinfo is found
    assert list(values["settings"]) == ["drafter", "code-2", "refiner"]
    for scores in values["settings"].values():
        assert list(scores) == ["musiq"]
        assert 0 < scores["musiq"]["mean"]["low"] < scores["musiq"]["mean"]["high"] < 100
    assert values["settings"]["drafter"]["musiq"]["minus_drafter"]["value"] == 0
    clipiqa, niqe = values["missing"]
    assert "CLIPIQA is missing: pyiqa cannot open it without fetching" in clipiqa
    assert niqe == "NIQE is missing: it needs pictures of 96 px, these have 16."
    assert (values["package"], values["licence"]) == ("pyiqa 0.1.0", "PolyForm Noncommercial")
    assert clipiqa in page and "| drafter |" in page and "60.72" in page
    _, said = study("no-reference", "--images", "6", "--scores", "niqe,clipiqa", code=2)
    assert said.count("error:") == 1 and "expected a score that works here, got none: NIQE is missing" in said
    _, said = study("no-reference", "--images", "6", "--scores", "brisque", code=1)
    assert "expected 4 finite scores" in said


def test_without_pyiqa_the_study_ends_with_one_line_and_the_list_says_so(study, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, said = study("no-reference", code=2)
    assert said.count("error:") == 1
    assert "error: expected the package pyiqa (licence PolyForm Noncommercial), found none: MUSIQ, CLIPIQA" in said
    assert main(["study", "--list"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert listed["no-reference"]["missing"] == ["pyiqa"]
    assert all(not listed[name]["missing"] for name in listed if name != "no-reference")
    assert "PolyForm Noncommercial" in listed["no-reference"]["needs"]


def test_a_package_that_does_not_import_is_named(study, tmp_path, monkeypatch):
    (tmp_path / "pyiqa.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    _, said = study("no-reference", code=2)
    assert "expected pyiqa to import, got ModuleNotFoundError: No module named 'no_such_module'" in said


def test_the_network_is_back_after_an_error():
    found = socket.getaddrinfo
    with pytest.raises(OSError, match="fetches no files"), without_network():
        socket.create_connection(("example.com", 80))
    assert socket.getaddrinfo is found


def test_the_papers_score_is_that_with_as_many_scales_left():
    drafter, code = (
        SimpleNamespace(name=name, parts=parts)
        for name, parts in (("drafter", (("drafter", 7),)), ("code-5", (("drafter", 5), ("refiner", 7))))
    )
    assert paper_score(drafter, "niqe", 7) == 6.1739
    assert paper_score(code, "musiq", 7) == 60.79  # N = 8 of 10
    assert paper_score(code, "brisque", 7) is None
    assert paper_score(SimpleNamespace(name="refiner", parts=(("refiner", 7),)), "musiq", 7) is None


def test_every_study_of_this_room_is_listed():
    assert {"memory", "latency", "spectrum", "gallery", "no-reference"} <= set(STUDIES)
    with pytest.raises(InputError):
        Subject(SpectrumSpec(out="x", draft_steps=(9,)))
