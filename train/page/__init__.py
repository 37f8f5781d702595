"""A model on a page, to try and to show: `polyhead demo`, and the Space that `push --space` makes.

What each tab returns is a function of the pipeline and of what was typed, tested without a browser;
`app.py` puts them on a page of Gradio. The page loads nothing from elsewhere and reports to nobody.
"""

from .app import create_page, open_page

__all__ = ["create_page", "open_page"]
