"""The command: help that teaches, and exit codes."""

import pytest

from jobs import cli
from tandem.errors import JobError, PlacementError


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
    "name", ["generate", "cluster render", "pictures", "train var", "train vqvae", "train curves", "evaluate"]
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


@pytest.mark.parametrize("argv", [["paint"], ["train"], ["train", "everything"]])
def test_an_unknown_command_is_named(argv, capsys):
    assert cli.main(argv) == 2
    assert f"got {' '.join(argv)!r}" in capsys.readouterr().err


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

    monkeypatch.setattr("jobs.models.run_models", run)
    assert cli.main(["models"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(printed)


def test_models_and_inspect_print_data_on_stdout(capsys):
    import json

    from tandem.zoo import weights_path

    assert cli.main(["models", "--json-lines"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"embedded", "d16", "d20", "d24", "d30", "d36", "vae_ch160v4096z32"} == {row["name"] for row in rows}
    assert next(row for row in rows if row["name"] == "d36")["image"] == "512 px"
    assert cli.main(["inspect", str(weights_path("drafter"))]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["kind"].startswith("VAR")
    assert len(about["classes"]) == about["num_classes"] == 12
