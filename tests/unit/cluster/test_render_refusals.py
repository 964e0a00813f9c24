"""Wrong plans and options of the render command are one line and leave no files; right ones are taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.clusters import EXAMPLE, PLAN
from support.rendering import check, option, plan_file, render
from tandem_jobs import cli


def broken(change: Any) -> str:
    plan = json.loads(PLAN.read_text())
    change(plan)
    return json.dumps(plan)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not JSON: EOF"),
        ("[1]", "the whole file: expected an object, got [1]"),
        (broken(lambda p: p.pop("best")), "best: expected a value, got none"),
        (broken(lambda p: p.pop("request")), "request: expected a value, got none"),
        (broken(lambda p: p["best"].update(mode="x")), "best.mode: expected 'split', 'colocated' or 'mixed', got 'x'"),
        (broken(lambda p: p["best"].update(batch="64")), "best.batch: expected a valid integer, got '64'"),
        (broken(lambda p: p["best"].update(batch=0)), "best.batch: expected greater than 0, got 0"),
        (broken(lambda p: p["best"].update(drafters={})), "best.drafters: "),
        (broken(lambda p: p["best"].update(drafters={"l4": -1})), "best.drafters.l4: expected greater than 0, got -1"),
        (broken(lambda p: p["best"].update(refiners={"H 100": 1})), "best.refiners.H 100.[key]: "),
        (broken(lambda p: p["request"].update(images=0)), "request.images: expected greater than 0, got 0"),
        (broken(lambda p: p["runners_up"][0].pop("mode")), "runners_up.0.mode: expected a value, got none"),
    ],
)
def test_what_is_no_plan_is_one_line_and_leaves_nothing(text, line, tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert cli.main(["cluster", "render", "--plan", str(path), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, hint = err.splitlines()
    assert first.startswith(f"error: --plan: {path}: {line}")
    assert hint.startswith("hint: made by: tandem plan")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--plan", "none.json"), "--plan: cannot read none.json"),
        (("--mode", "colocated"), "--mode: expected a plan with a colocated option, got split alone"),
        (("--dataset", "folder"), "--dataset: expected s3://bucket/prefix, got 'folder'"),
        (("--name", "Tandem"), "--name: expected at most 30 small letters"),
        (("--image", "a b"), "--image: expected text without spaces"),
        (("--instances", "l4"), "--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once, got 'l4'"),
        (("--instances", "l4=a.b,l4=c.d"), "--instances: expected KIND=TYPE"),
        (("--instances", "L4=a.b,L4=c.d"), "--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once"),
        (("--instances", "l4=a.b,L4=c.d"), "--instances: expected KIND=TYPE or KIND=TYPE:GPUS, each kind once"),
        (("--cpus", "0"), "--cpus: expected a whole number above 0"),
        *(
            (("--ami", ami), "--ami: expected ami- and 8 or 17 hexadecimal digits, or resolve:ssm:/PARAMETER")
            for ami in ("latest_dlami", "ami-123", "resolve:ssm:name", "ami-" + "G" * 17)
        ),
        (("--spot", "some"), "--spot: expected 'refiners', 'all' or 'none'"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(more, line, tmp_path, capsys):
    plan = plan_file(tmp_path, option("split", {"l4": 1}, {"l4": 1}))
    assert cli.main(["cluster", "render", "--plan", str(plan), "--out", str(tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dataset", "drafter", "refiner", "vqvae", "image", "region"])
@pytest.mark.parametrize(
    "address",
    [
        "s3://user:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "s3://user:hun/ter2@bucket/x",
        "https://user:hunter2@host:443/x",
        "user:hunter2@registry.example.com/tandem:1",
    ],
)
def test_addresses_with_passwords_are_refused_and_not_repeated(name, address, tmp_path, capsys, monkeypatch):
    (tmp_path / "options.yaml").write_text(f"{name}: {address}\n")
    argv = ["cluster", "render", "--plan", str(PLAN), "--mode", "split", "--out", str(tmp_path / "out")]
    assert cli.main([*argv, f"--{name}", address]) == 2
    assert cli.main([*argv, "--spec", str(tmp_path / "options.yaml")]) == 2
    monkeypatch.setenv(f"TANDEM_{name.upper()}", address)
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    line = f"error: --{name}: expected an address without user or password, which would be written to the files"
    assert [text for text in err.splitlines() if not text.startswith("hint:")] == [line] * 3
    assert "ter2" not in out + err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("image", f"registry.example.com:5000/tandem:1@sha256:{'0a' * 32}"),
        ("image", f"tandem:1@sha256:{'0a' * 32}"),
        ("image", "127.0.0.1:5000/tandem:1"),
        ("dataset", "s3://bucket/who@where:now"),
        ("drafter", "/weights/var@d30.pth"),
    ],
)
def test_addresses_with_digests_ports_and_signs_in_paths_are_taken(name, address, tmp_path):
    argv = [*EXAMPLE[2:], f"--{name}", address]
    files = render(PLAN, tmp_path / "out", *argv)
    assert address in files["rayjob.yaml"]
    check(files)


def test_n_is_held_against_the_embedded_model(tmp_path, capsys):
    argv = ["cluster", "render", "--plan", str(PLAN), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first == "error: --plan: draft_steps: expected 1 to 6 (the pyramid has 7 scales), got 8"
    assert hint.startswith("hint: --drafter, --refiner and --vqvae name the models")
    assert not (tmp_path / "out").exists()


def test_other_files_are_replaced_on_request_alone(tmp_path, capsys):
    out = tmp_path / "out"
    first = render(PLAN, out, *EXAMPLE[2:])
    assert render(PLAN, out, *EXAMPLE[2:]) == first  # the same again is no replacement
    capsys.readouterr()
    assert cli.main(["cluster", "render", *EXAMPLE, "--out", str(out), "--cpus", "4"]) == 2
    err = capsys.readouterr().err
    assert f"expected none or the same files in {out}, got different raycluster.yaml, rayjob.yaml" in err
    assert {path.name: path.read_text() for path in out.iterdir()} == first
    assert render(PLAN, out, *EXAMPLE[2:], "--cpus", "4", "--overwrite") != first


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["cluster", "render", *EXAMPLE, "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --out: cannot write")
