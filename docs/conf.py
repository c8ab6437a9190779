"""Sphinx configuration: `make docs` writes docs/_build/html, whose pages need no network: formulas are MathML."""

import re
from pathlib import Path

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

# Pages are plain Markdown, so that a repository browser shows them too. What only Sphinx understands is added here.
NAVIGATION = {
    "Train": ["start", "frameworks", "guide", "choosing", "scale", "troubleshooting"],
    "Study": ["reading", "auto_gallery/index", "report", "method"],
    "Evidence": [
        "evidence",
        "study",
        *(f"auto_results/{name}" for name in ("study", "study-vision", "vision", "language", "detection")),
    ],
    "Rebuild the paper": ["paper", "log"],
    "Cost": ["performance", "auto_results/cpu-2-cores", "auto_results/nvidia-h200"],
    "Reference": ["api", "licences"],
}
# Reports that programs write elsewhere in the repository; each becomes a page.
REPORTS = {
    "vision": ("Image classification, every run", "examples/paper/vision/results/report/README.md"),
    "language": ("Language models, every run", "examples/paper/language/results/report/README.md"),
    "detection": ("Object detection, every run", "examples/paper/detection/results/report/README.md"),
    "study": ("Study: language, every run", "examples/paper/language/results/study/README.md"),
    "study-vision": ("Study: images, every run", "examples/paper/vision/results/study/README.md"),
    "cpu-2-cores": ("Benchmarks on two CPU cores", "benchmarks/results/cpu-2-cores/report.md"),
    "nvidia-h200": ("Benchmarks on an NVIDIA H200", "benchmarks/results/nvidia-h200/README.md"),
}


def _math(display):
    def visit(translator, node):
        translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
        raise SkipNode

    return visit, None


def _write_report_pages(app):
    folder = Path(app.srcdir, "auto_results")
    folder.mkdir(exist_ok=True)
    for name, (title, report) in REPORTS.items():
        include = f"```{{include}} ../../{report}\n:relative-images:\n:heading-offset: 1\n```"
        (folder / f"{name}.md").write_text(f"# {title}\n\n`{report}`, as the program wrote it.\n\n{include}\n")


def _for_sphinx(app, page, source):
    """Adds the navigation; links to a program of the gallery and to a report lead to their pages."""
    text = re.sub(r"\(gallery/(\w+)\.py\)", r"(auto_gallery/\1.rst)", source[0])
    for name, (_, report) in REPORTS.items():
        text = text.replace(f"(../{report}", f"(auto_results/{name}.md")
    if page == "index":
        for caption, pages in NAVIGATION.items():
            text += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])
    source[0] = text


def _short_types(app, what, name, obj, options, signature, returns):
    """Arrays by their public name."""
    return tuple(each and each.replace("jaxlib._jax.Array", "Array") for each in (signature, returns))


def setup(app):
    app.connect("autodoc-process-signature", _short_types)
    app.connect("builder-inited", _write_report_pages)
    app.connect("source-read", _for_sphinx)
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
