"""Plain data into annotated dataclasses; what is wrong becomes one line with its path.

Pydantic converts by annotated type (`1e-4` is a number, though YAML 1.1 reads a string) and knows
the path of what is wrong; this file adds the nearest valid key.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

STRICT: dict[str, Any] = {"extra": "forbid"}
"""Pydantic refuses keys that a dataclass does not have."""


class RecipeError(ValueError):
    """A recipe that cannot be meant; the message is one line that names the key."""


def parse(into: Any, content: Any, where: str = "") -> Any:
    """Convert plain data to an annotated type; the error names the path below `where`.

    Raises:
        RecipeError: One line on the first thing that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(into).validate_python(content)
    except ValidationError as error:
        raise RecipeError(_explain(into, error.errors(), where)) from None


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?` for a misspelt name, or the whole list when nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known are {listed}" if known else ""


def _explain(root: Any, errors: Sequence[Any], where: str) -> str:
    """One line on the first error of a pydantic report, unknown keys first."""
    error = min(errors, key=lambda e: e["type"] != "unexpected_keyword_argument")
    location = [part for part in error["loc"] if not _is_branch(part)]
    path = where
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if error["type"] == "unexpected_keyword_argument":
        return f"{path}: unknown key{nearest(str(location[-1]), _keys_at(root, location[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{path}: this key is missing"
    if error["type"] == "value_error":  # of a dataclass that checks itself
        return f"{path}: {error['ctx']['error']}"
    message = error["msg"].removeprefix("Input ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _is_branch(part: int | str) -> bool:
    """Whether a part of a pydantic location names the branch of a union, not a key."""
    return isinstance(part, str) and bool(
        re.search(r"^(constrained-)?(int|float|bool|str|none)$|[\[(]", part)
    )


def _keys_at(root: Any, location: Sequence[int | str]) -> list[str]:
    """Valid keys of the dataclass that a location leads to."""
    for part in location:
        root = _strip(root)
        if isinstance(part, int):
            root = get_args(root)[0]
        elif dataclasses.is_dataclass(root):
            root = {f.name: f.type for f in dataclasses.fields(root)}.get(part)
    root = _strip(root)
    return [f.name for f in dataclasses.fields(root)] if dataclasses.is_dataclass(root) else []


def _strip(annotation: Any) -> Any:
    """An annotation without its constraints, and the first dataclass of a union."""
    if get_origin(annotation) is Annotated:
        return _strip(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return next((a for a in get_args(annotation) if dataclasses.is_dataclass(a)), annotation)
    return annotation
