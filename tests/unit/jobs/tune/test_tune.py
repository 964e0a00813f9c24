"""`tandem tune` with tiny models, and its file in `generate`, `serve` and `plan`."""

import json
from types import SimpleNamespace

import pytest
import torch

from tandem.metrics import Estimate
from tandem_jobs.cli import main, parse_options
from tandem_jobs.options.options import GuidanceOptions
from tandem_jobs.options.spec import check
from tandem_jobs.options.tuned_file import TunedFile, check_weights, read_tuned
from tandem_jobs.run.decode_choices import check_tuned
from tandem_jobs.serve_options import AppSpec
from tandem_jobs.study.subject import Subject
from tandem_jobs.tune.tune import Tuner, TuneSpec

SMALL = ["--images", "16", "--first-images", "8", "--confirm-images", "24", "--batch", "4", "--rounds", "20"]
SMALL += ["--threads", "1", "--draft-steps", "2,3", "--schedules", "linear,off-after:2", "--repeats", "2"]
SMALL += ["--temperature-scales", "1"]


@pytest.fixture(scope="module")
def flags(inputs):
    models = [f"--{role}={inputs / role}.safetensors" for role in ("drafter", "refiner", "vqvae")]
    return [*models, "--data", str(inputs / "data")]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture
def tune(flags, out, capsys):
    threads = torch.get_num_threads()

    def run(*more: str, code: int = 0) -> tuple[dict, str]:
        """Its JSON, and what was said."""
        assert main(["tune", "--out", str(out), *flags, *SMALL, *more]) == code
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]) if not code else {}, said.err

    yield run
    torch.set_num_threads(threads)


def made(said: str) -> list[str]:
    return [line for line in said.splitlines() if " images in " in line]


def test_a_search_ends_with_a_choice_and_goes_on_where_it_was(tune, out):
    values, said = tune("--margins", "1e6,1", "--measures", "frechet,agreement")
    assert len(values["candidates"]) == 2 * 2 * 2  # N, guidance, precision
    assert {one["images"] for one in values["candidates"]} == {8, 16}
    assert sum(one["images"] == 16 for one in values["candidates"]) == 4
    first, margins = values["candidates"][0], values["margins"]
    assert set(first["loss"]) == {"frechet", "agreement"} and margins == {"frechet": 1e6, "agreement": 1.0}
    reference = next(one for one in values["candidates"] if one["settings"] == values["reference_settings"])
    assert reference["loss"]["frechet"]["value"] == 0 and reference["work_ratio"] == 1
    unguided = next(one for one in values["candidates"] if one["settings"]["cfg_schedule"] == "off-after:2")
    assert unguided["work_ratio"] < 1
    for file in ("tuned.json", "tuned.md", "tuned.png"):
        assert (out / file).stat().st_size > 0
    # with such margins the fastest one that was faster than the reference holds, if there was one
    assert bool(values["confirmed"]) == (values["settings"] != values["reference_settings"])
    again, more = tune("--margins", "1e6,1", "--measures", "frechet,agreement")
    assert made(said) and not made(more)
    assert again == values


def test_without_a_faster_one_as_good_the_reference_stays(tune):
    values, _ = tune("--margins", "0", "--measures", "frechet", "--precisions", "plain", "--schedules", "linear")
    held = [one for one in values["confirmed"] if one["holds"]]
    assert values["settings"] == (held[0]["settings"] if held else values["reference_settings"])


def test_the_score_of_a_probe_is_a_measure(flags, out):
    spec = parse_options("tune", ["--out", str(out), *flags, *SMALL, "--measures", "cas", "--margins", "0.5"])
    tuner = Tuner(spec)
    losses = tuner.trials.losses(tuner.candidates[0], 16)
    assert set(losses) == {"cas"} and -1 <= losses["cas"].low <= losses["cas"].high <= 1
    assert tuner.trials.losses(tuner.reference, 16)["cas"] == Estimate(0, 0, 0)


