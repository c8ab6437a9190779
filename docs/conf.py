"""Sphinx configuration: `make docs` writes docs/_build/html, whose pages need no network: formulas are MathML."""

import re

import latex2mathml.converter
from docutils.nodes import SkipNode

import tb_optax

project = "tb_optax"
author = "The tb_optax authors"
release = tb_optax.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
]
html_theme = "furo"
exclude_patterns = ["_build", "gallery", "sg_execution_times.rst", "auto_gallery/sg_execution_times.rst"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
napoleon_use_rtype = False
napoleon_attr_annotations = False

# The gallery is run when the docs are built, if it has changed; what fails there fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "abort_on_example_error": True,
}

html_math_renderer = "mathml"


def _math(display):
    def visit(translator, node):
        translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
        raise SkipNode

    return visit, None


def _link_gallery_pages(app, page, source):
    """A link to a program of the gallery leads to its page."""
    source[0] = re.sub(r"\(gallery/(\w+)\.py\)", r"(auto_gallery/\1.rst)", source[0])


def _short_types(app, what, name, obj, options, signature, returns):
    """Arrays by their public name."""
    return tuple(each and each.replace("jaxlib._jax.Array", "Array") for each in (signature, returns))


def setup(app):
    app.connect("autodoc-process-signature", _short_types)
    app.connect("source-read", _link_gallery_pages)
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
