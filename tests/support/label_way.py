"""The way of one label through the code, from `cli.main` to the store's put, as a trace of calls.

`python tests/support/label_way.py` runs a small `tandem generate` without a cluster and prints one JSON object; with a
folder as its argument, the same for another checkout. A call belongs to the way if one of its arguments has the label:
rows, a shard in any form, a batch, or the finished file. So do the calls around it. Python's own calls of special
methods (`len`, checks of a dataclass) do not. Counted are

    files     files of the project that the way enters
    climbs    calls against the order of imports: the file that is called imports that of the caller, directly or not
    sideways  calls between files of which neither imports the other: what is called was handed over as an object
    returns   times that the way comes back to the file of the caller, each pair of functions once
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from support import ray_in_process

CARRIERS = {"LabelRows", "ShardRows", "Batch"}  # and their subclasses
FOLDERS = ("code", "workers", "jobs", "cluster")
ARGUMENTS = ("generate", "--classes", "all", "--images", "1", "--batch", "1", "--placement", "split")


def carries(value: Any) -> bool:
    """Whether an argument holds the label: rows, a row of Ray Data, bound arguments, or files of a shard."""
    if isinstance(value, functools.partial):
        return any(map(carries, (*value.args, *value.keywords.values())))
    if isinstance(value, dict):
        return "label" in value or "item" in value
    if isinstance(value, list):
        return any(isinstance(item, tuple) and is_shard_file(item[0]) for item in value[:1])
    return is_shard_file(value) or any(kind.__name__ in CARRIERS for kind in type(value).__mro__)


def holds(value: Any) -> bool:
    """Whether an argument is the label, or an object that has it."""
    try:
        attributes = getattr(value, "__dict__", {})
    except Exception:  # placeholders of libraries that are being imported refuse every question
        attributes = {}
    return carries(value) or any(map(carries, attributes.values()))


def is_shard_file(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("shards/")


def is_source(root: Path, path: Path) -> bool:
    """Whether a file is the project's: an environment may lie in the checkout."""
    return path.is_relative_to(root) and path.relative_to(root).parts[0] in FOLDERS


class Way:
    """Calls between files of the project that belong to the way, in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.over = root, False
        self.modules: dict[CodeType, str] = {}  # of functions of the project
        self.calls: dict[tuple[CodeType, CodeType], None] = {}

    def is_ours(self, frame: FrameType) -> bool:
        """Whether a function is one of the project, and has a name."""
        code = frame.f_code
        if code not in self.modules:
            ours = is_source(self.root, Path(code.co_filename)) and not code.co_name.startswith("<")
            name = frame.f_globals["__name__"] if ours else ""
            self.modules[code] = "" if name == "__main__" or name == ray_in_process.__name__ else name
        return bool(self.modules[code])

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """Called by Python at each call."""
        if event != "call" or self.over or not self.is_ours(frame):
            return
        if any(name in ("label", "labels_B") or holds(value) for name, value in frame.f_locals.items()):
            self.add(frame)
            self.over = "Store.put" in frame.f_code.co_qualname

    def add(self, frame: FrameType | None) -> None:
        """A call, and those around it that are not known yet."""
        chain = []
        while frame is not None:
            if self.is_ours(frame):
                chain.append(frame.f_code)
            frame = frame.f_back
        for caller, callee in itertools.pairwise(reversed(chain)):
            if self.modules[caller] != self.modules[callee]:
                self.calls.setdefault((caller, callee))

    def count(self) -> dict[str, Any]:
        """The numbers, and which files and climbs they are."""
        crossings = [(self.modules[caller], self.modules[callee]) for caller, callee in self.calls]
        files = list(dict.fromkeys(module for crossing in crossings for module in crossing))
        climbs, sideways = [], []
        for (caller, callee), (one, other) in zip(self.calls, crossings, strict=True):
            line = f"{one}: {caller.co_qualname} -> {other}: {callee.co_qualname}"
            if other not in below(self.root, one):
                (climbs if one in below(self.root, other) else sideways).append(line)
        return {"files": files, "climbs": climbs, "sideways": sideways, "returns": len(self.calls)}


@functools.cache
def below(root: Path, module: str) -> set[str]:
    """The modules that a module of the project imports, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = set(imports(root, waiting.pop())) - found
        found |= new
        waiting += new
    return found


def imports(root: Path, module: str) -> Iterator[str]:
    """Modules that a loaded file imports, or names as text for an import later; not those for types."""
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "/")
    if not is_source(root, path):
        return
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith(("TYPE_CHECKING", "__name__ ==")):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in sys.modules:
            yield node.value


def trace(root: Path) -> Way:
    """Run the command under a profile of its main thread."""
    ray_in_process.install(num_gpus=2)
    from tandem_jobs import cli

    way = Way(root)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(way.profile)
        try:
            code = cli.main([*ARGUMENTS, "--out", str(Path(folder, "out"))])
        finally:
            sys.setprofile(None)
    if code or not way.over:
        raise SystemExit(f"expected a label in the store, got exit code {code}")
    return way


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()
    sys.path[:0] = [str(checkout / name) for name in FOLDERS]
    print(json.dumps(trace(checkout).count()))
