"""Class names are stored with drafts: a refiner keeps them, and refuses names that contradict them."""

import pytest
import torch

from support.sample_drafts import drafts_of
from support.tiny_models import tiny_var, tiny_vqvae
from tandem.checkpoints.weights import save_checkpoint
from tandem.errors import InputError
from tandem_jobs.refine import check_names
from tandem_workers.dataset.drafts import Drafts
from tandem_workers.models.model_set import ModelSet, resolve_models

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def resolved(tmp_path):
    """The models of a refine job whose own files hold no names."""
    for name, model in (("r", tiny_var(1, 0)), ("v", tiny_vqvae())):
        save_checkpoint(tmp_path / f"{name}.safetensors", model, {}, torch.float32)

    def resolve(drafts: Drafts, class_names: str | None = None) -> ModelSet:
        files = (str(tmp_path / f"{name}.safetensors") for name in "rv")
        return resolve_models(drafts.drafter, *files, random_weights=False, class_names=class_names)

    return resolve


@pytest.mark.parametrize("names", [NAMES, tuple("0123")])
def test_images_have_the_names_of_their_drafts(tmp_path, resolved, names):
    """Also where published weights hold none, which was taken for other names."""
    drafts = drafts_of(tmp_path / "drafts", 0, names)
    models = resolved(drafts)
    assert models.class_names.names == names
    assert models.names_sha256 is None  # they are part of the drafts'
    check_names(drafts, models.class_names)


def test_names_that_contradict_those_of_the_drafts_are_refused(tmp_path, resolved):
    drafts = drafts_of(tmp_path / "drafts", 0, NAMES)
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\ndog\n")
    models = resolved(drafts, str(tmp_path / "names.txt"))
    with pytest.raises(InputError, match=r"expected those of the drafts, got 'cow' for 'cat' \(label 2\)"):
        check_names(drafts, models.class_names)


def test_drafts_of_numbers_can_be_named(tmp_path, resolved):
    drafts = drafts_of(tmp_path / "drafts", 0, tuple("0123"))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    models = resolved(drafts, str(tmp_path / "names.txt"))
    check_names(drafts, models.class_names)
    assert models.names_sha256 == models.class_names.digest


def test_names_of_drafts_are_counted(tmp_path):
    with pytest.raises(InputError, match=r"--drafts: class_names in job\.json of .*: expected 4 names, got 5"):
        drafts_of(tmp_path / "drafts", 0, (*NAMES, "eel"))
