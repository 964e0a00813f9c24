"""The table of modulation vectors: the same rows as by the layers, each class fetched once a batch."""

import pytest
import torch

from support.tiny_models import tiny_var
from tandem.assembly import Preparation, assemble_var
from tandem.modulation import ModulationTable
from tandem.var import Var

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folded() -> tuple[Var, Var]:
    plain = tiny_var(depth=2, seed=1)
    values = dict(plain.named_parameters()).__getitem__
    return plain, assemble_var(plain.config, values, torch.float32, CPU, Preparation(fold_adaln=True))


@pytest.mark.parametrize("labels", [[0], [3, 0, 3, 3], [2, 1, 4, 4]])
def test_rows_are_those_of_the_layers(folded, labels):
    plain, var = folded
    with torch.inference_mode():
        expected, found = (
            model.condition(torch.tensor(labels), model.table_vectors(torch.tensor(labels))) for model in (plain, var)
        )
    for ours, theirs in zip([*found.blocks, found.head_R2C], [*expected.blocks, expected.head_R2C], strict=True):
        torch.testing.assert_close(ours, theirs.view(ours.shape), atol=1e-6, rtol=1e-5)


def test_each_class_of_a_batch_is_fetched_once(folded, monkeypatch):
    """64 images of three classes under guidance: 4 rows of host memory instead of 128."""
    table, fetched = folded[1].table, []
    assert table is not None
    gather = ModulationTable.gather
    monkeypatch.setattr(ModulationTable, "gather", lambda own, classes: fetched.append(classes) or gather(own, classes))
    labels = torch.tensor([0, 2, 3] * 21 + [2] + [4] * 64)
    rows = table.rows(labels)
    assert [classes.tolist() for classes in fetched] == [[0, 2, 3, 4]]
    assert torch.equal(rows, table.vectors[labels])
