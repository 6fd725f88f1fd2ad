"""What the lessons are made with: `check` and `hint` for exercises, plots, and the notebook builder.

`lesson` reads a source, `pairs` and `glossary` check its two languages, `build` makes the notebooks.
"""

from servinglib.course.checks import check, hint

__all__ = ["check", "hint"]
