"""Export: a folder that stock timm and transformers open to the same features, bit by bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Recipe, load_recipe, parse_recipe
from fg_ssl_zoo.hub.export import FILES, export, model_config, usage_lines
from tests.hub_server import TOKEN, Hub, client_environment

SIZES = {"test_resnet": 96, "test_vit": 64, "resnet18": 96}
OPTIONS = {"test_resnet": {"channels": [16, 24, 24, 48], "zero_init_last": False}}


def recipe_of(name: str, **keys: object) -> Recipe:
    data = {"name": "drawn", "image_size": SIZES[name]}
    stages = [{"method": "simclr", "options": {"temperature": 0.2}}]
    content = {"name": f"fgssl_{name}_drawn.simclr", "backbone": name, "data": data}
    return parse_recipe({**content, "stages": stages, **keys})


def backbone_of(name: str, **options: object) -> Backbone:
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=SIZES[name], **options)
    backbone.mean = (0.4, 0.5, 0.6)
    return backbone.eval()


def results_of(recipe: Recipe) -> dict[str, object]:
    rows = [{"name": "untrained", "knn_top1": 0.1084}, {"name": "trained", "knn_top1": 0.25}]
    return {"name": recipe.name, "seed": 0, "rows": rows}


def test_the_config_is_what_timm_and_transformers_need():
    recipe, backbone = recipe_of("test_vit", hub={"license": "mit"}), backbone_of("test_vit")
    config = model_config(backbone, recipe)
    assert config["architecture"] == "test_vit"
    assert config["model_args"] == {"img_size": 64}  # no num_classes: TimmWrapper passes its own
    assert "model_type" not in config
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["mean"]) == ((3, 64, 64), (0.4, 0.5, 0.6))
    assert (cfg["tag"], cfg["license"], cfg["crop_pct"]) == ("simclr", "mit", 0.875)
    assert (cfg["first_conv"], cfg["classifier"]) == ("patch_embed.proj", "head")
    plain = model_config(backbone_of("test_resnet"), recipe_of("test_resnet"))
    assert plain["model_args"] == {}  # timm could not read what transformers makes of none at all
    narrow = backbone_of("test_resnet", **OPTIONS["test_resnet"])
    arguments = model_config(narrow, recipe_of("test_resnet"))["model_args"]
    assert arguments == OPTIONS["test_resnet"]


@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg", "fc_norm": False},
        {"global_pool": "token", "fc_norm": True},
        {"global_pool": "avg", "fc_norm": True, "pool_include_prefix": True},
    ],
)
def test_every_option_of_the_network_is_exported(options, tmp_path):
    backbone = backbone_of("test_vit", **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)  # norms that differ from those of a new network
    config = model_config(backbone, recipe_of("test_vit"))
    assert config["model_args"] == {**options, "img_size": 64}
    export(backbone, tmp_path / "vit", recipe_of("test_vit"), {})
    again = timm.create_model(f"local-dir:{tmp_path}/vit", pretrained=True).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(pictures), backbone(pictures))


def test_a_backbone_built_by_our_name_is_published_under_timms():
    backbone = create_backbone("fgssl_resnet18_drawn", image_size=96)
    assert model_config(backbone, recipe_of("resnet18"))["architecture"] == "resnet18"


def test_the_folder_holds_weights_recipe_and_results(tmp_path):
    recipe, backbone = recipe_of("test_resnet"), backbone_of("test_resnet")
    backbone.to(memory_format=torch.channels_last)  # safetensors takes the plain layout alone
    folder = export(backbone, tmp_path / "deep" / "model", recipe, results_of(recipe))
    assert {path.name for path in folder.iterdir()} == FILES
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    weights = load_file(folder / "model.safetensors")
    torch.testing.assert_close(weights, dict(backbone.model.state_dict()), rtol=0, atol=0)
    assert load_recipe(folder / "recipe.yaml") == recipe
    assert json.loads((folder / "results.json").read_text()) == results_of(recipe)


def test_an_older_export_is_replaced_and_nothing_else_is(tmp_path):
    recipe, backbone = recipe_of("test_resnet"), backbone_of("test_resnet")
    folder = export(backbone, tmp_path / "model", recipe, {"rows": [], "seed": 1})
    export(backbone, folder, recipe, {"rows": [], "seed": 2})
    assert json.loads((folder / "results.json").read_text())["seed"] == 2

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"model holds notes.txt, which no export writes"):
        export(backbone, folder, recipe, {})
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"project holds README.md, which no export writes"):
        export(backbone, tmp_path / "project", recipe, {})
    with pytest.raises(ValueError, match="is a file"):
        export(backbone, folder / "notes.txt", recipe, {})
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    recipe, backbone = recipe_of("test_resnet"), backbone_of("test_resnet")
    folder = export(backbone, tmp_path / "model", recipe, {"seed": 1})

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("fg_ssl_zoo.hub.export.to_yaml", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(backbone, folder, recipe, {"seed": 2})
    monkeypatch.undo()
    monkeypatch.setattr(Path, "rename", once(Path.rename, fails_on=2))
    with pytest.raises(OSError, match="rename 2"):
        export(backbone, folder, recipe, {"seed": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((folder / "results.json").read_text()) == {"seed": 1}


def once(function, fails_on: int):
    calls = iter(range(1, 100))

    def wrapped(*args):
        if (call := next(calls)) == fails_on:
            raise OSError(f"rename {call}")
        return function(*args)

    return wrapped


def test_what_stock_timm_could_not_rebuild_is_refused(tmp_path):
    recipe, backbone = recipe_of("test_resnet"), backbone_of("test_resnet")
    backbone.model.fc = torch.nn.Linear(3, 4)
    with pytest.raises(
        ValueError, match=r"not a stock test_resnet: fc.bias is \(4,\) here and missing"
    ):
        export(backbone, tmp_path / "model", recipe, {})
    assert not (tmp_path / "model").exists()


READER = '''
"""Opens every published folder below argv[1] without fg_ssl_zoo."""

import json, sys
from pathlib import Path

import numpy as np
import timm, torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

root = Path(sys.argv[1])
drawn = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
image = Image.fromarray(drawn)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@torch.no_grad()
def check(code, expected):
    """Run the printed lines, in two halves as both name a `model`, and do as their comments say."""
    first, mark, second = code.partition("# transformers")
    names = {}
    exec(first, names)
    by_timm, transform = names["model"], names["transform"]
    exec(mark + second, names)
    by_transformers, processor = names["model"], names["processor"]
    row = by_timm(transform(image)[None])
    assert f"one row of {row.shape[1]} features" in code
    same(by_transformers(**processor(image)).pooler_output, row)
    same(processor(image)["pixel_values"][0], transform(image))
    same(by_timm(expected["pixels"]), expected["features"])
    same(by_transformers(expected["pixels"]).pooler_output, expected["features"])


for folder in sorted(root.iterdir()):
    expected = load_file(folder / "expected.safetensors")
    pixels = expected["pixels"]
    for code in json.loads((folder / "usage.json").read_text()):
        check(code, expected)
    classifier = AutoModelForImageClassification.from_pretrained(folder / "model", num_labels=7)
    assert classifier.eval()(pixels).logits.shape == (2, 7)
    body = classifier.timm_model
    with torch.no_grad():
        features = body.forward_head(body.forward_features(pixels), pre_logits=True)
    same(features, expected["features"])
    name = f"local-dir:{folder / 'model'}"
    assert timm.create_model(name, pretrained=True, num_classes=200)(pixels).shape == (2, 200)
    assert timm.create_model(name, pretrained=True, features_only=True)(pixels)[-1].ndim == 4
assert "fg_ssl_zoo" not in sys.modules
print("all doors open")
'''


def write_for_reader(root: Path, name: str, hub: Hub) -> None:
    """A published folder, pixels with their features, and the lines printed for folder and Hub."""
    options = OPTIONS.get(name, {})
    recipe = recipe_of(name, hub={"repo": f"tester/{name}"}, backbone_options=options)
    backbone = backbone_of(name, **options)
    folder = export(backbone, root / name / "model", recipe, results_of(recipe))
    card = (folder / "README.md").read_text()
    from_card = card.partition("```python\n")[2].partition("```")[0]
    pixels = torch.randn(2, 3, SIZES[name], SIZES[name])
    with torch.no_grad():
        expected = {"pixels": pixels, "features": backbone(pixels).contiguous()}
    save_file(expected, root / name / "expected.safetensors")
    usage = [usage_lines(folder), from_card]
    (root / name / "usage.json").write_text(json.dumps(usage))
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo(f"tester/{name}")
    api.upload_folder(repo_id=f"tester/{name}", folder_path=folder)
    assert api.model_info(f"tester/{name}").library_name == "timm"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own upload
def test_printed_lines_and_card_open_the_model_where_we_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with Hub() as hub:
        for name in ("test_resnet", "test_vit"):
            write_for_reader(tmp_path / "models", name, hub)
        command = [sys.executable, "-c", READER, str(tmp_path / "models")]
        environment = client_environment(hub.url, tmp_path / "cache")
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert result.stdout.strip() == "all doors open", result.stderr
