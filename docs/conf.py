"""Configuration of Sphinx; ``make docs`` builds into ``docs/_build``."""

import sys
from pathlib import Path

import kdbench

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "kdbench"
author = "the authors of kdbench"
version = release = kdbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "kdbench_docs.extension"]
exclude_patterns = ["_build", "_ext", "examples"]
root_doc = "index"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

toc_object_entries = False  # the tree beside each page has pages, not every argument of every function

html_theme = "furo"
html_title = "kdbench"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
