"""Sphinx configuration: `make docs` writes docs/_build/html, whose pages need no network: formulas are MathML."""

import latex2mathml.converter
from docutils.nodes import SkipNode

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
suppress_warnings = ["myst.xref_missing"]  # pages link to files outside the docs, which are no pages

html_math_renderer = "mathml"


def _math(display):
    def visit(translator, node):
        translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
        raise SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
