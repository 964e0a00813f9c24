"""Flags, a YAML file and variables mean the same; what is wrong is one line."""

import pytest

from jobs.generate import GenerateSpec
from jobs.spec import parse
from jobs.train import TrainVarSpec, TrainVqvaeSpec
from tandem.errors import InputError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("TANDEM_")]:
        monkeypatch.delenv(name)


def generate(*argv: str) -> GenerateSpec:
    return parse(GenerateSpec, argv, "tandem generate")


BASE = ("--out", "o", "--classes", "all", "--images", "5")


def test_the_three_ways_give_the_same(tmp_path, monkeypatch):
    file = tmp_path / "job.yaml"
    file.write_text("out: o\nclasses: all\nimages: 5\ntop-p: 0.5\ntemperatures: [1.1, 1.0]\nkeep_tokens: true\n")
    by_file = generate("--spec", str(file))
    by_flags = generate(*BASE, "--top-p", "0.5", "--temperatures", "1.1,1.0", "--keep-tokens")
    variables = {"OUT": "o", "CLASSES": "all", "IMAGES": "5", "TOP_P": "0.5", "KEEP_TOKENS": "true"}
    for name, value in variables.items():
        monkeypatch.setenv(f"TANDEM_{name}", value)
    monkeypatch.setenv("TANDEM_TEMPERATURES", "[1.1, 1.0]")
    by_variables = generate()
    assert by_flags.model_dump(exclude={"spec"}) == by_file.model_dump(exclude={"spec"})
    assert by_flags.model_dump() == by_variables.model_dump()


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path, monkeypatch):
    file = tmp_path / "job.yaml"
    file.write_text("seed: 1\nbatch: 1\ncfg: 1\n")
    monkeypatch.setenv("TANDEM_SPEC", str(file))
    monkeypatch.setenv("TANDEM_SEED", "2")
    monkeypatch.setenv("TANDEM_BATCH", "2")
    spec = generate(*BASE, "--seed", "3")
    assert (spec.seed, spec.batch, spec.cfg, spec.threads) == (3, 2, 1.0, 1)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            (),
            "--out: expected a value (folder or s3://bucket/prefix of the dataset; the same command resumes there), "
            "got none",
        ),
        (("--out", "o"), "expected --classes (for example: all) or --labels FILE, got neither"),
        (("--out", "o", "--classes", "all"), "expected either --per-class or --images beside --classes, got neither"),
        ((*BASE, "--per-class", "2"), "expected either --per-class or --images beside --classes, got both"),
        ((*BASE, "--labels", "x.csv"), "expected --labels alone, got --classes, --per-class or --images beside it"),
        ((*BASE, "--format", "zip"), "--format: expected 'webdataset', 'parquet' or 'folder', got 'zip'"),
        ((*BASE, "--batch", "0"), "--batch: expected a number above 0, or auto, got '0'"),
        ((*BASE, "--batch", "many"), "--batch: expected a number above 0, or auto, got 'many'"),
        ((*BASE, "--quality", "101"), "--quality: expected less than or equal to 100, got '101'"),
        ((*BASE, "--top-p", "2"), "--top-p: expected less than or equal to 1, got '2'"),
        ((*BASE, "--seed", "-1"), "--seed: expected greater than or equal to 0, got '-1'"),
    ],
)
def test_a_wrong_value_is_one_line_with_expected_and_actual(argv, line):
    with pytest.raises(InputError) as caught:
        generate(*argv)
    assert str(caught.value).splitlines() == [line]
    assert caught.value.hint == "tandem generate --help shows every option"


def test_each_of_several_wrong_values_has_its_line():
    with pytest.raises(InputError) as caught:
        generate(*BASE, "--batch", "0", "--codec", "gif")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["--batch", "--codec"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 3\n", "unknown options sede"),
        ("- a\n", "expected values by name .* got a list"),
        ("a: [1\n", "is not YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        generate(*BASE, "--spec", str(file))
    with pytest.raises(InputError, match=r"cannot read .*none"):
        generate(*BASE, "--spec", str(tmp_path / "none"))


def test_an_unknown_flag_ends_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        generate(*BASE, "--sede", "3")
    assert caught.value.code == 2
    assert "--sede" in capsys.readouterr().err


def test_the_defaults_of_training_are_the_embedded_models():
    from tandem.weights import open_checkpoint
    from tandem.zoo import weights_path

    vqvae = parse(TrainVqvaeSpec, ["--data", "d", "--out", "o"], "tandem train vqvae").config()
    assert vqvae == open_checkpoint(weights_path("vqvae")).config
    var = parse(TrainVarSpec, ["--data", "d", "--out", "o", "--vqvae", "v"], "tandem train var")
    assert var.depth == open_checkpoint(weights_path("drafter")).config.depth
