"""Make the tables of protocols, of options and of recipe keys in the documentation.

`docs/make_tables.py` writes them. The texts are those of the code: the records of the protocols,
the `Args` of a method's docstring, and the `Attributes` of the dataclasses of a recipe.
"""

import inspect
import textwrap
from typing import Any, Literal, get_args, get_origin

from fg_ssl_zoo.config.recipe import Data, Hub, Monitor, Recipe, Speed, Stage, Train
from fg_ssl_zoo.evaluation.protocol import Protocol, described, options_of, typed
from fg_ssl_zoo.evaluation.protocols import PROTOCOLS
from fg_ssl_zoo.methods import METHODS, method_class
from fg_ssl_zoo.ops.tables import markdown_table

TITLES = ["option", "default", "meaning"]
SHARED = ("preset", "augmentation")
"""Options of the views, which most methods have; below the table."""

RECORDS = {
    "": Recipe, "data.": Data, "stages.0.": Stage, "stages.0.train.": Train, "monitor.": Monitor,
    "speed.": Speed, "hub.": Hub,
}  # fmt: skip
"""Prefix of a key on the command line -> dataclass."""

DECIDED_BY_DATA = {"queue_size": "by the data", "num_classes": "by the data"}
"""Options that a run chooses from the training images when they are not given."""


def protocols() -> str:
    """A row for each protocol, from its record."""
    rows = [
        [f"`{name}`", ", ".join(f"`{metric}`" for metric in metric_names(record)), record.summary]
        for name, record in PROTOCOLS.items()
    ]
    return markdown_table(["protocol", "metrics", "what is computed"], rows, words=3)


def metric_names(record: Protocol) -> list[str]:
    """Metrics of a protocol; `N` is a number that the options choose."""
    families = [found for found in record.metrics if "{}" in found.name]
    single = [
        found
        for found in record.metrics
        if not any(family.named(found.name) for family in families)
    ]
    return [found.name.format("N") for found in dict.fromkeys([*single, *families])]


def protocol_options() -> str:
    """A table of options for each protocol that has some, from its dataclass."""
    tables = []
    for name, record in PROTOCOLS.items():
        if record.options:
            rows = [
                cells_of(option.name, option.default, option.text, option.choices)
                for option in options_of(record.options)
            ]
            table = markdown_table(TITLES, rows, words=3)
            tables.append(f"`--{name.replace('_', '-')} KEY=VALUE ...`\n\n{table}")
    return "\n\n".join(tables)


def method_options(name: str) -> str:
    """A table of a method's options, from the signature and the docstring of its class."""
    kind = method_class(name)
    texts = described(inspect.getdoc(kind) or "", "Args")
    parameters = inspect.signature(kind.__init__).parameters
    names = [option for option in parameters if option not in ("self", "backbone")]
    rows = []
    for option in names:
        if option not in SHARED:
            parameter = parameters[option]
            default = (
                "required" if parameter.default is parameter.empty else typed(parameter.default)
            )
            default = DECIDED_BY_DATA.get(option, default)
            rows.append(cells_of(option, default, texts[option], choices_of(parameter.annotation)))
    return "\n\n".join([markdown_table(TITLES, rows, words=3), *views_of(names, texts)])


def views_of(names: list[str], texts: dict[str, str]) -> list[str]:
    """A line about the views of a method that has presets; what `paper` means for it."""
    if "preset" not in names:
        return []
    _, _, paper = texts["preset"].partition("or `paper` for ")
    text = f"`preset` and `augmentation`: [views](#views). `preset: paper` means {paper}"
    return [textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)]


def recipe_keys() -> str:
    """A table of the keys of a recipe for each of its parts."""
    tables = []
    for prefix, kind in RECORDS.items():
        rows = [
            cells_of(f"{prefix}{option.name}", option.default, option.text, option.choices)
            for option in options_of(kind)
            if not (kind is Recipe and option.name in ("data", "stages", "monitor", "speed", "hub"))
            and option.name != "train"
        ]
        tables.append(markdown_table(["key", "default", "meaning"], rows, words=3))
    return "\n\n".join(tables)


def cells_of(name: str, default: str, text: str, choices: tuple[str, ...]) -> list[str]:
    """The cells of an option; `-` is the default of one that is not set."""
    return [f"`{name}`", "-" if default == "null" else default, with_choices(text, choices)]


def with_choices(text: str, choices: tuple[str, ...]) -> str:
    """A text, and after it the words that the option takes unless the text has them all."""
    if all(f"`{word}`" in text for word in choices):
        return text
    return f"{text} One of `{'`, `'.join(choices)}`."


def choices_of(kind: Any) -> tuple[str, ...]:
    """The values of a `Literal`, as text."""
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()


def pages() -> dict[str, dict[str, str]]:
    """Page -> name of the marks -> table."""
    methods = {f"options of {name}": method_options(name) for name in METHODS}
    return {
        "evaluation.md": {"protocols": protocols(), "options": protocol_options()},
        "methods.md": methods,
        "recipes.md": {"keys": recipe_keys()},
    }