def test_the_fastest_that_seems_good_enough_is_confirmed_first(flags, out):
    spec = parse_options("tune", ["--out", str(out), *flags, *SMALL, "--tries", "2", "--measures", "frechet"])
    tuner = Tuner(spec)
    tuner.margins = {"frechet": 0.05}
    speed, asked = lambda x: SimpleNamespace(speed_up=Estimate(x, x, x)), []

    def losses_at(candidate, images, seed):
        asked.append((candidate, images, seed))
        return {"frechet": Estimate(0.0, -0.1, 0.1 if len(asked) == 1 else 0.05)}

    tuner.trials = SimpleNamespace(losses_at=losses_at, speeds_of=lambda candidates, name: [speed(2.0)])
    standings = [
        SimpleNamespace(candidate=one, left="", speed_up=up, losses={"frechet": Estimate(loss, -1, 1)})
        for one, up, loss in zip(tuner.candidates, (0.9, 2.0, 3.0, 4.0), (0.0, 0.0, 0.04, 0.06), strict=False)
    ]
    found = tuner.confirm(standings)
    assert [(one.candidate, one.holds) for one in found] == [(tuner.candidates[2], False), (tuner.candidates[1], True)]
    assert asked == [(tuner.candidates[2], 24, 2), (tuner.candidates[1], 24, 2)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--int8"], "expected --precisions int8 or fp8, got --int8"),
        (["--measures", "fid"], "--measures: expected some of frechet, agreement, cas, got fid"),
        (["--margins", "0.1"], "expected as many --margins as --measures, got 1 for 0"),
        (["--first-images", "64"], "expected --first-images of at most --images 16, got 64"),
        (["--schedules", "often"], "--cfg-schedule: expected"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tune, more, message):
    _, said = tune(*more, code=2)
    assert message in said


@pytest.fixture
def tuned(tmp_path):
    """A file of settings for the embedded models' N = 4."""
    settings = {"draft_steps": 4, "cfg": 2.5, "cfg_schedule": "off-after:4", "top_k": 100, "top_p": 0.9}
    settings |= {"temperatures": [1.0, 0.9], "int8": True}
    reference = settings | {"draft_steps": 5, "cfg_schedule": "linear", "int8": False}
    interval = {"value": 0.01, "low": -0.01, "high": 0.03}
    one = {"settings": settings, "loss": {"frechet": interval}, "images": 8, "speed_up": interval}
    other = {**one, "settings": settings | {"draft_steps": 2}, "loss": {"frechet": interval | {"high": 0.3}}}
    path = tmp_path / "tuned.json"
    values = {"tandem_settings": 1, "weights_sha256": {"drafter": "a" * 64}, "settings": settings}
    values |= {"margins": {"frechet": 0.05}, "reference_settings": reference, "confirmed": [one]}
    path.write_text(json.dumps({**values, "frontier": [one, other], "notes": []}))
    return path


def test_settings_of_a_file_are_those_of_a_job_unless_others_are_given(tuned):
    rows = ["--classes", "all", "--images", "4", "--out", "o", "--settings", str(tuned)]
    spec = parse_options("generate", rows)
    assert (spec.draft_steps, spec.cfg, spec.cfg_schedule, spec.int8) == (4, 2.5, "off-after:4", True)
    assert (spec.top_k, spec.top_p, spec.temperatures) == (100, 0.9, (1.0, 0.9))
    spec = parse_options("generate", [*rows, "--cfg", "1", "--draft-steps", "6"])
    assert (spec.draft_steps, spec.cfg, spec.cfg_schedule) == (6, 1.0, "off-after:4")


def test_an_application_takes_the_file_too(tuned):
    spec = check(AppSpec, {"settings": str(tuned), "top_k": None}, "")
    assert isinstance(spec, GuidanceOptions) and (spec.cfg_schedule, spec.top_k) == ("off-after:4", 100)


def test_settings_for_other_weights_are_refused(tuned):
    models = SimpleNamespace(hashes={"drafter": "b" * 64})
    spec = check(AppSpec, {"settings": str(tuned)}, "")
    with pytest.raises(Exception, match="was made for the drafter aaaaaaaaaaaa, got bbbbbbbbbbbb"):
        check_tuned(spec, models)
    check_weights(str(tuned), {"drafter": "a" * 64})


@pytest.mark.parametrize(("text", "problem"), [("{", "not JSON"), ("{}", "expected a value"), (None, "No such file")])
def test_another_file_is_refused_in_one_line(tmp_path, capsys, text, problem):
    path = tmp_path / "tuned.json"
    if text is not None:
        path.write_text(text)
    rows = ["--classes", "all", "--images", "4", "--out", str(tmp_path / "o"), "--settings", str(path)]
    assert main(["generate", *rows]) == 2
    said = capsys.readouterr().err
    assert "--settings: " in said and problem in said and not (tmp_path / "o").exists()


def test_a_plan_takes_the_fastest_n_of_that_quality(tuned, capsys):
    found = read_tuned(str(tuned))
    assert isinstance(found, TunedFile)
    assert sorted(found.within(0.05)) == [4, 5] and sorted(found.within(0.5)) == [2, 4, 5]
    assert sorted(found.within(0.0)) == [5] and sorted(found.within(None)) == [4]
    base = ["plan", "--profile", "paper-l20", "--gpus", "l20:3", "--images", "1e6"]
    text = json.loads(tuned.read_text())
    text["settings"]["draft_steps"] = text["confirmed"][0]["settings"]["draft_steps"] = 7
    text["frontier"], text["reference_settings"]["draft_steps"] = [], 9
    tuned.write_text(json.dumps(text))
    assert main([*base, "--settings", str(tuned), "--max-quality-loss", "0.05"]) == 0
    said = capsys.readouterr()
    values = json.loads(said.out.splitlines()[-1])
    assert values["best"]["draft_steps"] == 7 and values["request"]["allowed_steps"] == [7, 9]
    assert values["settings"]["cfg_schedule"] == "off-after:4"
    assert "settings of N = 7, also for tandem profile: --cfg 2.5 --cfg-schedule off-after:4" in said.err
    assert main([*base, "--max-quality-loss", "0.05"]) == 2
    assert "expected --settings tuned.json with --max-quality-loss, got none" in capsys.readouterr().err


def test_images_of_another_seed_are_of_the_same_models(flags, tmp_path):
    spec = TuneSpec.model_validate({"out": tmp_path, **dict(flag[2:].split("=", 1) for flag in flags[:3])})
    subject = Subject(spec, part_images=100)
    other = subject.of(5000, 7)
    assert (subject.spec.images, other.spec.images, other.spec.seed) == (2560, 5000, 7)
    assert other.transformers is subject.transformers and other.parts()[0] == range(128)
