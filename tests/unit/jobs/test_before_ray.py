"""What a command does before Ray starts: all checks, and no waiting for hashes of weights."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest

from tandem import hashing
from tandem_jobs.cli import main
from tandem_jobs.draft import DraftJob
from tandem_jobs.generate import GenerateJob
from tandem_jobs.run import job

LIMIT_S = 60
ROWS = ["--classes", "all", "--images", "8"]


@pytest.fixture
def order(monkeypatch):
    """What happened: "ray" where Ray would start, which ends the run, and "hashed" for each file. Hashing lasts until
    Ray has started."""
    happened, started, hash_now = [], threading.Event(), hashing.file_sha256

    def slow_hash(path):
        started.wait(LIMIT_S)
        happened.append("hashed")
        return hash_now(path)

    @contextlib.contextmanager
    def start(*_):
        happened.append("ray")
        started.set()
        yield SimpleNamespace()

    def place(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hashing, "file_sha256", slow_hash)
    monkeypatch.setattr(job, "open_session", start)
    for of_command in (GenerateJob, DraftJob):
        monkeypatch.setattr(of_command, "place", place)
    yield happened
    started.set()


@pytest.fixture
def models(tiny_models):
    return {role: ["--" + role, path] for role, path in tiny_models.items()}


@pytest.mark.parametrize("command", ["generate", "draft"])
def test_ray_starts_while_weights_are_hashed(command, models, tmp_path, order):
    roles = ("drafter", "refiner", "vqvae") if command == "generate" else ("drafter", "vqvae")
    argv = [
        command,
        "--classes",
        "all",
        "--images",
        "8",
        "--batch",
        "4",
        "--draft-steps",
        "2",
        "--out",
        f"{tmp_path}/o",
    ]
    argv += [part for role in roles for part in models[role]]
    assert main(argv) == 130
    assert order == ["ray", *["hashed"] * len(roles)]


BAD = {
    "class": (["--classes", "nothing", "--images", "8"], "nothing"),
    "labels": (["--labels", "missing.csv"], "missing.csv"),
    "settings": ([*ROWS, "--draft-steps", "9"], "draft-steps"),
    "place": ([*ROWS, "--out", "/proc/out"], "cannot write /proc"),
    "refiner": ([*ROWS, "--refiner", "missing.pth"], "missing.pth"),
    "pair": ([*ROWS, "--vqvae", "embedded"], "different"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_ends_before_ray_and_waits_for_no_hash(what, models, tmp_path, order, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv, named = BAD[what]
    given = [part for pair in models.values() for part in pair]
    assert main(["generate", *given, "--draft-steps", "2", "--out", f"{tmp_path}/o", *argv]) == 2
    assert order == []
    assert named in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
