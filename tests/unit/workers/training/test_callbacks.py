"""What TensorBoard and Weights & Biases get, by small stand-ins of their modules."""

import sys
from types import ModuleType

import pytest

from tandem.errors import InputError
from tandem_workers.training.callbacks import TensorBoardCallback, WandbCallback

RECORDS = [{"step": 25, "loss": 2.0, "lr": 0.1}, {"step": 50, "loss": 1.0, "lr": 0.2}]


def stand_in(monkeypatch, name: str, **content) -> None:
    module = ModuleType(name)
    module.__spec__ = sys.__spec__
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def report(callback) -> None:
    for record in RECORDS:
        callback.after_report(None, [record, record], None)


def test_tensorboard_gets_a_curve_of_each_value(monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *scalar):
            calls.append(scalar)

        def flush(self):
            """Nothing waits."""

    stand_in(monkeypatch, "tensorboard")
    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    report(TensorBoardCallback("curves"))
    assert calls == [("curves", 25), ("loss", 2.0, 25), ("lr", 0.1, 25), ("loss", 1.0, 50), ("lr", 0.2, 50)]


def test_weights_and_biases_gets_the_records_of_one_run(monkeypatch):
    begun, logged = [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

    stand_in(monkeypatch, "wandb", init=lambda **options: begun.append(options) or Run())
    report(WandbCallback("tandem", "drafter"))
    assert begun == [{"project": "tandem", "name": "drafter", "id": "drafter", "resume": "allow"}]
    assert logged == [(25, {"loss": 2.0, "lr": 0.1}), (50, {"loss": 1.0, "lr": 0.2})]


@pytest.mark.parametrize(("make", "package"), [(TensorBoardCallback, "tensorboard"), (WandbCallback, "wandb")])
def test_a_package_that_is_missing_is_named(monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"expected the package {package}") as raised:
        make("one", "two") if make is WandbCallback else make("one")
    assert raised.value.hint == f"pip install {package}"
