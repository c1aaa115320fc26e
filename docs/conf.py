"""Sphinx settings. `make docs` builds the site into docs/_build/html; a warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate  # noqa: E402

import fewstep  # noqa: E402

project = "fewstep"
author = "The fewstep authors"
copyright = author
version = release = fewstep.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "fewstep"
html_theme_options = {
    "source_repository": "https://github.com/fewstep/fewstep",
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_heading_anchors = 3
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88


def setup(app):
    app.connect("source-read", generate.fill_page)
    app.connect("autodoc-process-docstring", generate.docstring_as_rst)
