"""Sphinx configuration. `tox run -e docs` builds the pages in docs/_build/html."""

from importlib import metadata

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import lusca_comm

project = "lusca_comm"
author = "the lusca_comm authors"
project_copyright = f"2026, {author}"
release = version = metadata.version("lusca-comm")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "figures"]
html_theme = "furo"
html_title = f"lusca_comm {release}"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"


def every_public_name_is_documented(_app: Sphinx, env: BuildEnvironment) -> None:
    objects = env.get_domain("py").get_objects()
    documented = {name.rpartition(".")[2] for name, *_ in objects}
    for name in sorted(set(lusca_comm.__all__) - documented):
        logging.getLogger(__name__).warning("docs/api.md lacks lusca_comm.%s", name)


def setup(app: Sphinx) -> None:
    app.connect("env-check-consistency", every_public_name_is_documented)
