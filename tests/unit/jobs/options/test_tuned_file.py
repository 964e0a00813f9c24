"""The file of `tandem tune` in `generate`, `serve`, `plan` and files of a cluster."""

import json
import re
from types import SimpleNamespace

import pytest
import yaml

from tandem.errors import InputError
from tandem.zoo import ROLES
from tandem_jobs.cli import main, parse_options
from tandem_jobs.options.options import GuidanceOptions
from tandem_jobs.options.spec import as_flags, check
from tandem_jobs.options.tuned_file import TunedFile, check_weights, read_tuned
from tandem_jobs.run.decode_choices import check_tuned
from tandem_jobs.serve_options import AppSpec


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
    values = {"tandem_settings": 1, "weights_sha256": dict.fromkeys(ROLES, "a" * 64), "settings": settings}
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
    models = SimpleNamespace(hashes=dict.fromkeys(ROLES, "a" * 64) | {"drafter": "b" * 64})
    spec = check(AppSpec, {"settings": str(tuned)}, "")
    with pytest.raises(Exception, match="was made for the drafter aaaaaaaaaaaa, got bbbbbbbbbbbb"):
        check_tuned(spec, models)
    check_weights(str(tuned), dict.fromkeys(ROLES, "a" * 64))


@pytest.mark.parametrize(("text", "problem"), [("{", "not JSON"), ("{}", "expected a value"), (None, "No such file")])
def test_another_file_is_refused_in_one_line(tmp_path, capsys, text, problem):
    path = tmp_path / "tuned.json"
    if text is not None:
        path.write_text(text)
    rows = ["--classes", "all", "--images", "4", "--out", str(tmp_path / "o"), "--settings", str(path)]
    assert main(["generate", *rows]) == 2
    said = capsys.readouterr().err
    assert "--settings: " in said and problem in said and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--cfg-schedule", "0,1,2,3,4,5,6"], {"cfg": None, "cfg_schedule": "0,1,2,3,4,5,6", "int8": True}),
        (["--cfg", "0"], {"cfg": 0.0, "cfg_schedule": "off-after:4", "refiner_cfg": None}),
        (["--fp8"], {"fp8": True, "int8": False}),
        (["--no-int8"], {"int8": False}),
    ],
)
def test_what_is_given_replaces_what_it_rules_out_also_where_a_job_is_submitted(tuned, flags, expected):
    change(tuned, refiner_cfg=0.5)
    rows = ["--classes", "all", "--images", "4", "--out", "o", "--settings", str(tuned), *flags]
    spec = parse_options("generate", rows)
    assert {name: getattr(spec, name) for name in expected} == expected
    assert parse_options("generate", as_flags(spec)) == spec


def test_numbers_for_all_scales_give_way_to_one_strength(tuned):
    change(tuned, cfg_schedule="0,1,2,3,4,5,6", cfg=None)
    rows = ["--classes", "all", "--images", "4", "--out", "o", "--settings", str(tuned)]
    assert parse_options("generate", rows).cfg_schedule == "0,1,2,3,4,5,6"
    spec = parse_options("generate", [*rows, "--cfg", "1"])
    assert (spec.cfg, spec.cfg_schedule) == (1.0, None)
    with pytest.raises(InputError, match=r"--refiner-cfg: expected --cfg or --cfg-schedule with it: .* has strengths"):
        parse_options("generate", [*rows, "--refiner-cfg", "0"])


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("settings", "cfg"), -1, "settings: cfg: expected 0 to 1000, got -1.0$"),
        (("settings", "cfg_schedule"), "often", "settings: .*cfg_schedule: expected linear"),
        (("settings", "cfg_schedule"), "0,1,2", "cfg: expected none beside the strengths of all scales"),
        (("settings", "cfg_schedule"), "off-after:11", "cfg_schedule: expected off-after:k with k of 1 to 10"),
        (("settings", "top_p"), 3, "top_p: expected 0 to 1"),
        (("settings", "top_k"), -5, "top_k: expected >= 0"),
        (("settings", "temperatures"), [], "temperatures: expected one or more"),
        (("settings", "draft_steps"), 0, "settings.draft_steps: expected greater than or equal to 1"),
        (("settings", "draft_steps"), 10, "draft_steps: expected 1 to 9, got 10"),
        (("settings", "fp8"), True, "expected int8 or fp8, got both"),
        (("margins",), {}, "margins: .*at least 1 item"),
        (("margins",), {"agreement": 0.1}, "loss: expected agreement, got no agreement"),
        (("weights_sha256",), {"drafter": "a"}, "weights: expected vqvae, drafter, refiner, got no vqvae"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tuned, capsys, place, value, problem):
    text = json.loads(tuned.read_text())
    part = text[place[0]] if len(place) > 1 else text
    part[place[-1]] = value
    tuned.write_text(json.dumps(text))
    plan = ["plan", "--profile", "paper-l20", "--gpus", "l20:3", "--images", "1e6", "--settings", str(tuned)]
    assert main([*plan, "--max-quality-loss", "0.05"]) == 2
    said = capsys.readouterr().err
    assert re.search(f"--settings: {re.escape(str(tuned))}: .*{problem}", said, re.MULTILINE)
    assert "Traceback" not in said


