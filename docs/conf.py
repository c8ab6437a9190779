"""Sphinx configuration: `make docs` writes docs/_build/html."""

import tb_optax

project = "tb_optax"
author = "The tb_optax authors"
release = tb_optax.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
napoleon_use_rtype = False
napoleon_attr_annotations = False
suppress_warnings = ["myst.xref_missing"]  # the README links to files beside it, which are no pages
