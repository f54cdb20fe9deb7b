"""How Sphinx builds the site of the documentation: ``make docs``. A warning is an error there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_site"))

from diptych.version import __version__

project = "diptych"
author = "The diptych authors"
copyright = "the diptych authors, Apache-2.0"
version = release = __version__

# `links` and `reference` are in _site/.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "links", "reference"]
exclude_patterns = ["_site"]
nitpicky = True
suppress_warnings = ["myst.xref_ambiguous"]

myst_heading_anchors = 4  # links to a title, as the repository's pages have them
myst_enable_extensions = ["colon_fence"]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
napoleon_use_ivar = True

highlight_language = "none"  # a block without a language is a listing
html_theme = "furo"
html_title = f"diptych {__version__}"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/diptych-cxr/diptych/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#1d5f8a", "color-brand-content": "#1d5f8a"},
    "dark_css_variables": {"color-brand-primary": "#7fc1ea", "color-brand-content": "#7fc1ea"},
}
copybutton_exclude = ".linenos, .gp, .go"
