"""The pages: ``pip install -e '.[docs]'``, then ``sphinx-build -W -b html docs runs/docs``."""

project = "ttopt"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "ttopt"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
