"""What the documents say to type is what the command line takes, and the files they name exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import tandem
from tandem_jobs import cli
from tandem_jobs.submit_files import read_command

ROOT = Path(__file__).parents[3]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def fenced_lines(text: str) -> list[str]:
    """Lines of code blocks, continued ones joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands() -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        lines = fenced_lines(text) + re.findall(r"`(tandem [^`\n]+ --[^`\n]+)`", text)
        found += [(path.name, line) for line in lines if re.match(r"tandem [a-z]", line)]
    return found


def is_sketch(line: str) -> bool:
    """Placeholders in capitals, ellipses and options in brackets are for reading."""
    return bool(re.search(r"\.\.\.|\[|\b[A-Z]{3,}\b(?!_)", re.sub(r"s3://\S+", "", line)))


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_are_taken(document, line, monkeypatch):
    if is_sketch(line):
        pytest.skip("a sketch")
    # the file is made by the command before
    monkeypatch.setattr("tandem_jobs.options.options.tuned_options", lambda source, known, given: dict(given))
    parts = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    if "--help" in parts:
        return
    name, rest = cli.split_command(parts)
    if cli.COMMANDS[name].wraps:
        at = rest.index("--")
        read_command(rest[at + 1 :])
        rest = rest[:at]
    if cli.COMMANDS[name].spec == "ServeSpec" and not rest:
        return
    cli.parse_options(name, rest)


def example_sets() -> dict[str, list[str]]:
    """Commands that one reader may type one after the other: README and guide with `make generate`, and each help."""
    make = (ROOT / "Makefile").read_text().replace("\\\n", " ").replace("$(OUT)", "out")
    readme = [line for name, line in commands() if name in ("README.md", "GUIDE.md")]
    modules = {command.module: importlib.import_module(command.module) for command in cli.COMMANDS.values()}
    helps = {name: getattr(module, "EXAMPLES", "").replace("\\\n", " ") for name, module in modules.items()}
    lines = {name: text.splitlines() for name, text in helps.items()}
    return {"README.md": [*readme, *re.findall(r"tandem generate .*", make)], **lines}


@pytest.mark.parametrize(("where", "lines"), example_sets().items())
def test_every_example_has_an_out_of_its_own(where, lines):
    """A second job in the same place would be refused as another one."""
    outs: dict[str, str] = {}
    for line in lines:
        command = " ".join(line.strip().partition("  #")[0].split())
        if out := re.match(r"tandem (?:submit .*-- )?(?:generate|draft|refine) .*--out (\S+)", command):
            assert outs.setdefault(out[1], command) == command, out[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    for name in re.findall(r"`((?:cluster|docs|tests|jobs|workers|code)/[\w./-]+\.\w+)`", path.read_text()):
        assert (ROOT / name).exists(), name


def test_the_reference_has_every_public_name():
    """Names of its other modules, which the page has too, are written out or follow their `currentmodule`."""
    text = (ROOT / "docs" / "reference" / "library.md").read_text()
    text = re.sub(r"^\.\. currentmodule:: tandem\..*?^\.\. currentmodule:: tandem$", "", text, flags=re.M | re.S)
    named = set(re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", text, re.M))
    assert named == set(tandem.__all__) - {"__version__"}


def test_every_document_is_in_the_site():
    """Sphinx names those that are not, too; but only where it runs."""
    index = (ROOT / "docs" / "index.md").read_text()
    assert [path.stem for path in DOCUMENTS if not re.search(rf"{path.stem}>?$", index, re.M)] == ["index"]


def test_every_promise_of_the_readme_links_to_the_tests_that_hold_it():
    promises = (ROOT / "README.md").read_text().split("## What you can rely on\n")[1].split("\n## ")[0]
    bullets = re.split(r"^- ", promises, flags=re.M)[1:]
    assert len(bullets) == 5
    assert [bullet for bullet in bullets if "](tests/" not in bullet] == []


def test_the_readme_is_read_in_minutes():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    measured = [line for line in lines[lines.index("## Measured") :] if line.startswith("| ")][1:]
    assert len(measured) == 7


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_of_rooms_that_are_named_exist(name):
    """`dataset/commit.py` is a file of a room, `cli.py` one of the commands."""
    packages = [ROOT / "workers" / "tandem_workers", ROOT / "jobs" / "tandem_jobs"]
    text = (ROOT / name).read_text()
    named = re.findall(r"`(?!(?:cluster|docs|tests|jobs|workers|code)/)((?:\w+/)?\w+\.py)`", text)
    assert len(named) > 10
    assert [file for file in named if not any((package / file).exists() for package in packages)] == []


def test_every_room_is_on_the_map():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for package in (ROOT / "workers" / "tandem_workers", ROOT / "jobs" / "tandem_jobs"):
        rooms = [path.parent.relative_to(ROOT) for path in package.glob("*/__init__.py")]
        assert rooms and [room for room in rooms if f"`{room}/`" not in text] == []


def test_tests_that_are_named_exist():
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) > 15
    assert [test for path, test in named if f"def {test}(" not in (ROOT / path).read_text()] == []


def test_the_first_command_on_a_fresh_head_makes_the_token():
    """`ray start` of Ray 2.60 with RAY_AUTH_MODE=token ends with an AuthenticationError where there is none."""
    lines = fenced_lines((ROOT / "docs" / "OPERATIONS.md").read_text())
    first = next(number for number, line in enumerate(lines) if "ray start" in line)
    assert "--head" in lines[first] and lines[first - 1] == "ray get-auth-token --generate"
    (sentence,) = re.findall(r"^A cluster requires a token.*$", (ROOT / "docs" / "GUIDE.md").read_text(), re.M)
    assert "if one existed when it started (`ray get-auth-token --generate`)" in sentence


def test_raw_output_names_no_folders_of_the_machine_that_made_it():
    runs = [path for path in (ROOT / "docs" / "runs").rglob("*") if path.suffix in (".json", ".log", ".md", ".txt")]
    assert runs
    wrong = [path for path in runs if re.search(r'File \\?"/|/(work|home|root)/', path.read_text())]
    assert wrong == []
