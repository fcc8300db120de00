"""Convert plain data to annotated dataclasses; errors are one line with the path of the key.

The type of the key decides how a scalar is read: text as it is, decimal numbers, `true` or `false`.
Pydantic checks the ranges.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fg_ssl_zoo.config.plain import (
    NULL,
    NUMBER,
    TRUTH,
    WHOLE,
    RecipeError,
    Unquoted,
    below,
    untyped,
)


@dataclasses.dataclass(frozen=True)
class Check:
    """A check in an annotation that pydantic does not have.

    Attributes:
        wrong: Function that says what a value should be, or returns `None` if it is valid.
    """

    wrong: Callable[[Any], str | None]


def parse(into: Any, content: Any, where: str = "") -> Any:
    """Convert plain data to an annotated type; the error names the path below `where`.

    Raises:
        RecipeError: One line about the first error.
    """
    try:
        return _build(into, content, where)
    except RecursionError:
        raise RecipeError(f"{where or 'recipe'}: nested too deeply, or in a cycle") from None


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?` for a misspelt name, or the whole list if no name is similar."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known are {listed}" if known else ""


def fields_of(into: Any) -> dict[str, Any]:
    """Key -> annotation of a dataclass."""
    hints = get_type_hints(into, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(into) if field.init}


def child_of(kind: Any, key: str) -> Any:
    """Annotation of a key or list item; `Any` if unknown."""
    for bare, _ in _members(kind):
        if dataclasses.is_dataclass(bare):
            return fields_of(bare).get(key, Any)
        if _is_list(bare) or _is_mapping(bare):
            return next(iter(get_args(bare)[_is_mapping(bare) :]), Any)
    return Any


def takes_containers(kind: Any) -> bool:
    """Whether the type accepts a list or a mapping."""
    return any(
        bare is Any or _is_list(bare) or _is_mapping(bare) or dataclasses.is_dataclass(bare)
        for bare, _ in _members(kind)
    )


def takes_text(kind: Any) -> bool:
    """Whether any text can be meant."""
    return any(bare is str for bare, _ in _members(kind))


# --------------------------------------------------------------------------- one value


def _build(kind: Any, value: Any, path: str) -> Any:
    """A value of an annotated type."""
    for bare, full in _members(kind):
        if bare is Any:
            return untyped(value, path)
        if dataclasses.is_dataclass(bare):
            if isinstance(value, bare):  # pyright: ignore[reportArgumentType]
                return value
            if isinstance(value, Mapping):
                return _dataclass(bare, value, path)
        elif _is_mapping(bare) and isinstance(value, Mapping):
            item = (*get_args(bare), Any, Any)[1]
            return {str(k): _build(item, v, below(path, str(k))) for k, v in value.items()}
        elif _is_list(bare) and isinstance(value, list | tuple):
            return _list(bare, full, value, path)
    return _scalar(list(_members(kind)), value, path)


def _dataclass(into: Any, content: Mapping[Any, Any], path: str) -> Any:
    kinds = fields_of(into)
    for key in content:
        if key not in kinds:
            raise RecipeError(f"{below(path, str(key))}: unknown key{nearest(str(key), kinds)}")
    values = {key: _build(kinds[key], content[key], below(path, key)) for key in content}
    for field in dataclasses.fields(into):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.init and field.name not in values:
            raise RecipeError(f"{below(path, field.name)}: this key is missing")
    try:
        return into(**values)
    except ValueError as error:  # from a dataclass that checks itself
        raise RecipeError(f"{path}: {error}" if path else str(error)) from None


def _list(bare: Any, full: Any, value: Sequence[Any], path: str) -> Any:
    kinds = get_args(bare) or (Any, ...)
    if get_origin(bare) is tuple and kinds[-1] is not ...:
        if len(value) != len(kinds):
            raise RecipeError(f"{path}: should have {len(kinds)} items, got {_shown(list(value))}")
    else:
        kinds = (kinds[0],) * len(value)
    items = (
        _build(k, v, below(path, i)) for i, (k, v) in enumerate(zip(kinds, value, strict=True))
    )
    found = tuple(items) if get_origin(bare) is tuple else list(items)
    limits = get_args(full)[1:] if get_origin(full) is Annotated else ()
    return _checked(Annotated[type(found), *limits], found, path) if limits else found


def _scalar(members: Sequence[tuple[Any, Any]], value: Any, path: str) -> Any:
    """The value converted to the first type of a union that accepts it, within its range."""
    for bare, full in members:
        done, converted = _convert(bare, value)
        if done:
            return _checked(full, converted, path)
    got = "nothing" if isinstance(value, str) and not value else _shown(value)
    unset = f"; {NULL} unsets it" if any(bare is NoneType for bare, _ in members) else ""
    raise RecipeError(f"{path}: should be {_wanted(members)}, got {got}{unset}")


def _convert(bare: Any, value: Any) -> tuple[bool, Any]:
    """Whether a type accepts a scalar, and the converted scalar."""
    text = isinstance(value, str)
    if bare is NoneType:
        return value is None or (isinstance(value, Unquoted) and value == NULL), None
    if get_origin(bare) is Literal:
        words = [str(value), int(value)] if text and WHOLE.fullmatch(value) else [value]
        same = [a for a in get_args(bare) if any(a == w and type(a) is not bool for w in words)]
        return bool(same) and not isinstance(value, bool), same[0] if same else None
    if bare is bool:
        return (value in TRUTH, TRUTH.get(value)) if text else (isinstance(value, bool), value)
    if bare is str:
        return text and bool(value) and "\0" not in value, str(value)
    if text and bare in (int, float):
        fits = (WHOLE if bare is int else NUMBER).fullmatch(value)
        return bool(fits), bare(value) if fits else None
    if isinstance(value, bool) or bare not in (int, float):
        return False, None
    return isinstance(value, int if bare is int else int | float), value


def _checked(kind: Any, value: Any, path: str) -> Any:
    """The value, if it is in the range of the annotation."""
    from pydantic import ValidationError

    try:
        if isinstance(value, int | float) and not math.isfinite(value):
            raise RecipeError(f"{path}: should be a finite number, got {value}")
        checks = [limit for limit in get_args(kind)[1:] if isinstance(limit, Check)]
        if wrong := next(filter(None, (check.wrong(value) for check in checks)), None):
            raise RecipeError(f"{path}: should be {wrong}, got {_shown(value)}")
        return _adapter(kind).validate_python(value, strict=True)
    except OverflowError:
        raise RecipeError(f"{path}: should be below 10^18") from None
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise RecipeError(
            f"{path}: {message[0].lower()}{message[1:]}, got {_shown(value)}"
        ) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# --------------------------------------------------------------------------- annotations


def _members(kind: Any) -> Iterator[tuple[Any, Any]]:
    """(type, annotated type) of every member of a union, text last."""
    found = list(_branches(kind))
    yield from sorted(found, key=lambda pair: pair[0] is str)


def _branches(kind: Any) -> Iterator[tuple[Any, Any]]:
    if get_origin(kind) in (Union, UnionType):
        for branch in get_args(kind):
            yield from _branches(branch)
    elif get_origin(kind) is Annotated:
        yield get_args(kind)[0], kind
    else:
        yield kind, kind


def _is_list(bare: Any) -> bool:
    return (get_origin(bare) or bare) in (tuple, list, Sequence)


def _is_mapping(bare: Any) -> bool:
    return (get_origin(bare) or bare) in (dict, Mapping)


def _wanted(members: Iterable[tuple[Any, Any]]) -> str:
    """`a valid integer or 'auto'`."""
    names = {int: ["a valid integer"], float: ["a valid number"], bool: ["true", "false"]}
    words: list[str] = []
    for bare, _ in members:
        if get_origin(bare) is Literal:
            words += [repr(argument) for argument in get_args(bare)]
        elif _is_list(bare):
            words.append("a list, as [a, b]")
        elif _is_mapping(bare) or dataclasses.is_dataclass(bare):
            words.append("a mapping, as {key: value}")
        elif bare is not NoneType:
            words += names.get(bare, ["text without a zero byte"])
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _shown(value: Any) -> str:
    """A value for a one-line message."""
    shown = ascii(str(value) if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
