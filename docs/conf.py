"""Sphinx configuration. `tox run -e docs` builds the pages in docs/_build/html."""

from importlib import metadata

project = "lusca_comm"
author = "the lusca_comm authors"
project_copyright = f"2026, {author}"
release = version = metadata.version("lusca-comm")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lusca_comm {release}"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
