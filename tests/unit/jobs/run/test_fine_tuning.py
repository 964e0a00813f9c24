"""Fine-tuned and distilled checkpoints: what their headers say decides the default N and cfg, and is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.sample_drafts import DECODING, drafts_of
from support.tiny_models import CLASS_NAMES, tiny_var, tiny_vqvae
from tandem.checkpoints.fine_tuning import FineTuned
from tandem.checkpoints.weights import open_checkpoint, save_checkpoint
from tandem.config import Pyramid, SamplingConfig, to_dict
from tandem.errors import CheckpointError
from tandem.hashing import file_sha256
from tandem_jobs.checkpoints import InspectSpec, run_inspect
from tandem_jobs.draft import DraftJob, DraftSpec
from tandem_jobs.generate import GenerateJob, GenerateSpec
from tandem_jobs.profile import ProfileSpec
from tandem_jobs.refine import RefineJob, RefineSpec
from tandem_jobs.run.batch_size import SPLIT, Workload, all_stages
from tandem_jobs.run.decode_choices import choose_sampling
from tandem_jobs.serve import describe
from tandem_jobs.serve_options import ServeSpec
from tandem_workers.models.model_set import resolve, resolve_models
from tandem_workers.models.sources import local_file

PLAIN, DISTILLED = FineTuned(), FineTuned(distilled_cfg=3.0)
USUAL = SamplingConfig().cfg


@pytest.fixture
def pair(tmp_path):
    """Saves a drafter, a refiner and a VQVAE; returns their options."""

    def save(drafter: FineTuned = PLAIN, refiner: FineTuned = PLAIN) -> dict[str, str]:
        models = {"drafter": (tiny_var(2, 1), drafter), "refiner": (tiny_var(1, 2), refiner)}
        for role, (model, tuned) in models.items():
            extra = {"classes": list(CLASS_NAMES), **tuned.to_header()}
            save_checkpoint(tmp_path / f"{role}.safetensors", model, extra, torch.float32)
        save_checkpoint(tmp_path / "vqvae.safetensors", tiny_vqvae(), {}, torch.float32)
        return {role: str(tmp_path / f"{role}.safetensors") for role in (*models, "vqvae")}

    return save


def generate(models: dict[str, str], folder: Path, **options: object) -> GenerateJob:
    rows = {} if "labels" in options else {"classes": "all", "images": 8}
    return GenerateJob(GenerateSpec(**{**models, **rows, **options}, out=str(folder / "out"), placement="cpu"))


def draft(models: dict[str, str], folder: Path, **options: object) -> DraftJob:
    used = {role: path for role, path in models.items() if role != "refiner"}
    return DraftJob(DraftSpec(**used, out=str(folder / "out"), classes="all", images=8, **options))


def test_a_drafter_may_bring_its_own_sampling(pair, tmp_path):
    models = pair()
    own = {"cfg": 2.5, "top_k": 0, "top_p": 0.8, "temperatures": [1.0, 0.9]}

    def save(sampling: object) -> None:
        save_checkpoint(Path(models["drafter"]), tiny_var(2, 1), {"sampling": sampling}, torch.float32)

    save(own)
    assert generate(models, tmp_path).sampling == SamplingConfig(2.5, 0, 0.8, (1.0, 0.9))
    assert generate(models, tmp_path, cfg=1.0).sampling.cfg == 1.0
    for wrong in ({"cfg": -1.0}, {"heat": 1}, [1], {"temperatures": "hot"}):
        save(wrong)
        with pytest.raises(CheckpointError, match="sampling in its header"):
            open_checkpoint(models["drafter"])


@pytest.mark.parametrize(
    ("drafter", "refiner", "asked", "cfg", "warning"),
    [
        (PLAIN, PLAIN, None, (USUAL, None), ""),
        (PLAIN, PLAIN, 0.0, (0.0, None), ""),
        (DISTILLED, DISTILLED, None, (0.0, None), ""),
        (DISTILLED, DISTILLED, 3.0, (3.0, None), "cfg 3 guides again what the drafter and the refiner learned: cfg 0"),
        (DISTILLED, PLAIN, None, (0.0, USUAL), ""),
        (PLAIN, DISTILLED, None, (USUAL, 0.0), ""),
        (PLAIN, DISTILLED, 2.0, (2.0, 0.0), ""),
        (DISTILLED, PLAIN, 2.0, (2.0, USUAL), "cfg 2 guides again what the drafter learned: --cfg 0 suits"),
    ],
)  # fmt: skip
def test_a_distilled_pair_decodes_without_guidance(pair, tmp_path, capsys, drafter, refiner, asked, cfg, warning):
    job = generate(pair(drafter, refiner), tmp_path, cfg=asked)
    assert job.sampling == SamplingConfig(cfg=cfg[0], refiner_cfg=cfg[1])
    said = capsys.readouterr().err
    assert warning in said and said.count("warning:") == bool(warning)


def test_a_drafter_alone_decides_for_its_drafts(pair, tmp_path, capsys):
    assert draft(pair(DISTILLED, PLAIN), tmp_path).sampling.cfg == 0
    assert draft(pair(PLAIN, DISTILLED), tmp_path).sampling.cfg == USUAL
    assert "warning" not in capsys.readouterr().err
    job = draft(pair(DISTILLED), tmp_path, cfg=1.0)
    assert "warning: cfg 1 guides again what the drafter learned" in capsys.readouterr().err
    assert job.info()["drafter"]["fine_tuned"] == {"distilled_cfg": 3.0}


@pytest.mark.parametrize(
    ("refiner", "drafted", "asked", "warning"),
    [
        (DISTILLED, {}, None, ""),  # decodes without, as in `generate`
        (DISTILLED, {}, 1.5, "cfg 1.5 guides again what the refiner learned"),
        (DISTILLED, {"fine_tuned": {"distilled_cfg": 3.0}}, 0.0, ""),
        (PLAIN, {"fine_tuned": {"distilled_cfg": 3.0}}, 0.0, "drafts are of a distilled drafter, and cfg 0 leaves the "
         "refiner without guidance, which it needs: --cfg 3"),
        (PLAIN, {"fine_tuned": {"distilled_cfg": 3.0}}, None, ""),
        (PLAIN, {}, 0.0, ""),
    ],
)  # fmt: skip
def test_refine_keeps_the_cfg_of_the_drafts_and_says_where_it_does_not_suit(
    pair, tmp_path, capsys, refiner, drafted, asked, warning
):
    models = pair(refiner=refiner)
    drafts_of(tmp_path / "drafts", 8, vqvae=file_sha256(Path(models["vqvae"])), **drafted)
    used = {role: path for role, path in models.items() if role != "drafter"}
    job = RefineJob(RefineSpec(**used, drafts=str(tmp_path / "drafts"), out=str(tmp_path / "out"), cfg=asked))
    assert job.sampling.cfg == (USUAL if asked is None else asked)
    said = capsys.readouterr().err
    assert warning in said and said.count("warning:") == bool(warning)


@pytest.mark.parametrize(
    ("asked", "guided"), [({}, (2.0, 0.0)), ({"cfg": 1.0}, (1.0, None)), ({"refiner_cfg": 3.0}, (2.0, 3.0))]
)
def test_refine_takes_the_refiners_guidance_of_the_drafts_unless_it_is_asked_for_another(
    pair, tmp_path, monkeypatch, asked, guided
):
    monkeypatch.setitem(DECODING, "sampling", to_dict(SamplingConfig(cfg=2.0, refiner_cfg=0.0)))
    models = pair()
    drafts_of(tmp_path / "drafts", 8, vqvae=file_sha256(Path(models["vqvae"])))
    used = {role: path for role, path in models.items() if role != "drafter"}
    job = RefineJob(RefineSpec(**used, drafts=str(tmp_path / "drafts"), out=str(tmp_path / "out"), **asked))
    assert (job.sampling.cfg, job.sampling.refiner_cfg) == guided


def test_rows_of_their_own_guidance_are_looked_at(pair, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("label,cfg\n0,0\n1,2.5\n2,\n")
    job = generate(pair(DISTILLED, DISTILLED), tmp_path, labels=str(tmp_path / "rows.csv"))
    assert job.sampling.cfg == 0 and job.rows.values_of("cfg") == (0.0, 2.5)
    assert "warning: cfg 2.5 guides again" in capsys.readouterr().err


def test_a_pair_for_one_n_drafts_as_many_scales(pair, tmp_path, capsys):
    models = pair(FineTuned(draft_steps=2), FineTuned(draft_steps=2))
    assert generate(models, tmp_path).draft_steps == 2 != generate(pair(), tmp_path).draft_steps == 3
    assert "note" not in capsys.readouterr().err
    assert generate(pair(refiner=FineTuned(draft_steps=1)), tmp_path).draft_steps == 1
    assert generate(pair(FineTuned(draft_steps=2), FineTuned(draft_steps=3)), tmp_path).draft_steps == 2
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and "note: the refiner was fine-tuned for N = 3, here N = 2" in said
    generate(models, tmp_path, draft_steps=1)
    assert "note: the drafter was fine-tuned for N = 2, here N = 1" in capsys.readouterr().err


def test_what_it_was_fine_tuned_for_is_said_wherever_a_model_is_named(pair, tmp_path, capsys):
    tuned = FineTuned(2, 3.0)
    files = pair(tuned, tuned)
    models = resolve_models(*files.values(), random_weights=False)
    assert models.describe(models.drafter) == f"{files['drafter']}, fine-tuned for N = 2, distilled at cfg 3"
    assert models.describe(models.vqvae) == files["vqvae"]
    about = describe(ServeSpec(**files), models)
    assert (about.draft_steps, about.sampling.cfg, about.fine_tuned["refiner"]) == (2, 0.0, tuned)
    run_inspect(InspectSpec(file=files["drafter"]))
    found = json.loads(capsys.readouterr().out)
    assert found["fine_tuned"] == {"draft_steps": 2, "distilled_cfg": 3.0, "guidance_free": False}
    assert found["recipe"] == {}


def test_published_pairs_are_known_by_name(pair, monkeypatch):
    files = pair()
    monkeypatch.setattr("tandem_workers.models.model_set.local_file", lambda _: local_file(files["refiner"]))
    assert resolve("refiner", "refiner_8", random_weights=False).fine_tuned == FineTuned(draft_steps=8)
    assert resolve("refiner", "var_d16", random_weights=False).fine_tuned == PLAIN


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"fine_tuned": []}, r"fine_tuned in its header: expected draft_steps, distilled_cfg, guidance_free, got \[\]"),
        (
            {"fine_tuned": {"steps": 2}},
            "fine_tuned in its header: expected draft_steps, distilled_cfg, guidance_free, got",
        ),
        ({"fine_tuned": {"draft_steps": 4}}, "draft_steps in its header: expected 1 to 3, got 4"),
        ({"fine_tuned": {"draft_steps": True}}, "draft_steps in its header: expected 1 to 3, got True"),
        ({"fine_tuned": {"guidance_free": 1}}, "guidance_free in its header: expected true or false, got 1"),
        ({"fine_tuned": {"distilled_cfg": 0}}, "distilled_cfg in its header: expected a number above 0, got 0"),
        ({"fine_tuned": {"distilled_cfg": "3"}}, "distilled_cfg in its header: expected a number above 0, got '3'"),
        ({"recipe": "lr 1e-3"}, "recipe in its header: expected a JSON object, got 'lr 1e-3'"),
    ],
)
def test_a_header_that_says_nonsense_is_refused(tmp_path, header, message):
    path = tmp_path / "v.safetensors"
    save_checkpoint(path, tiny_var(1, 0), header, torch.float32)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
    save_checkpoint(path, tiny_vqvae(), {"fine_tuned": {"draft_steps": 2}}, torch.float32)
    with pytest.raises(CheckpointError, match="expected nothing, as this is a VQVAE"):
        open_checkpoint(path)


def test_profiles_and_automatic_batches_count_half_the_cache(pair, tmp_path):
    """Both count by `all_stages`, with the models' own guidance."""
    caches = {}
    for tuned in (PLAIN, DISTILLED):
        files = pair(tuned, tuned)
        models, spec = resolve_models(*files.values(), random_weights=False), ProfileSpec(**files, out=tmp_path)
        workload = Workload(
            models, SPLIT, 3, choose_sampling(spec, models.sampling, models.drafter_config.pyramid), replicas=1
        )
        stages = all_stages(spec, workload, on_gpu=False)
        caches[tuned] = [stages[name](4).cache for name in ("draft", "refine")]
    assert caches[PLAIN] == [2 * cache for cache in caches[DISTILLED]] and sum(caches[PLAIN]) > 0
    assert choose_sampling(ProfileSpec(out=tmp_path, cfg=0), SamplingConfig(), Pyramid((1, 2))).cfg == 0
