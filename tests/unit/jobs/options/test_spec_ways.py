"""Every option of every command: the same value by a flag, a YAML file and a variable is the same spec."""

import functools
import importlib
import os
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.errors import InputError
from tandem_jobs import cli
from tandem_jobs.options.flags import COMMAS, POSITIONAL, flag_of, is_flag, is_list, leaves
from tandem_jobs.options.spec import Spec, as_flags, join, make_parser, parse

# Enough where one of several options is required
CHOICES = {"classes": "all", "images": "5", "distill_cfg": "1", "label": "all", "box": "0,0,1,1"}
LETTERS = st.characters(exclude_categories=["Cs", "Cc"])
WORDS = st.text(LETTERS, min_size=1, max_size=8).map(str.strip).filter(bool)


def spec_of(name: str) -> type[Spec]:
    command = cli.COMMANDS[name]
    return getattr(importlib.import_module(command.module), command.spec)


def natural(field) -> st.SearchStrategy:
    """Values as YAML would have them."""
    if is_flag(field):
        return st.booleans()
    kinds = [one_value(kind, metadata) for kind, metadata in leaves(field.annotation, field.metadata)]
    if is_list(field.annotation) or COMMAS in field.metadata:
        return st.one_of(*kinds) | st.lists(st.one_of(*kinds), min_size=1, max_size=3)
    return st.one_of(*kinds)


def one_value(kind, metadata) -> st.SearchStrategy:
    if isinstance(kind, tuple):
        return st.sampled_from(kind)
    if kind is int:
        return st.integers(0, 120)  # some of them are out of bounds: then the error is the same
    if kind is float:
        return st.floats(0, 1.5, allow_subnormal=False) | st.integers(0, 2)
    return WORDS | st.integers(0, 9)


def as_typed(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return join(value) if isinstance(value, list) else str(value)


def outcome(spec: type[Spec], argv: list[str], variables: dict[str, str]) -> object:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("TANDEM_")}
    with mock.patch.dict(os.environ, clean | variables, clear=True):
        try:
            return parse(spec, argv, "tandem").model_copy(update={"spec": None})
        except InputError as error:
            return str(error)


@pytest.fixture(scope="module", autouse=True)
def parsers_made_once():
    with mock.patch("tandem_jobs.options.spec.make_parser", functools.cache(make_parser)):
        yield


@pytest.mark.parametrize("command", cli.COMMANDS)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_an_option_is_the_same_by_flag_file_and_variable(command, data, tmp_path):
    spec, file = spec_of(command), tmp_path / "job.yaml"
    needed = [name for name in spec.model_fields if spec.model_fields[name].is_required()]
    needed += [name for name in CHOICES if name in spec.model_fields and name not in needed and spec.missing({})]
    words = {name: next(leaves(spec.model_fields[name].annotation))[0] for name in needed}
    fixed = {name: word[0] if isinstance(word, tuple) else CHOICES.get(name, "1") for name, word in words.items()}
    assert isinstance(outcome(spec, flags(spec, fixed), {}), spec)
    for name, field in spec.model_fields.items():
        if name == "spec":
            continue
        value = data.draw(natural(field), name)
        if is_list(field.annotation) and not isinstance(value, list) and not isinstance(value, int | float):
            value = [value]  # commas in it are its own
        values = {key: text for key, text in fixed.items() if is_one_of(spec, name, key)} | {name: value}
        others = {key: text for key, text in fixed.items() if key not in values}
        texts = {key: as_typed(given) for key, given in values.items()}
        variables = {f"TANDEM_{key.upper()}": text for key, text in texts.items()}
        ways = {
            "flag": outcome(spec, flags(spec, {**others, **values}), {}),
            "variable": outcome(spec, flags(spec, others), variables),
            "file": by_file(spec, file, others, values),
            "file, as text": by_file(spec, file, others, {flag_of(key)[2:]: text for key, text in texts.items()}),
        }
        assert all(way == ways["flag"] for way in ways.values()), (name, value, ways)
        if isinstance(ways["flag"], Spec):
            assert outcome(spec, as_flags(ways["flag"]), {}) == ways["flag"]


def is_one_of(spec: type[Spec], name: str, other: str) -> bool:
    """Whether both are arguments without a flag, of which none can be left out before another."""
    return all(POSITIONAL in spec.model_fields[key].metadata for key in (name, other))


def flags(spec: type[Spec], values: dict) -> list[str]:
    argv, positional = [], []
    for name, value in values.items():
        field = spec.model_fields[name]
        if POSITIONAL in field.metadata:
            positional += map(str, value) if isinstance(value, list) else [str(value)]
        elif is_flag(field):
            argv.append(flag_of(name if value is True else f"no_{name}"))
        else:
            argv.append(f"{flag_of(name)}={as_typed(value)}")
    return [*argv, "--", *positional]


def by_file(spec: type[Spec], file: Path, others: dict, values: dict) -> object:
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return outcome(spec, ["--spec", str(file), *flags(spec, others)], {})
