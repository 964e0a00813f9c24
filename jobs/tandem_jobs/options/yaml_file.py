"""YAML files of values by name, read with limits: with aliases a kilobyte can expand to billions of values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tandem.errors import InputError
from tandem.user_files import MAX_DEPTH, read_text, repeated, shown

MAX_BYTES = 512 << 10  # of a file
MAX_VALUES = 20_000  # aliases expanded; PyYAML constructs some 10,000 a second
MAX_SCALAR = 4_000  # characters of a number, a date or another value that is not text
TOO_MANY = f"expected at most {MAX_VALUES:,} values, aliases included, got more"
TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:binary")


class Refused(yaml.MarkedYAMLError):
    """Valid YAML that Tandem refuses."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits: refuses deep nesting, aliases that expand without bound or contain themselves,
    and repeated keys. Raises yaml.YAMLError."""

    depth, values = 0, 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth, self.values = self.depth + 1, self.values + 1
        if self.values > MAX_VALUES:
            self.refuse(TOO_MANY, self.peek_event())
        if self.depth > MAX_DEPTH:
            self.refuse(f"expected at most {MAX_DEPTH} levels of nested values, got more", self.peek_event())
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Node | None:
        node: Node | None = super().get_single_node()
        if node is not None:
            self.count(node, {})
        return node

    def count(self, node: Node, sizes: dict[int, int]) -> int:
        """Number of values in a node, aliases expanded. `sizes` caches it by node id; 0: being counted."""
        if (known := sizes.get(id(node))) is not None:
            if not known:
                self.refuse("expected aliases of other values, got one of a value that contains it", node)
            return known
        sizes[id(node)] = 0
        if isinstance(node, MappingNode):
            keys = (key.value for key, _ in node.value if isinstance(key, ScalarNode))
            if twice := repeated(keys):
                self.refuse(f"expected every key once, got {twice} twice or more", node)
        total = 1 + sum(self.count(inner, sizes) for inner in parts(node))
        if total > MAX_VALUES:
            self.refuse(TOO_MANY, node)
        sizes[id(node)] = total
        return total

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        is_text = node.tag in TEXT_TAGS or not isinstance(node, ScalarNode)
        if not is_text and len(node.value) > MAX_SCALAR:
            self.refuse(f"expected at most {MAX_SCALAR} characters, got {len(node.value)}", node)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        # raised by Python's parsers of numbers, dates and booleans
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            got = shown(node.value, 60) if isinstance(node, ScalarNode) else "other values"
            self.refuse(f"expected {node.tag.rpartition(':')[2]}, got {got}", node)

    @staticmethod
    def refuse(problem: str, node: Any) -> None:
        raise Refused(problem=problem, problem_mark=node.start_mark)


def parts(node: Node) -> Iterator[Node]:
    """The nodes inside a node."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


class TextLoader(BoundedLoader):
    """YAML whose scalars stay text, except null, which is None: `classes: 007` equals --classes 007."""


TextLoader.yaml_implicit_resolvers = {
    letter: [pair for pair in pairs if pair[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(flag: str, path: str | Path, loader: type[BoundedLoader] = BoundedLoader) -> dict[Any, Any]:
    """A YAML file of values by name; empty for an empty file. Raises InputError naming the flag."""
    name = f"{flag}: {shown(path)}"
    try:
        text = read_text(path, MAX_BYTES)
    except InputError as error:
        raise InputError(f"{flag}: {error}", error.hint) from error
    try:
        values = yaml.load(text, loader) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, Refused) else f"is not YAML: {error.problem or error.context}"
        raise InputError(f"{name}{line}: {shown(problem)}") from error
    except yaml.reader.ReaderError as error:
        raise InputError(f"{name} is not YAML: {error.reason} (U+{error.character:04X})") from error
    if not isinstance(values, dict):
        raise InputError(f"{flag}: expected values by name in {shown(path)}, got a {type(values).__name__}")
    return values
