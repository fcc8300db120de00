"""YAML as plain data, without the implicit conversions of YAML 1.1.

YAML 1.1 reads `010` as 8, `1:30` as 90, `yes` as true and `1e-4` as text. Here, an unquoted scalar
remains `Unquoted` text until the type of its key is known; `untyped` converts scalars of keys
without a type. Anchors, aliases and merge keys work; duplicate keys, cycles and tags are refused.
"""

import re
from typing import Any

import yaml

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A decimal number: `10`, `.5`, `1e-4`; neither `1_000` nor `inf`."""

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
"""A whole decimal number below 10^18; leading zeros are ignored."""

TRUTH = {word: truth for truth in (True, False) for word in (str(truth), str(truth).lower())}
"""`true`, `false`, `True` and `False`."""

MERGE = "<<"
"""YAML's key that merges another mapping."""

MOST_NODES = 100_000
"""Largest number of values in a document, since nested aliases could fill the memory."""

NULL = "null"
"""Text for "no value", in files and overrides."""


class RecipeError(ValueError):
    """An invalid recipe; the message is one line that names the key."""


class Unquoted(str):
    """A scalar that was written without quotes; it is text, a number, a truth value or null."""

    __slots__ = ()


def read_plain(text: str, where: str) -> Any:
    """The data of one YAML document: dicts, lists, `str` where quoted, else `Unquoted`.

    Args:
        text: The document.
        where: File or key that it comes from, for the error.

    Raises:
        RecipeError: Not YAML, empty, a duplicate key, an anchor that contains itself, or a tag.
    """
    return _read(text, where)[0]


def read_flow(text: str, where: str) -> Any:
    """The list, mapping or quoted text of an override: `[a, b]`, `{key: value}`, `"2024"`.

    Raises:
        RecipeError: As for `read_plain`, or a comment after the value.
    """
    found, end = _read(text, where)
    if end != len(text.rstrip()):
        raise RecipeError(f"{where}: unexpected {text[end:].strip()!r} after {text[:end]!r}")
    return found


def below(path: str, key: str | int) -> str:
    """The path of a key or list item; a key that is not a plain word is escaped."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    word = key if key and key.isascii() and key.isprintable() else ascii(key)
    return f"{path}.{word}" if path else word


def untyped(value: Any, path: str) -> Any:
    """Plain data of a key without a known type, such as an option of a backbone.

    Unquoted decimal numbers, `true`, `false` and `null` are converted; other scalars are text.

    Raises:
        RecipeError: An unquoted scalar that YAML 1.1 would convert and this rule does not (`yes`,
            `1:30`, `~`), a number that is not finite, or a value that is no plain data.
    """
    if isinstance(value, dict):
        return {str(key): untyped(item, below(path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [untyped(item, below(path, i)) for i, item in enumerate(value)]
    if isinstance(value, Unquoted):
        return _unquoted(value, path)
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise RecipeError(f"{path}: should be a finite number, got {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RecipeError(
        f"{path}: should be a number, a text, a list or a mapping, got a {type(value).__name__}"
    )


def write_plain(content: Any) -> str:
    """YAML that `read_plain`, YAML 1.1 and YAML 1.2 all read back to the same data."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _unquoted(text: Unquoted, path: str) -> Any:
    if text == NULL:
        return None
    if text in TRUTH:
        return TRUTH[text]
    if WHOLE.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return untyped(float(text), path)
    if not text or _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False)) != _TEXT:
        raise RecipeError(
            f"{path}: {str(text)!r} is ambiguous; write a decimal number, true, false or null, "
            "or put it in quotes as text"
        )
    return str(text)


def _read(text: str, where: str) -> tuple[Any, int]:
    """The data, and the position at which its text ends."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if node is None:
            raise RecipeError(f"{where} is empty")
        return _Reader(where).data(node), node.end_mark.index
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise RecipeError(f"{where}: lists and mappings are nested too deeply") from None


class _Reader:
    """Converts the nodes of a document to plain data; every alias is a copy that can be changed."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.above: list[Any] = []
        self.count = 0

    def data(self, node: Any) -> Any:
        self.count += 1
        if any(node is other for other in self.above):
            raise self.wrong(node, "the anchor contains itself; write the value out")
        if self.count > MOST_NODES:
            raise self.wrong(node, f"more than {MOST_NODES} values; write fewer aliases")
        if node.tag not in _TAGS:
            raise self.wrong(node, f"the tag {node.tag!a} is not read; remove it")
        if isinstance(node, yaml.ScalarNode):
            return Unquoted(node.value) if node.style is None else node.value
        self.above.append(node)
        is_list = isinstance(node, yaml.SequenceNode)
        found = [self.data(item) for item in node.value] if is_list else self.mapping(node)
        self.above.pop()
        return found

    def mapping(self, node: Any) -> dict[str, Any]:
        """Keys and values; other keys override those of `<<: *anchor`."""
        merged: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.wrong(key, "a key is a word, not a list or a mapping")
            if key.value in found or (key.value == MERGE and merged):
                raise self.wrong(key, f"duplicate key {key.value!a}; remove one of the two")
            if key.value == MERGE and key.style is None:
                merged = self.merged(value)
            else:
                found[key.value] = self.data(value)
        return {**merged, **found}

    def merged(self, node: Any) -> dict[str, Any]:
        """The keys merged by `<<`: of one mapping, or of several, of which the first wins."""
        several = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(one, yaml.MappingNode) for one in several):
            raise self.wrong(node, "<< takes a mapping, as <<: *anchor")
        return {k: v for one in reversed(several) for k, v in self.data(one).items()}

    def wrong(self, node: Any, message: str) -> RecipeError:
        return RecipeError(f"{self.where}, line {node.start_mark.line + 1}: {message}")


_TEXT = "tag:yaml.org,2002:str"
_TAGS = (_TEXT, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_YAML_1_1 = yaml.resolver.Resolver()


class _Dumper(yaml.SafeDumper):
    """Also quotes text that `untyped` would convert to a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("+-.0123456789"))
