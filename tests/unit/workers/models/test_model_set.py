"""Which weights a job uses: sources, hashes, and models that do not fit each other."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.tiny_models import CLASS_NAMES, tiny_var, tiny_vqvae
from tandem import hashing
from tandem.checkpoints.weights import load_var, save_checkpoint
from tandem.config import VAR_PRESETS
from tandem.errors import CheckpointError, JobError
from tandem.hashing import file_sha256
from tandem.zoo import EMBEDDED_SAMPLING, weights_path
from tandem_workers.models.model_set import load_transformer, pick_device, resolve, resolve_models


def save(folder, name, model, classes=CLASS_NAMES) -> str:
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, model, {"classes": list(classes)}, torch.float32)
    return str(path)


def test_the_embedded_models_fit_each_other():
    models = resolve_models("embedded", "embedded", "embedded", random_weights=False)
    assert models.image_size == 64
    assert len(models.class_names) == 12
    assert models.hashes == {role: file_sha256(weights_path(role)) for role in ("drafter", "refiner", "vqvae")}
    assert models.refiner_config.num_parameters < models.drafter_config.num_parameters / 4


def test_the_third_size_goes_with_the_other_two():
    for drafter, refiner in (("embedded", "embedded-d3"), ("embedded-d3", "embedded")):
        models = resolve_models(drafter, refiner, "embedded", random_weights=False)
        assert models.record["weights"] == {"drafter": drafter, "refiner": refiner, "vqvae": "embedded"}
        assert models.refiner_config.num_parameters < models.drafter_config.num_parameters
        assert models.sampling == EMBEDDED_SAMPLING
        with models.ref("refiner").opened() as path:
            assert file_sha256(path) == models.hashes["refiner"]
    with pytest.raises(CheckpointError, match="vqvae: expected one of drafter, refiner, which embedded-d3 has"):
        resolve_models("embedded", "embedded", "embedded-d3", random_weights=False)


def test_the_distilled_pair_needs_no_guidance():
    models = resolve_models("embedded-distilled", "embedded-distilled", "embedded", random_weights=False)
    assert models.sampling == replace(EMBEDDED_SAMPLING, cfg=0.0)
    assert {found.distilled_cfg for found in models.fine_tuned.values()} == {EMBEDDED_SAMPLING.cfg}
    assert models.default_draft_steps == 5
    mixed = resolve_models("embedded", "embedded-distilled", "embedded", random_weights=False)
    assert (mixed.sampling.cfg, mixed.sampling.refiner_cfg) == (3.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refiner": tiny_var(1, 0, vocab_size=32)}, "drafter and refiner of different vocabulary: 64 in .* 32 in"),
        ({"refiner": tiny_var(1, 0, patch_nums=(1, 2, 4))}, r"different pyramid: \(1, 2, 3, 4\) in .* \(1, 2, 4\) in"),
        ({"vqvae": tiny_vqvae(vocab_size=32)}, "models and VQVAE of different vocabulary: 64 in .* 32 in"),
        ({"vqvae": tiny_var(1, 0)}, "vqvae: .*: expected a vqvae checkpoint, got a var"),
        ({"drafter": tiny_vqvae()}, "drafter: .*: expected a var checkpoint, got a vqvae"),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path, change, message):
    models = {"drafter": tiny_var(2, 0), "refiner": tiny_var(1, 0), "vqvae": tiny_vqvae()} | change
    files = [save(tmp_path, role, model) for role, model in models.items()]
    with pytest.raises(CheckpointError, match=message):
        resolve_models(*files, random_weights=False)


def test_other_class_names_are_refused(tmp_path):
    files = [
        save(tmp_path, "d", tiny_var(2, 0)),
        save(tmp_path, "r", tiny_var(1, 0), classes=("w", "x", "y", "z")),
        save(tmp_path, "v", tiny_vqvae()),
    ]
    with pytest.raises(CheckpointError, match="different class names"):
        resolve_models(*files, random_weights=False)


def test_a_preset_needs_leave_for_random_weights():
    with pytest.raises(CheckpointError, match="d16 is a preset, which has no weights of its own"):
        resolve("drafter", "d16", random_weights=False)
    resolved = resolve("drafter", "d16", random_weights=True)
    assert resolved.config == VAR_PRESETS["d16"]
    assert resolved.ref.sha256 != resolve("refiner", "d16", random_weights=True).ref.sha256
    assert resolve("drafter", "d16", random_weights=True) == resolved


def test_weights_that_changed_under_way_are_noticed(tmp_path):
    path = save(tmp_path, "d", tiny_var(2, 0))
    ref = resolve("drafter", path, random_weights=False).ref
    save(tmp_path, "d", tiny_var(2, 1))
    with pytest.raises(CheckpointError, match=r"expected sha256 .* on this node"):
        load_transformer(ref, torch.float32, torch.device("cpu"))


def test_the_machine_that_hashed_a_file_does_not_hash_it_again(tmp_path, monkeypatch):
    ref = pickle.loads(pickle.dumps(resolve("drafter", save(tmp_path, "d", tiny_var(2, 0)), random_weights=False).ref))
    monkeypatch.setattr(hashing, "file_sha256", None)
    load_transformer(ref, torch.float32, torch.device("cpu"))


def test_another_machine_hashes_a_file_while_it_is_loaded_and_a_wrong_hash_says_more_than_what_came_of_it(
    tmp_path, monkeypatch
):
    path = save(tmp_path, "d", tiny_var(2, 0))
    ref = pickle.loads(pickle.dumps(resolve("drafter", path, random_weights=False).ref))
    monkeypatch.setattr(hashing.platform, "node", lambda: "elsewhere")
    began = []
    monkeypatch.setattr(hashing, "file_sha256", lambda file: [began.append(file), file_sha256(file)][1])
    with ref.opened() as file:
        assert file_sha256(file) == ref.sha256
    assert began == [Path(path)]
    Path(path).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"expected sha256 .* on this node"):
        load_transformer(ref, torch.float32, torch.device("cpu"))


def test_random_weights_are_the_same_on_every_node(monkeypatch):
    """Built twice from the reference alone; a small config stands in for the preset."""
    ref = resolve("drafter", "d16", random_weights=True).ref
    monkeypatch.setitem(VAR_PRESETS, "d16", tiny_var(1, 0).config)
    ours, theirs = (load_transformer(ref, torch.float32, torch.device("cpu")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def without_names(folder, name, model) -> str:
    save_checkpoint(folder / f"{name}.safetensors", model, {}, torch.float32)
    return str(folder / f"{name}.safetensors")


@pytest.fixture
def nameless(tmp_path) -> list[str]:
    models = {"d": tiny_var(2, 0), "r": tiny_var(1, 0), "v": tiny_vqvae()}
    return [without_names(tmp_path, name, model) for name, model in models.items()]


def test_class_names_are_counted_against_the_model(tmp_path):
    """Eight names on four classes: label 4 would be the unconditional embedding."""
    path = save(tmp_path, "d", tiny_var(2, 0), classes=[f"c{i}" for i in range(8)])
    with pytest.raises(CheckpointError, match=r"drafter: .*d\.safetensors: .*expected 4 names, got 8"):
        resolve("drafter", path, random_weights=False)
    with pytest.raises(CheckpointError, match=r"d\.safetensors: .*expected 4 names"):
        load_var(path)


@pytest.mark.parametrize("named", [0, 1])
def test_names_that_one_of_the_two_files_holds_are_those_of_both(tmp_path, nameless, named):
    files = list(nameless)
    files[named] = save(tmp_path, "named", tiny_var(2 - named, 0))
    models = resolve_models(*files, random_weights=False)
    assert models.class_names.names == CLASS_NAMES
    assert models.names_sha256 is None


def test_a_file_of_names_goes_before_those_of_the_weights(tmp_path, nameless):
    names = tmp_path / "names.txt"
    names.write_text("w\nx, ex\ny\nz\n")
    named = [save(tmp_path, "a", tiny_var(2, 0)), *nameless[1:]]
    for files in (named, nameless):
        models = resolve_models(*files, random_weights=False, class_names=str(names))
        assert list(models.class_names) == ["w", "x, ex", "y", "z"]
        assert models.class_names.find("EX") == 1
        assert models.names_sha256 == models.class_names.digest
    assert list(resolve_models(*named, random_weights=False, class_names="numbers").class_names) == list("0123")
    names.write_text("\n".join(CLASS_NAMES))
    assert resolve_models(*named, random_weights=False, class_names=str(names)).names_sha256 is None  # as in the file


def test_models_of_other_names_fit_once_names_are_given(tmp_path):
    files = [save(tmp_path, "d", tiny_var(2, 0)), save(tmp_path, "r", tiny_var(1, 0), classes=tuple("wxyz"))]
    models = resolve_models(*files, save(tmp_path, "v", tiny_vqvae()), False, class_names="numbers")
    assert models.class_names.are_numbers


@pytest.mark.parametrize(
    ("on_gpu", "there", "device"), [(False, True, "cpu"), (None, True, "cuda:0"), (None, False, "cpu")]
)
def test_a_replica_computes_where_the_job_has_it_and_not_where_cuda_finds_a_card(monkeypatch, on_gpu, there, device):
    """Ray hides no card from an actor that asked for none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device(on_gpu) == torch.device(device)


def test_a_card_that_is_missing_is_an_error_and_not_a_slow_job(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JobError, match=r"expected a CUDA device on node .*, found none"):
        pick_device(True)
