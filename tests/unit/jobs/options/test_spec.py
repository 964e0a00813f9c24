"""Flags, a YAML file and variables mean the same; what is wrong is one line."""

import importlib
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tandem.errors import InputError
from tandem_jobs.checkpoints import InspectSpec
from tandem_jobs.cli import COMMANDS
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.options.flags import leaves
from tandem_jobs.options.spec import as_flags, join, parse, split
from tandem_jobs.options.yaml_file import load_yaml
from tandem_jobs.plan import PlanSpec
from tandem_jobs.train.train_var import DEPTH
from tandem_jobs.train.train_vqvae import TrainVqvaeSpec

BASE = ("--out", "o", "--classes", "all", "--images", "5")


def generate(*argv: str) -> GenerateSpec:
    return parse(GenerateSpec, argv, "tandem generate")


def by_file(tmp_path: Path, text: str, *argv: str) -> GenerateSpec:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return generate("--spec", str(file), *argv)


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path, monkeypatch):
    file = tmp_path / "job.yaml"
    file.write_text("seed: 1\nbatch: 1\ncfg: 1\n")
    monkeypatch.setenv("TANDEM_SPEC", str(file))
    monkeypatch.setenv("TANDEM_SEED", "2")
    monkeypatch.setenv("TANDEM_BATCH", "2")
    spec = generate(*BASE, "--seed", "3")
    assert (spec.seed, spec.batch, spec.cfg, spec.threads) == (3, 2, 1.0, 1)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("classes: 5", "classes", "5"),
        ("classes: 007", "classes", "007"),
        ("classes: [face, flag]", "classes", "face,flag"),
        ('classes: ["a, b", c]', "classes", '"a, b",c'),
        ("out: 7", "out", "7"),
        ("out: 2026-01-02", "out", "2026-01-02"),
        ("out: yes", "out", "yes"),
        ("keep-tokens: yes", "keep_tokens", True),
        ("temperatures: 1.1", "temperatures", (1.1,)),
        ("temperatures: 1.1, 1.0", "temperatures", (1.1, 1.0)),
        ("temperatures: [1.1, 1.0]", "temperatures", (1.1, 1.0)),
        ("profile: paper-l20", "profile", ("paper-l20",)),
        ("top_p:", "top_p", None),
        ("top_p: ~", "top_p", None),
    ],
)
def test_a_file_means_what_is_written_in_it(tmp_path, text, name, value):
    base = dict(zip((flag[2:] for flag in BASE[::2]), BASE[1::2], strict=True))
    flags = [word for key, given in base.items() if key != name for word in (f"--{key}", given)]
    assert getattr(by_file(tmp_path, text, *flags), name) == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TEMPERATURES", "1.1,1.0", (1.1, 1.0)),
        ("TEMPERATURES", "[1.1, 1.0]", (1.1, 1.0)),
        ("PROFILE", "paper-l20", ("paper-l20",)),
        ("KEEP_TOKENS", "true", True),
        ("CFG", "", None),
        ("BATCH", "", 32),
    ],
)
def test_a_variable_means_what_a_flag_means(monkeypatch, name, text, value):
    monkeypatch.setenv(f"TANDEM_{name}", text)
    assert getattr(generate(*BASE), name.lower()) == value


def test_an_empty_variable_does_not_hide_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_SEED", "")
    assert by_file(tmp_path, "seed: 4", *BASE).seed == 4


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ((), "expected --out; --classes or --labels; --images or --per-class; got none of these"),
        (
            BASE[2:],
            "expected --out (folder or s3://bucket/prefix of the dataset; the same command resumes there), got none",
        ),
        (("--out", "o"), "expected --classes or --labels; --images or --per-class; got none of these"),
        (("--out", "o", "--classes", "all"), "expected --images or --per-class, got none"),
        ((*BASE, "--per-class", "2"), "expected either --per-class or --images with --classes, got both"),
        ((*BASE, "--labels", "x.csv"), "expected --labels alone, got --classes, --per-class or --images with it"),
        ((*BASE, "--format", "zip"), "--format: expected 'webdataset', 'parquet' or 'folder', got 'zip'"),
        ((*BASE, "--batch", "0"), "--batch: expected a number above 0, or auto, got '0'"),
        ((*BASE, "--batch", "many"), "--batch: expected a number above 0, or auto, got 'many'"),
        ((*BASE, "--images", "x"), "--images: expected a whole number above 0 and of at most 1000000000, got 'x'"),
        ((*BASE, "--images", "1.5"), "--images: expected a whole number above 0 and of at most 1000000000, got '1.5'"),
        ((*BASE, "--quality", "101"), "--quality: expected a whole number from 1 to 100, got '101'"),
        ((*BASE, "--top-p", "2"), "--top-p: expected a number from 0 to 1, got '2'"),
        ((*BASE, "--cfg", "high"), "--cfg: expected a number of at least 0, got 'high'"),
        ((*BASE, "--temperatures", "1,x"), "--temperatures: expected numbers, separated by commas, got 'x'"),
        ((*BASE, "--top-k", "-1"), "--top-k: expected a whole number of at least 0, got '-1'"),
        ((*BASE, "--address", ""), "--address: expected text, got an empty text"),
        ((*BASE, "--out", "caf\udce9"), r"--out: expected text in UTF-8, got 'caf\udce9'"),
        (
            (*BASE, "--images"),
            "--images: expected a whole number above 0 and of at most 1000000000 "
            "(images in all, spread evenly over the classes), got none",
        ),
        ((*BASE, "--int8=yes"), "--int8: expected no value, got one"),
        ((*BASE, "face"), "expected only options of tandem generate, got 'face'"),
    ],
)
def test_a_wrong_value_is_one_line_with_expected_and_actual(argv, line):
    with pytest.raises(InputError) as caught:
        generate(*argv)
    assert str(caught.value).splitlines() == [line]
    assert caught.value.hint == "tandem generate --help shows every option"


