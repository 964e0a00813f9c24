"""The command: help that teaches, and exit codes."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tandem.errors import JobError, PlacementError
from tandem_cluster.ray_version import MINOR
from tandem_jobs import cli

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: tandem {name}")
    assert "tuple[" not in printed
    assert "(default: None)" not in printed


@pytest.mark.parametrize(
    "name",
    [
        "generate",
        "cluster render",
        "export",
        "pictures",
        "tokenize",
        "train var",
        "train vqvae",
        "finetune drafter",
        "finetune refiner",
        "train classifier",
        "train curves",
        "bench train",
        "evaluate",
        "study training-free",
        "study tradeoff",
        "study scales",
        "study fine-tuned",
    ],
)
def test_help_teaches_by_example(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    assert f"  tandem {name} " in capsys.readouterr().out.split("examples:")[1]


def test_without_a_command_the_usage_is_shown(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"  {name} ") >= 2 for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("argv", "line", "hint"),
    [
        (["paint", "--out", "o"], "expected a command, got 'paint'", "tandem help lists all commands"),
        (["genrate", "--out", "o"], "expected a command, got 'genrate'", "did you mean tandem generate?"),
        (["bench", "stor"], None, "did you mean tandem bench store?"),
        (["study", "tradeof"], None, "did you mean tandem study tradeoff?"),
        (["clustr", "render"], "expected a command, got 'clustr render'", "did you mean tandem cluster render?"),
        (
            ["train", "--data", "d"],
            "expected one of train vqvae, train var, train classifier, train curves, got 'train'",
            None,
        ),
        (["train", "everything"], None, None),
        (["help", "genrate"], "expected a command, got 'genrate'", "did you mean tandem generate?"),
    ],
)
def test_an_unknown_command_is_named_with_a_suggestion(argv, line, hint, capsys):
    assert cli.main(argv) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2
    assert printed[0] == f"error: {line}" or line is None
    assert printed[1] == f"hint: {hint}" or hint is None


def test_help_is_a_command_too(capsys):
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out == cli.usage() + "\n"
    with pytest.raises(SystemExit):
        cli.main(["help", "train", "var"])
    assert capsys.readouterr().out.startswith("usage: tandem train var --out ... --tokens ... [OPTIONS]")


def test_help_has_groups_with_the_required_options_first(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    printed = capsys.readouterr().out
    groups = [line for line in printed.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups[:3] == ["required:", "Models, and where they run:", "How images are stored:"]
    required = printed.split("required:")[1].split("Models,")[0]
    flags = [line.split()[0] for line in required.splitlines() if line.startswith("  --")]
    assert flags == ["--classes", "--per-class", "--images", "--labels", "--out"]


def test_several_errors_are_indented_under_the_first(capsys):
    assert cli.main(["generate", "--batch", "0", "--codec", "gif", "--out", "o", "--labels", "l"]) == 2
    assert [line[:9] for line in capsys.readouterr().err.splitlines()] == ["error: --", "  --codec", "hint: tan"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_words(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("generate", "render", "per-class", "webdataset"):
        assert word in script


def completed(script, *words: str) -> list[str]:
    """What bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_tandem; printf '%s\\n' ${{COMPREPLY[@]}}"
    return subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True).stdout.split()


def test_bash_completes(capsys):
    cli.main(["completion", "bash"])
    script = capsys.readouterr().out
    assert completed(script, "tandem", "gen") == ["generate"]
    assert completed(script, "tandem", "cluster", "") == ["render"]
    assert completed(script, "tandem", "generate", "--per") == ["--per-class"]
    assert completed(script, "tandem", "generate", "--codec", "") == ["png", "jpeg", "webp"]


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (PlacementError("too many", "take fewer"), 2, "error: too many\nhint: take fewer\n"),
        (JobError("it broke"), 1, "error: it broke\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_exit_codes(raised, code, printed, capsys, monkeypatch):
    def run(spec):
        raise raised

    monkeypatch.setattr("tandem_jobs.models.run_models", run)
    assert cli.main(["models"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(printed)


def test_models_and_inspect_print_data_on_stdout(capsys):
    import json

    from tandem.zoo import weights_path

    assert cli.main(["models", "--json-lines"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"embedded", "d16", "d20", "d24", "d30", "d36", "vae_ch160v4096z32"} <= {row["name"] for row in rows}
    assert next(row for row in rows if row["name"] == "d36")["image"] == "512 px"
    assert cli.main(["inspect", str(weights_path("drafter"))]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["kind"].startswith("VAR")
    assert len(about["classes"]) == about["num_classes"] == 12


def test_another_minor_version_of_ray_is_refused_before_a_command_is_imported(capsys, monkeypatch):
    monkeypatch.setattr("tandem_cluster.ray_version.version", lambda name: "2.61.0")
    assert cli.main(["models"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: expected Ray 2.60, the version that Tandem is tested with, got 2.61.0",
        "hint: pip install 'ray[serve,data]>=2.60,<2.61'",
    ]


def test_the_version_of_ray_is_that_of_the_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ray[serve,data]>={MINOR},<2.61" in project["dependencies"]
    assert version("ray").startswith(f"{MINOR}.")


def test_python_versions_that_are_claimed_are_those_of_the_tests():
    claimed = [c for c in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"] if "::" in c]
    assert f"Programming Language :: Python :: {sys.version_info[0]}.{sys.version_info[1]}" in claimed
    assert len([c for c in claimed if c.startswith("Programming Language :: Python :: 3.")]) == 1
