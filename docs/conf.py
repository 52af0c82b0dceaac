"""Sphinx builds the site: `make docs`. A broken link or an API name that does not exist is an error there."""

import contextlib
import io
import os
import re

os.environ.setdefault("COLUMNS", "100")  # width of the commands' help

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from spa3r import __version__
from spa3r.trainers.integrations.cli import main

project = "Spa3R"
author = "The Spa3R authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"Spa3R {release}"
exclude_patterns = ["notebooks"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings are written for transformers' documentation: Markdown code, single backticks around code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False


class CommandHelp(SphinxDirective):
    """`{command-help} VERB...` shows what `spa3r VERB... --help` prints."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([*self.arguments[0].split(), "--help"])
        text = output.getvalue()
        if "usage:" not in text:
            raise self.error(f"`spa3r {self.arguments[0]} --help` prints no usage; got {text!r}.")
        return [nodes.literal_block(text, text, language="text")]


def convert_fences(app, what, name, obj, options, lines: list[str]):
    """Turn a fenced Markdown block of a docstring into a reStructuredText code block."""
    converted, fenced = [], False
    for line in lines:
        if fence := re.fullmatch(r"(\s*)```(\w*)", line):
            fenced = not fenced
            converted += ["", f"{fence[1]}.. code-block:: {fence[2]}", ""] if fenced else [""]
        else:
            converted.append(f"    {line}" if fenced else line)
    lines[:] = converted


def link_files_outside(app, name, source: list[str]):
    """Offer Markdown files outside of `docs` as downloads; they are no pages of the site."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def setup(app):
    """Register what this file adds to Sphinx."""
    app.connect("source-read", link_files_outside)
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", convert_fences)
