"""Recipes in `hub_configs/NAME.yaml` and on the command line.

plain       YAML as plain data, and back
paths       paths as a user types them
validate    plain data into dataclasses, errors with the path and the nearest key
ranges      ranges of numbers in annotations
recipe      the dataclasses: Recipe, Data, Stage, Train, Monitor, Speed, Hub
files       load_recipe: a file and dotted overrides
hub_client  time limits of the Hub client
whole       files that are written completely or not at all

Other packages import from here.
"""

from fg_ssl_zoo.config.files import (
    DEFAULT_RECIPE,
    as_dict,
    data_of,
    find_recipe,
    flatten,
    is_override,
    load_recipe,
    of_package,
    overridden,
    parse_recipe,
    parse_words,
    read_yaml,
    recipe_files,
    recipe_folder,
    recipe_of,
    refuse_empty,
    short_name,
    to_yaml,
)
from fg_ssl_zoo.config.hub_client import HubUnresponsive, bound_hub_client
from fg_ssl_zoo.config.paths import (
    check_cache,
    check_file,
    check_folder,
    encodable,
    escaped,
    home_path,
    printable,
    reason_of,
    show_any_name,
    unescaped,
)
from fg_ssl_zoo.config.plain import RecipeError, below, read_flow, untyped
from fg_ssl_zoo.config.ranges import Count, Positive, Seed, Share, Weight
from fg_ssl_zoo.config.recipe import (
    CROP_PCT,
    FILE_SUFFIXES,
    Data,
    Hub,
    Monitor,
    Recipe,
    Source,
    Speed,
    Stage,
    Train,
    source_name,
)
from fg_ssl_zoo.config.validate import (
    nearest,
    parse,
)
from fg_ssl_zoo.config.whole import (
    PARTIAL,
    disk_error,
    in_use,
    memory_error,
    naming,
    set_aside,
    whole_file,
    write_whole,
)

__all__ = [
    "CROP_PCT",
    "DEFAULT_RECIPE",
    "FILE_SUFFIXES",
    "PARTIAL",
    "Count",
    "Data",
    "Hub",
    "HubUnresponsive",
    "Monitor",
    "Positive",
    "Recipe",
    "RecipeError",
    "Seed",
    "Share",
    "Source",
    "Speed",
    "Stage",
    "Train",
    "Weight",
    "as_dict",
    "below",
    "bound_hub_client",
    "check_cache",
    "check_file",
    "check_folder",
    "data_of",
    "disk_error",
    "encodable",
    "escaped",
    "find_recipe",
    "flatten",
    "home_path",
    "in_use",
    "is_override",
    "load_recipe",
    "memory_error",
    "naming",
    "nearest",
    "of_package",
    "overridden",
    "parse",
    "parse_recipe",
    "parse_words",
    "printable",
    "read_flow",
    "read_yaml",
    "reason_of",
    "recipe_files",
    "recipe_folder",
    "recipe_of",
    "refuse_empty",
    "set_aside",
    "short_name",
    "show_any_name",
    "source_name",
    "to_yaml",
    "unescaped",
    "untyped",
    "whole_file",
    "write_whole",
]