@pytest.mark.parametrize(("typed", "close"), [("--class", "--classes"), ("--sede=3", "--seed"), ("--keep-token", None)])
def test_a_flag_that_is_nearly_one_has_a_suggestion(typed, close):
    with pytest.raises(
        InputError, match=f"expected an option of tandem generate, got {typed.split('=')[0]}$"
    ) as caught:
        generate(*BASE, typed, "all")
    assert caught.value.hint == f"did you mean {close or '--keep-tokens'}?"


@pytest.mark.parametrize("flag", ["--compile", "--no-compile"])
def test_an_option_that_was_removed_says_why(tmp_path, flag):
    with pytest.raises(InputError, match=f"^{flag}: it was removed, as fused kernels and CUDA graphs, .* are faster"):
        generate(*BASE, flag)
    with pytest.raises(InputError, match=r"^--spec: .*job\.yaml: compile: it was removed, .*; leave it out$"):
        by_file(tmp_path, "compile: false\n", *BASE)


def test_several_missing_options_are_named_together_and_one_is_described():
    with pytest.raises(InputError, match=r"^expected --profile; --gpus; --images; got none of these$"):
        parse(PlanSpec, [], "tandem plan")
    with pytest.raises(InputError, match=r"^expected FILE \(.*\), got none$"):
        parse(InspectSpec, [], "tandem inspect")


def test_each_of_several_wrong_values_has_its_line():
    with pytest.raises(InputError) as caught:
        generate(*BASE, "--batch", "0", "--codec", "gif")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["--batch", "--codec"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 3\n", "unknown options sede"),
        ("spec: other.yaml\n", "unknown options spec"),
        ("- a\n", "expected values by name .* got a list"),
        ("a: [1\n", "is not YAML"),
        ("out: [a, b]\n", "--out: expected text, got a list"),
        ("images: {a: 1}\n", "--images: expected a whole number above 0 and of at most 1000000000, got a mapping"),
        ("classes: [[a]]\n", "--classes: expected text, got a list"),
        ("keep_tokens: maybe\n", "--keep-tokens: expected true or false, got 'maybe'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    given = [word for pair in zip(BASE[::2], BASE[1::2], strict=True) if pair[0][2:] not in text for word in pair]
    with pytest.raises(InputError, match=message):
        by_file(tmp_path, text, *given)
    with pytest.raises(InputError, match=r"cannot read .*none"):
        generate(*BASE, "--spec", str(tmp_path / "none"))


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "job.yaml").write_bytes("classes: café".encode("latin-1"))
    with pytest.raises(InputError, match=r"--spec: .*job\.yaml, line 1: not UTF-8 \(byte 0xe9\)"):
        generate("--spec", str(tmp_path / "job.yaml"))


@pytest.mark.parametrize("values", [["a"], ["a", "b,c"], ['say "a"', "b"], ["", "x"], ["[a]"], ["[a", "b]"]])
def test_values_with_commas_are_quoted(values):
    assert split(join(values)) == values


def test_files_of_other_tools_keep_their_types(tmp_path):
    (tmp_path / "env.yaml").write_text(yaml.safe_dump({"pip": ["a"], "retries": 3}))
    assert load_yaml("--runtime-env", tmp_path / "env.yaml") == {"pip": ["a"], "retries": 3}


def test_the_flags_of_a_spec_keep_defaults_out():
    assert as_flags(generate(*BASE, "--seed", "0", "--temperatures", "1.5,1")) == [
        *("--classes", "all", "--images", "5", "--temperatures", "1.5,1.0", "--out", "o"),
    ]


def test_the_defaults_of_training_are_the_embedded_models():
    from tandem.checkpoints.weights import open_checkpoint
    from tandem.zoo import weights_path

    vqvae = parse(TrainVqvaeSpec, ["--data", "d", "--out", "o"], "tandem train vqvae").config()
    assert vqvae == open_checkpoint(weights_path("vqvae")).config
    assert open_checkpoint(weights_path("drafter")).config.depth == DEPTH


@pytest.mark.parametrize("command", COMMANDS)
def test_no_number_is_larger_than_a_job_can_have(command):
    spec = getattr(importlib.import_module(COMMANDS[command].module), COMMANDS[command].spec)
    for name in spec.model_fields:
        huge = 2**64 if name == "seed" else 10**12
        kinds = [kind for kind, _ in leaves(spec.model_fields[name].annotation)]
        odd = [float("inf"), float("-inf"), float("nan")] if float in kinds else []
        for value in (huge, (huge,), *odd, *((number,) for number in odd)):
            with pytest.raises(ValidationError) as caught:
                spec.model_validate({name: value})
            problems = {error["loc"][0]: error for error in caught.value.errors() if error["loc"]}
            assert name in problems, f"{command} takes {name} {value}"


@pytest.mark.parametrize(
    ("option", "value", "most"),
    [
        ("--per-class", 9_999_999_999_999, 10**9),
        ("--images", "1e12", 10**9),
        ("--shard-size", 10**12, 10**9),
        ("--batch", 10**12, 65_536),
        ("--drafters", 10**12, 100_000),
        ("--threads", 10**12, 1024),
        ("--max-failed-shards", 10**12, 10**9),
        ("--seed", 2**64, 2**63 - 1),
    ],
)
def test_a_huge_number_is_refused_with_the_largest(option, value, most):
    with pytest.raises(InputError, match=f"^{option}: expected .*at most {most}.*, got '?{value}"):
        generate("--out", "o", "--classes", "all", *(() if option == "--per-class" else BASE[4:]), option, str(value))
