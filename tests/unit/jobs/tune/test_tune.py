"""`tandem tune` with tiny models."""

import json
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tandem.metrics import Estimate
from tandem_jobs.cli import main, parse_options
from tandem_jobs.study.kept import kept_arrays
from tandem_jobs.study.subject import Subject
from tandem_jobs.tune.race import Speed, Standing
from tandem_jobs.tune.trials import SubjectTrials
from tandem_jobs.tune.tune import Tuner, TuneSpec

SMALL = ["--images", "16", "--first-images", "8", "--confirm-images", "24", "--batch", "4", "--rounds", "20"]
SMALL += ["--threads", "1", "--repeats", "2"]
GRID = ["--draft-steps", "2,3", "--schedules", "linear,off-after:2", "--temperature-scales", "1"]


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
        """Its JSON, and what was said; options of the grid replace those of the others."""
        grid = [word for at, flag in enumerate(GRID[::2]) if flag not in more for word in GRID[2 * at : 2 * at + 2]]
        assert main(["tune", "--out", str(out), *flags, *SMALL, *grid, *more]) == code
        said = capsys.readouterr()
        return json.loads(said.out.splitlines()[-1]) if not code else {}, said.err

    yield run
    torch.set_num_threads(threads)


def made(said: str) -> list[str]:
    return [line for line in said.splitlines() if " images in " in line]


def take(seconds: float, monkeypatch) -> None:
    """Let every candidate take so many seconds, and the reference one."""
    times = lambda self, candidates, repeats: np.array([[1.0, *[seconds] * len(candidates)]] * repeats)  # noqa: E731
    monkeypatch.setattr(SubjectTrials, "seconds", times)


def test_a_search_ends_with_a_choice_and_goes_on_where_it_was(tune, out, monkeypatch):
    take(0.5, monkeypatch)
    values, said = tune("--margins", "1e6,1", "--measures", "frechet,agreement")
    assert len(values["candidates"]) == 2 * 2 * 2 - 1  # N, guidance, precision; without the reference
    assert 1 <= sum(one["images"] == 16 for one in values["candidates"]) <= 4
    first, margins = values["candidates"][0], values["margins"]
    assert set(first["loss"]) == {"frechet", "agreement"} and margins == {"frechet": 1e6, "agreement": 1.0}
    assert values["reference_settings"] not in [one["settings"] for one in values["candidates"]]
    unguided = next(one for one in values["candidates"] if one["settings"]["cfg_schedule"] == "off-after:2")
    assert unguided["work_ratio"] < 1
    for file in ("tuned.json", "tuned.md", "tuned.png"):
        assert (out / file).stat().st_size > 0
    assert [one["holds"] for one in values["confirmed"]] == [True]
    assert values["settings"] == values["confirmed"][0]["settings"] != values["reference_settings"]
    again, more = tune("--margins", "1e6,1", "--measures", "frechet,agreement")
    assert made(said) and not made(more)
    assert again == values


def test_numbers_for_all_scales_are_one_schedule_in_quotes(flags, out):
    more = ["--schedules", '"0,1,2,0",linear', "--cfgs", "1,2"]
    more += ["--draft-steps", "2,3", "--temperature-scales", "1", "--precisions", "plain"]
    tuner = Tuner(parse_options("tune", ["--out", str(out), *flags, *SMALL, *more]))
    found = {(one.draft_steps, one.sampling.guidance) for one in tuner.candidates}
    assert {words for _, words in found} == {"cfg 0,1,2,0", "cfg 1", "cfg 2"} and len(found) == len(tuner.candidates)


def test_a_damaged_file_of_the_search_is_made_again(tmp_path, capsys):
    path, made = tmp_path / "ids" / "one.npz", []

    def make():
        made.append(1)
        return {"ids": np.arange(1000)}

    for damage in (None, lambda whole: whole[:300], lambda whole: b"", None):
        if damage:
            path.write_bytes(damage(path.read_bytes()))
        assert kept_arrays(path, {"seed": 1}, make)["ids"].tolist() == list(range(1000))
    assert len(made) == 3 and capsys.readouterr().err.count("is damaged, so it is made again") == 2
    kept_arrays(path, {"seed": 2}, make)
    assert len(made) == 4


def test_without_a_faster_one_the_reference_stays(tune, monkeypatch):
    take(2.0, monkeypatch)
    values, _ = tune("--margins", "1e6", "--measures", "frechet", "--precisions", "plain", "--schedules", "linear")
    assert values["confirmed"] == [] and values["settings"] == values["reference_settings"]


def test_the_score_of_a_probe_is_a_measure(flags, out):
    spec = parse_options("tune", ["--out", str(out), *flags, *SMALL, *GRID, "--measures", "cas", "--margins", "0.5"])
    tuner = Tuner(spec)
    losses = tuner.trials.losses(tuner.candidates[0], 16)
    assert set(losses) == {"cas"} and -1 <= losses["cas"].low <= losses["cas"].high <= 1
    assert tuner.trials.losses(tuner.reference, 16)["cas"] == Estimate(0, 0, 0)


