"""Recipes: what is typed in `hub_configs/NAME.yaml` and on the command line.

    plain    YAML as plain data, and back
    paths    paths as a user types them
    typed    plain data into dataclasses, errors with the path and the nearest key
    recipe   the dataclasses: Recipe, Data, Stage, Train, Monitor, Speed, Hub
    files    load_recipe: a file and dotted overrides

Everything else imports from here.
"""

from fg_ssl_zoo.config.files import (
    DEFAULT_RECIPE,
    as_dict,
    data_of,
    find_recipe,
    flatten,
    is_override,
    load_recipe,
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
from fg_ssl_zoo.config.paths import (
    check_cache,
    check_file,
    check_folder,
    encodable,
    escaped,
    home_path,
    printable,
    show_any_name,
    unescaped,
)
from fg_ssl_zoo.config.plain import RecipeError, below, read_flow, untyped
from fg_ssl_zoo.config.recipe import (
    CROP_PCT,
    Data,
    Hub,
    Monitor,
    Recipe,
    Speed,
    Stage,
    Train,
)
from fg_ssl_zoo.config.typed import (
    nearest,
    parse,
)

__all__ = [
    "CROP_PCT",
    "DEFAULT_RECIPE",
    "Data",
    "Hub",
    "Monitor",
    "Recipe",
    "RecipeError",
    "Speed",
    "Stage",
    "Train",
    "as_dict",
    "below",
    "check_cache",
    "check_file",
    "check_folder",
    "data_of",
    "encodable",
    "escaped",
    "find_recipe",
    "flatten",
    "home_path",
    "is_override",
    "load_recipe",
    "nearest",
    "overridden",
    "parse",
    "parse_recipe",
    "parse_words",
    "printable",
    "read_flow",
    "read_yaml",
    "recipe_files",
    "recipe_folder",
    "recipe_of",
    "refuse_empty",
    "short_name",
    "show_any_name",
    "to_yaml",
    "unescaped",
    "untyped",
]