def change(path, **settings) -> None:
    """Write the choice and what was confirmed anew; None is left out."""
    text = json.loads(path.read_text())
    other = text["frontier"][1]["settings"]["draft_steps"]
    for one in (text["settings"], *(found["settings"] for found in (*text["confirmed"], *text["frontier"]))):
        one |= settings
        for name in [name for name, value in settings.items() if value is None]:
            del one[name]
    text["frontier"][1]["settings"]["draft_steps"] = other
    path.write_text(json.dumps(text))


def test_a_plan_takes_the_fastest_settings_of_that_quality(tuned):
    change(tuned, int8=False)
    found = read_tuned(str(tuned))
    assert isinstance(found, TunedFile)
    assert sorted(found.for_gpus(0.05)) == [4, 5] and sorted(found.for_gpus(0.5)) == [2, 4, 5]
    assert sorted(found.for_gpus(0.0)) == [5] and sorted(found.for_gpus(None)) == [4]
    refuted = found.model_copy(deep=True)
    refuted.confirmed[0].loss["frechet"].high = 0.2  # on new seeds, whatever the search said
    assert sorted(refuted.for_gpus(0.05)) == [5]
    slow = found.model_copy(deep=True)
    slow.confirmed[0].settings.draft_steps, slow.confirmed[0].speed_up.value = 5, 0.6
    assert slow.for_gpus(0.05)[5] == found.reference_settings
    worse = found.model_copy(deep=True)
    worse.margins["agreement"] = 0.01
    for one in (*worse.confirmed, *worse.frontier):
        one.loss["agreement"] = one.loss["frechet"].model_copy(update={"high": 0.2})
    assert sorted(worse.for_gpus(0.5)) == [5]


def test_a_plan_has_the_settings_of_its_n_and_files_of_a_cluster_too(tuned, capsys, tmp_path):
    base = ["plan", "--profile", "paper-l20", "--gpus", "l20:3", "--images", "1e6"]
    assert main([*base, "--settings", str(tuned)]) == 2
    assert "expected settings for GPUs, got int8" in capsys.readouterr().err
    change(tuned, int8=False, draft_steps=7)
    text = json.loads(tuned.read_text())
    text["frontier"], text["reference_settings"]["draft_steps"] = [], 9
    tuned.write_text(json.dumps(text))
    assert main([*base, "--settings", str(tuned), "--max-quality-loss", "0.05"]) == 0
    said = capsys.readouterr()
    values = json.loads(said.out.splitlines()[-1])
    assert values["best"]["draft_steps"] == 7 and values["request"]["allowed_steps"] == [7, 9]
    assert values["settings"]["7"]["cfg_schedule"] == "off-after:4"
    flags = "--cfg 2.5 --cfg-schedule off-after:4"
    assert flags in said.err and "images/s are those of the profiles" in said.err
    plan = tmp_path / "plan.json"
    plan.write_text(said.out)
    images = ["--drafter", "var_d30", "--refiner", "var_d16", "--vqvae", "vae_ch160v4096z32", "--image", "tandem:1"]
    assert main(["cluster", "render", "--plan", str(plan), "--out", str(tmp_path / "files"), *images]) == 0
    served = yaml.safe_load((tmp_path / "files" / "serve.yaml").read_text())["applications"][0]["args"]
    assert (served["draft_steps"], served["cfg_schedule"], served["temperatures"]) == (7, "off-after:4", [1.0, 0.9])
    for more, problem in (
        (["--max-quality-loss", "0.05"], "expected --settings tuned.json with --max-quality-loss, got none"),
        (["--settings", str(tuned), "--draft-steps", "7"], "expected --settings, whose N is planned, without"),
    ):
        assert main([*base, *more]) == 2
        assert problem in capsys.readouterr().err
