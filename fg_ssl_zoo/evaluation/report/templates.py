"""Renders the page templates beside this file; all names are escaped."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """A page as HTML.

    Args:
        template: Name of the file.
        content: The names that the template reads; a missing name is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(content)


def breakable(name: object) -> Markup:
    """A name as HTML that may wrap after `_ . - / @ ,` and at spaces.

    It wraps nowhere else, and not before the suffix of a file.
    """
    return Markup("<wbr>").join(escape(piece) for piece in _PIECES.split(str(name)))


_PIECES = re.compile(r"(?<=[\w)][_/@,-])(?=\w)|(?<=\w\.)(?=\w)(?!\w{1,4}$)")  # not in `1.jpg`
