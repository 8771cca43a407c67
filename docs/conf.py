"""The pages: ``pip install -e '.[docs]'``, then ``sphinx-build -W -b html docs runs/docs``."""

project = "ttopt"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "ttopt"
myst_heading_anchors = 3
