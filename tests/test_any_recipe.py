"""Whatever is typed or written, the only answer besides a recipe is a ValueError of one line."""

import datetime
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import as_dict, flatten, load_recipe, parse_recipe, recipe_files, recipe_of
from fg_ssl_zoo.pretrain import _check_stages

FULL = load_recipe("fgssl_resnet18_drawn.simclr", ["hub.tags=[a]", "data.columns={image: a}"])

KEYS = (
    *flatten(as_dict(FULL)), *as_dict(FULL), "stages.0", "stages[1]", "stages[-1].train", "int",
    "data(path)", "data.0", "data[0]", "", "..", "stages.٣", "a.b.c", "trackers[0]", "stages[0]x",
    "backbone_options.a.b", "stages.0.options.queue_size", "stages.0.options.layers",
)  # fmt: skip
VALUES = (
    "1", "0", "-1", "010", "1:30", "yes", "none", "null", "~", "~x/y", "&x", "*x", ".5", "1e-4",
    "1e400", "inf", "nan", "1_000", "2024-01-01", "!!python/name:os.system", "\0", "\n",
    "caf\udce9", "a #b", "'a'", '"a"', "true", "9" * 5000, "../..", "/dev/null", "0x10", "%", "@",
    "|", "> a", "[", "{", "[]", "{}", "[a]", "{a: b}", "[" * 500, "{a: {a: {a: [1, {b: .inf}]}}}",
    "&a [*a]",
    "{a: 1, a: 2}", "? x", "- a", "{? [a] : b}", "{<<: {a: 1}}", "{<<: 1}", "simclr", "particle",
    "test_vit", "auto", "{method: byol}", "[{method: simclr}, {method: dino}]", "[a] # b",
)  # fmt: skip
LINES = (
    *(f"{key}: {value}" for key in as_dict(FULL) for value in VALUES if len(value) < 99),
    "x: &a {b: *a}", "<<: [*a]", "? [1]\n: 2", "data: !!set {a}", "\tdata: 1", "---", "...", "- a",
    "stages: [{method: simclr, train: &t {lr: 1e-4}}, {method: simclr, train: {<<: *t}}]",
)  # fmt: skip

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([*VALUES[:40], b"x", datetime.date(2024, 1, 1), object(), 10**400]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["a", "lr", "method", "", 3, None]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
words = st.builds(
    "{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=8)
)
commands = st.lists(words | st.sampled_from([*recipe_files(), "", "x", "/"]), max_size=4)
files = st.lists(st.sampled_from(LINES) | st.text(max_size=12), max_size=5)
contents = st.dictionaries(st.sampled_from([*as_dict(FULL), "x", 1, None]), plain, max_size=3)


def one_line(call):
    """Run what may refuse; the message is one line, and no other exception comes out."""
    refused = "a line"
    try:
        call()
    except ValueError as error:
        refused = str(error)
    assert len(refused.splitlines()) == 1, refused


def command(typed):
    recipe = recipe_of(typed)
    assert parse_recipe(as_dict(recipe)) == recipe
    _ = recipe.folder
    _check_stages(recipe)


def try_all(folder, count, seed=0):
    """As many commands, files and contents; the same ones each time for a seed."""
    limits = settings(
        max_examples=count, derandomize=seed == 0, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def each(test):
        return limits(test if seed == 0 else seeded(seed)(test))

    path = folder / "mine.yaml"
    start = "backbone: test_resnet\nstages: [{method: simclr}]\n"

    def read(lines):
        path.write_text(start + "\n".join(lines), encoding="utf-8", errors="surrogatepass")
        load_recipe(path)

    each(given(commands)(lambda typed: one_line(lambda: command(typed))))()
    each(given(files)(lambda lines: one_line(lambda: read(lines))))()
    each(given(contents)(lambda c: one_line(lambda: parse_recipe({**as_dict(FULL), **c}))))()


def test_any_recipe_is_read_or_refused_in_one_line(tmp_path):
    try_all(tmp_path, 40)


@pytest.mark.long
def test_many_recipes_are_read_or_refused_in_one_line(tmp_path):
    try_all(tmp_path, 2000)


OPTIONS = (
    "in_chans", "num_classes", "global_pool", "act_layer", "norm_layer", "drop_path_rate", "layers",
    "channels", "output_stride", "depth", "embed_dim", "num_heads", "patch_size", "img_size",
    "name", "class_token", "mlp_ratio", "block", "stem_type", "pretrained_cfg",
    "qkv_bias", "two words",
)  # fmt: skip


def try_options(count):
    """As many networks of random options, on no device."""
    for seed in range(count):
        draw = random.Random(seed)
        values = (0, 1, -1, 3, 10**9, 0.5, True, None, "", "avg", "x", [], [1, 1, 1, 1], {"a": 1})
        options = {draw.choice(OPTIONS): draw.choice(values) for _ in range(draw.randint(1, 2))}
        name = draw.choice(("test_resnet", "test_vit"))
        recipe = {**as_dict(FULL), "backbone": name, "backbone_options": options}

        def build(recipe=recipe):
            parsed = parse_recipe(recipe)
            _check_stages(parsed)
            with torch.device("meta"):
                create_backbone(parsed.backbone, image_size=32, **parsed.backbone_options)

        one_line(build)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_any_backbone_options_build_or_are_refused_in_one_line():
    try_options(30)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_many_backbone_options_build_or_are_refused_in_one_line():
    try_options(1500)
