"""Training of a transformer on token maps: what it learns, what it scores, and what it refuses."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from support.tiny_models import NUM_CLASSES, VOCAB
from support.toy_task import SETTINGS, MemoryHost
from support.toy_tokens import make_quantizer, make_var, random_tokens, var_task
from tandem.errors import InputError
from tandem.training.batches import StepRows, TokenSet
from tandem.training.loop import Loop
from tandem.training.objectives import Objective
from tandem.training.parallel import Workers
from tandem.training.var_task import VarData

CPU = torch.device("cpu")
SHORT = replace(SETTINGS, steps=20, batch=6, checkpoint_every=20)


def trained(task, data=None, settings=SHORT) -> MemoryHost:
    host = MemoryHost()
    Loop(task, settings, host, data or random_tokens()).run()
    return host


def test_it_learns_the_token_maps_and_scores_held_out_ones():
    host = trained(var_task())
    assert host.losses()[-1] < 0.8 * host.losses()[0]
    last = host.records[-1]
    assert {"heldout_loss", "heldout_loss_scale_4", "heldout_accuracy_scale_1"} <= last.keys()
    assert {"loss_scale_1", "accuracy_scale_4"} <= host.records[0].keys()


def test_the_held_out_score_is_the_mean_cross_entropy():
    task, data, model = var_task(), random_tokens(), make_var(CPU)
    task.prepare(model, data, CPU)
    assert data.heldout is not None
    over, under = task.evaluate(model, Workers(0, 1, CPU))["heldout_loss"]
    ids, labels = (torch.from_numpy(x.astype("int64")) for x in (data.heldout.ids[:, 0], data.heldout.labels))
    logits = model(labels, make_quantizer(CPU).unroll(ids)[1])
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert over.item() / under.item() == pytest.approx(expected.item(), rel=1e-5)


def test_views_and_dropped_labels_reach_the_model():
    task, data = var_task(), random_tokens()
    task.prepare(make_var(CPU), data, CPU)
    none = torch.zeros(2, dtype=torch.int64)
    batch = task.batch(
        data.train, StepRows(torch.tensor([5, 6]), torch.tensor([1, 0]), torch.tensor([True, False]), none)
    )
    assert batch.labels_B.tolist() == [NUM_CLASSES, 2]
    assert batch.ids_BL[0].tolist() == data.train.ids[5, 1].tolist()
    assert batch.ids_BL[1].tolist() == data.train.ids[6, 0].tolist()


def test_a_drafter_is_scored_on_its_own_scales_and_a_teacher_is_followed():
    drafter = trained(var_task(objective=partial(Objective, draft_steps=2, cut=True)))
    assert "heldout_loss_scale_2" in drafter.records[-1] and "heldout_loss_scale_3" not in drafter.records[-1]
    teacher = partial(make_var, depth=3)
    refiner = trained(var_task(objective=partial(Objective, draft_steps=2), teacher=teacher))
    assert refiner.losses()[-1] < refiner.losses()[0]


def test_recomputed_activations_change_no_loss():
    assert trained(var_task(recompute=True)).losses() == pytest.approx(trained(var_task()).losses(), rel=1e-6)


def tokens(length: int = 30, most_id: int = VOCAB - 1, most_label: int = NUM_CLASSES - 1) -> VarData:
    ids = np.full((2, 1, length), most_id, np.uint16)
    return VarData(TokenSet(ids, np.array([0, most_label], np.int32)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tokens(length=29), "token maps of 30 tokens, as the model makes, got 29"),
        (tokens(most_id=VOCAB), f"expected ids below {VOCAB}, as the model has, got {VOCAB} to {VOCAB}"),
        (tokens(most_label=9), f"expected labels below {NUM_CLASSES}, as the model has, got 0 to 9"),
    ],
)
def test_token_maps_of_another_tokenizer_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        trained(var_task(), data)