def known(candidate, up: float, loss: float, half: float = 0.005) -> Standing:
    speed = Speed(Estimate(up, 0, 9), Estimate(up, 0, 9))  # ranges of all contain each other
    return Standing(candidate, 6, {"frechet": Estimate(loss, loss - half, loss + half)}, speed)


def test_the_fastest_that_seems_good_enough_is_confirmed_first(flags, out):
    spec = parse_options("tune", ["--out", str(out), *flags, *SMALL, *GRID, "--tries", "3", "--measures", "frechet"])
    tuner = Tuner(spec)
    tuner.margins = {"frechet": 0.05}
    highs, speeds, asked = iter((0.1, 0.05, 0.05)), iter((3.0, 0.9, 1.5)), []

    def losses_at(candidate, images, seed):
        asked.append((candidate, images, seed))
        return {"frechet": Estimate(0.0, -0.1, next(highs))}

    def speeds_of(candidates, name, repeats):
        up = next(speeds)
        return [Speed(Estimate(up, up, up), Estimate(up, up, up))]

    tuner.trials = SimpleNamespace(losses_at=losses_at, speeds_of=speeds_of)
    a, b, c, d, e, f = tuner.candidates[:6]
    standings = [known(a, 0.9, 0.0), known(b, 2.0, 0.0), known(c, 3.0, 0.04), known(d, 4.0, 0.06)]
    # of four times the images the interval is half as wide
    standings += [known(e, 1.6, 0.0, half=0.099), known(f, 5.0, 0.0, half=0.101)]
    found = tuner.confirm(standings)
    # the first is worse after all, the second not faster
    assert [(one.candidate, one.holds) for one in found] == [(c, False), (b, False), (e, True)]
    assert asked == [(c, 24, 2), (b, 24, 2), (e, 24, 2)]


def test_more_images_do_not_narrow_the_interval_of_a_score_over_held_out_pictures(flags, out):
    spec = parse_options("tune", ["--out", str(out), *flags, *SMALL, *GRID, "--measures", "cas", "--margins", "0.05"])
    tuner = Tuner(spec)
    for half, promises in ((0.04, True), (0.06, False)):
        one = known(tuner.candidates[0], 2.0, 0.0, half)
        one.losses = {"cas": one.losses["frechet"]}
        assert tuner.promises(one) == promises


def test_times_are_kept_for_the_same_configuration_alone(flags, out):
    def made(*more: str) -> list[str]:
        tuner = Tuner(parse_options("tune", ["--out", str(out), *flags, *SMALL, *GRID, *more]))
        timed = []
        tuner.trials.seconds = lambda candidates, repeats: timed.append(candidates) or np.ones((2, 1 + len(candidates)))
        tuner.trials.speeds_of(tuner.candidates[:1], "kept", 2)
        return timed

    assert made() and not made() and made("--dtype", "bfloat16") and made("--kernels", "plain")


def test_a_search_that_was_killed_while_it_timed_goes_on_there(flags, out):
    def timed(blocks: int) -> list[int]:
        """Blocks by their candidates; the one after the last is killed."""
        tuner, found = Tuner(parse_options("tune", ["--out", str(out), *flags, *SMALL, *GRID])), list[int]()

        def seconds(candidates, repeats):
            if len(found) == blocks:
                raise KeyboardInterrupt
            found.append(len(candidates))
            return np.ones((repeats, 1 + len(candidates)))

        tuner.trials.seconds = seconds
        with suppress(KeyboardInterrupt):
            tuner.trials.speeds(tuner.candidates[:7], 16, 2)
        return found

    assert timed(2) == [3, 3] and timed(2) == [1] and timed(2) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--int8"], "expected --precisions int8 or fp8, got --int8"),
        (["--measures", "fid"], "--measures: expected some of frechet, agreement, cas, got fid"),
        (["--margins", "0.1"], "expected --measures with --margins, in the same order; got none"),
        (["--margins", "0.1", "--measures", "frechet,cas"], "expected as many --margins as --measures, got 1 for 2"),
        (["--first-images", "64"], "expected --first-images of at most --images 16, got 64"),
        (["--schedules", "often"], "--schedules: expected"),
        (["--schedules", "0,1,2,3"], "--schedules: expected 4 strengths, one for each scale, got 1"),
        (
            ["--reference-draft-steps", "4"],
            "--reference-draft-steps: expected 1 to 3 (the pyramid has 4 scales), got 4",
        ),
        (["--temperature-scales", "0.001"], "--temperature-scales: expected"),
        (
            ["--draft-steps", "3", "--schedules", "linear", "--precisions", "plain"],
            "expected settings besides the reference, N = 3",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(tune, more, message):
    _, said = tune(*more, code=2)
    assert message in said


def test_images_of_another_seed_are_of_the_same_models(flags, tmp_path):
    spec = TuneSpec.model_validate({"out": tmp_path, **dict(flag[2:].split("=", 1) for flag in flags[:3])})
    subject = Subject(spec, part_images=100)
    other = subject.of(5000, 7)
    assert (subject.spec.images, other.spec.images, other.spec.seed) == (2560, 5000, 7)
    assert other.transformers is subject.transformers and other.parts()[0] == range(128)
