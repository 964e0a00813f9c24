"""Guidance that requests ask for, beside that of the server."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from support.fake_engine import ABOUT, PATH, SAMPLING, FakeEngine, client, make_gateway
from tandem.errors import InputError
from tandem_jobs.serve import describe
from tandem_jobs.serve_options import AppSpec
from tandem_workers.models.model_set import resolve_models
from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.api_schema import body_of
from tandem_workers.requests.request_check import RequestCheck, check_defaults

STRENGTHS = "0,0.3333333333333333,1,20"


def test_strengths_of_all_scales_stand_alone():
    engine = FakeEngine()
    api = client(make_gateway(engine))
    answer = api.post(PATH, json={"prompt": "dog", "cfg_schedule": STRENGTHS})
    made = answer.json()["tandem"]
    assert engine.asked[0].sampling == replace(SAMPLING, cfg_schedule=STRENGTHS)
    assert made["cfg_schedule"] == STRENGTHS and "cfg" not in made and "refiner_cfg" not in made
    known = ("seed", "draft_steps", "cfg_schedule", "top_k", "top_p", "temperatures")
    again = api.post(PATH, json={"prompt": "dog", **{name: made[name] for name in known}})
    assert again.json()["data"] == answer.json()["data"]
    for name in ("cfg", "refiner_cfg"):
        error = api.post(PATH, json={"prompt": "dog", "cfg_schedule": STRENGTHS, name: 2})
        assert (error.status_code, error.json()["error"]["param"]) == (400, name)
        assert "expected none beside the strengths of all scales, got 2" in error.json()["error"]["message"]


def test_a_cfg_takes_the_place_of_the_servers_strengths_of_all_scales():
    check = RequestCheck(replace(ABOUT, sampling=replace(SAMPLING, cfg_schedule=STRENGTHS)))
    body = body_of(check.about, 1)
    asked = check.check(body(prompt="dog", cfg=2.0, refiner_cfg=0.0))[0].sampling
    assert asked == replace(SAMPLING, cfg=2.0, refiner_cfg=0.0)
    assert check.check(body(prompt="dog", top_k=3))[0].sampling.cfg_schedule == STRENGTHS
    with pytest.raises(ApiError, match="refiner_cfg: expected cfg or cfg_schedule with it"):
        check.check(body(prompt="dog", refiner_cfg=0.0))


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"cfg": 20.0}, None),
        ({"cfg_schedule": STRENGTHS, "cfg": 30.0}, None),
        ({"cfg": 30.0}, "cfg: expected what a request may ask for, less than or equal to 20, got 30.0"),
        ({"cfg_schedule": "0,0,0,21"}, "cfg_schedule: expected what a request may ask for, strengths of at most 20"),
        ({"top_k": 65}, "top_k: expected what a request may ask for, less than or equal to 64, got 65"),
        ({"temperatures": (11.0,)}, "temperatures: expected what a request may ask for, less than or equal to 10"),
    ],
)
def test_a_server_does_by_default_what_a_request_may_ask_for(own, problem):
    about = replace(ABOUT, sampling=replace(SAMPLING, **own))
    with pytest.raises(InputError, match=problem) if problem else nullcontext():
        check_defaults(about)


def test_settings_without_effect_are_no_part_of_what_a_server_does(tiny_models):
    """Defaults are those of ten scales and 4,096 codes, tiny models have four and 64."""
    models = resolve_models(*(tiny_models[role] for role in ("drafter", "refiner", "vqvae")), False)
    about = describe(AppSpec(), models)
    assert len(models.sampling.temperatures) > about.num_scales == len(about.sampling.temperatures)
    assert models.sampling.top_k > about.vocab_size == about.sampling.top_k
    check_defaults(about)
