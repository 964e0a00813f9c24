"""Sphinx: the documents of the repository as one site, and a reference made from docstrings and options.

`make docs` builds it into build/docs, offline; warnings are errors. The source folder is the repository's root, so that
links of README and documents are checked as they stand.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("code", "workers", "jobs", "cluster")]

from tandem import __version__  # noqa: E402

project = "Tandem"
version = release = __version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "code/tandem/zoo/README.md", "code/tandem/imagenet_1k.md"]
exclude_patterns = [".*", "build", "out*", "tests", "workers", "jobs", "cluster"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_argparse_cli",
]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"Tandem {version}"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_copy_source = False
