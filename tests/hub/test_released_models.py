"""The models of published/: each opens by its name, offline, and is what its recipe says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.weights.folder import sha256_of, weight_files, whole
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.hub.checks import check
from fg_ssl_zoo.hub.release import LARGEST_FILE

ROOT = Path(__file__).parents[2]
RELEASED = [path for path in sorted((ROOT / "published").iterdir()) if path.is_dir()]
pytestmark = pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)


@pytest.fixture(autouse=True)
def no_other_place(monkeypatch):
    for name in ("FG_SSL_ZOO_DIR", "FG_SSL_ZOO_ORG"):
        monkeypatch.delenv(name, raising=False)


def test_it_opens_by_its_name_to_the_features_of_timm_alone(folder):
    named = timm.create_model(folder.name, pretrained=True).eval()
    alone = timm.create_model(f"local-dir:{whole(folder)}", pretrained=True).eval()
    pixels = torch.randn(2, *named.pretrained_cfg["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(named(pixels), alone(pixels), rtol=0, atol=0)


def test_by_its_name_images_are_normalised_as_in_its_folder(folder):
    named, alone = open_backbone(folder.name), open_backbone(f"local-dir:{whole(folder)}")
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    registered = get_pretrained_cfg(folder.name)
    for known in (named, registered):
        assert (list(known.mean), list(known.std)) == (config["mean"], config["std"])
    assert named.centre_view == alone.centre_view
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(named.normalize(pixels), alone.normalize(pixels), rtol=0, atol=0)


def test_it_may_be_published_and_its_recipe_knows_its_hash(folder):
    found = check(folder)
    recipe = load_recipe(folder.name)
    assert recipe.hub.sha256 == sha256_of(whole(folder) / "model.safetensors")
    kept = replace(found.recipe, output=recipe.output, hub=recipe.hub)
    assert kept == recipe  # the run was that of the recipe, with nothing changed
    assert not found.results["commit"].endswith("-dirty")


def test_a_hosted_repository_takes_its_files(folder):
    assert all(path.stat().st_size <= LARGEST_FILE for path in weight_files(folder))


def test_list_and_info_know_it(folder, capsys):
    main(["list", "--json", "--offline"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows[folder.name]
    assert (row["source"], row["place"]) == ("checkout", str(folder))
    results = json.loads((folder / "results.json").read_text())
    trained = results["rows"][-1]
    sampled = results["protocol"]["knn"]["max_images"] is not None
    if "knn_top1" in trained and not sampled:
        assert row["knn"] == trained["knn_top1"]
    else:  # trained on images without labels, or measured on a part of them
        first = next(iter(results["evaluations"].values()))
        assert row["knn"] == first["rows"][0]["scores"]["knn_top1"]["value"]
    main(["info", folder.name])
    assert capsys.readouterr().out.strip() == (folder / "README.md").read_text().strip()
