"""Links of the pages that leave the site lead to the repository; the same links work on GitHub."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\]\((?:\.\./(?P<beside>[^)\s]+)|(?P<card>cards/[^)\s]+))\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""

    def link(found: re.Match[str]) -> str:
        path = found["beside"] or f"docs/{found['card']}"
        return f"]({config['repo_url']}/blob/main/{path})"

    return _OUTSIDE.sub(link, markdown)
