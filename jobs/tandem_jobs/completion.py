"""`tandem completion`: a shell script that completes commands, options and file names."""

from __future__ import annotations

import argparse
import importlib
from typing import Annotated, Any, Literal

import shtab
from pydantic import Field

from tandem_jobs import cli
from tandem_jobs.options.flags import POSITIONAL, leaves
from tandem_jobs.options.spec import Spec, make_parser

EXAMPLES = """examples:
  tandem completion bash > ~/.local/share/bash-completion/completions/tandem
  tandem completion zsh > ~/.zfunc/_tandem          in a folder of $fpath
  tandem completion fish > ~/.config/fish/completions/tandem.fish"""


class CompletionSpec(Spec):
    """Print a script that lets a shell complete commands, options and files by TAB."""

    shell: Annotated[Literal["bash", "zsh", "fish"], POSITIONAL] = Field(description="bash, zsh or fish")


def run(spec: CompletionSpec) -> None:
    """Print the script on stdout."""
    print(shtab.complete(full_parser(), spec.shell))


def full_parser() -> argparse.ArgumentParser:
    """All commands as one parser of sub-commands."""
    root = argparse.ArgumentParser("tandem")
    groups: dict[str, Any] = {"": root.add_subparsers(dest="command")}
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in cli.COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            parent = parsers.get(group) or groups[""].add_parser(group, help=f"{group} ...")
            groups[group] = parent.add_subparsers(dest=group)
        module = importlib.import_module(command.module)
        spec = getattr(module, command.spec)
        parser = make_parser(spec, f"tandem {name}")
        parsers[name] = groups[group].add_parser(
            last,
            parents=[parser],
            add_help=False,
            help=command.summary,
            description=spec.__doc__,
            epilog=getattr(module, "EXAMPLES", ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        complete_values(parser, spec)
    return root


def complete_values(parser: argparse.ArgumentParser, spec: type[Spec]) -> None:
    """Complete an option's words, or file names if it takes text. Parsers share the actions of their parents."""
    for action in parser._actions:
        field = spec.model_fields.get(action.dest)
        if field is None or action.nargs == 0:
            continue
        kinds = [kind for kind, _ in leaves(field.annotation)]
        words = [word for kind in kinds if isinstance(kind, tuple) for word in kind]
        if words:
            action.choices = words
        elif not {int, float} & set(kinds):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
