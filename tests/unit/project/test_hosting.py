"""What a host of the repository reads: the workflow runs .ci/run, forms and hooks name what exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_calls_the_script_that_every_host_calls():
    workflow = load(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "bash .ci/run"
    assert (ROOT / ".ci" / "run").exists()
    assert workflow["permissions"] == {"contents": "read"}
    python = re.match(r"python:(\d\.\d+)-", job["container"]["image"])
    assert python and python[1] in (ROOT / "constraints.txt").read_text().splitlines()[0]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_what_is_needed(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    fields = {field["id"]: field for field in form["body"]}
    assert len(fields) == len(form["body"])
    assert all(field["attributes"]["label"] for field in fields.values())
    assert any(field.get("validations", {}).get("required") for field in fields.values())


def test_hooks_use_the_tools_that_make_installs():
    (local,) = load(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {re.match(r"[\w-]+", line)[0].removesuffix("-bin") for line in project["optional-dependencies"]["dev"]}
    programs = {Path(hook["entry"].split()[0]).name for hook in local["hooks"]}
    assert programs == {"ruff", "mypy", "hadolint"}
    assert programs <= installed
