"""Released folders: half the size, the same features, one hash in one file or in parts."""

import json

import pytest
import torch
import yaml

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.weights.folder import join, sha256_of, weight_files
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import as_dict, load_recipe, recipe_files
from fg_ssl_zoo.hub.checks import check
from fg_ssl_zoo.hub.release import half_of, pin, release
from tests.tiny_zoo import NAME, exported, recipe_of

SHA = "0" * 60 + "1234"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "export"
    return folder, exported(folder)


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory):
    return release(trained[0], tmp_path_factory.mktemp("published"))


def test_it_is_half_as_large_and_its_features_are_nearly_the_same(trained, released):
    folder, backbone = trained
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, released)]
    assert sizes[1] < 0.55 * sizes[0]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before, after = backbone(pixels), open_backbone(str(released)).eval()(pixels)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)
    error = json.loads((released / "results.json").read_text())["released"]["feature_error"]
    assert 0 < error < 0.01
    assert check(released).recipe.hub.sha256 == sha256_of(released / "model.safetensors")


def test_transformers_computes_in_full_precision(released):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(released).eval()
    assert model.dtype == torch.float32
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, wanted = model(pixels).pooler_output, open_backbone(str(released)).eval()(pixels)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_only_matrices_that_fit_are_halved():
    state = {
        "kernel": torch.ones(2, 2),
        "variance": torch.full((2,), 1e30),
        "large": torch.full((2, 2), 1e6),
        "count": torch.tensor(3),
    }
    dtypes = {key: value.dtype for key, value in half_of(state).items()}
    assert dtypes.pop("kernel") == torch.float16
    assert dtypes == {key: state[key].dtype for key in ("variance", "large", "count")}


def test_parts_join_to_the_very_file_that_was_split(trained, released, tmp_path):
    folder = release(trained[0], tmp_path, largest_file=300_000)
    parts = weight_files(folder)
    assert len(parts) > 1
    whole = (released / "model.safetensors").stat().st_size
    assert all(path.stat().st_size < whole for path in parts)
    join(folder, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == (
        released / "model.safetensors"
    ).read_bytes()
    assert load_recipe(folder / "recipe.yaml") == load_recipe(released / "recipe.yaml")
    assert check(folder).backbone.num_features == 96
    again = release(folder, tmp_path)  # a released folder can be released anew, whole this time
    assert [path.name for path in weight_files(again)] == ["model.safetensors"]


def test_it_replaces_an_older_one_and_nothing_else(trained, tmp_path):
    folder = release(trained[0], tmp_path)
    release(trained[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt, which no export writes"):
        release(trained[0], tmp_path)
    with pytest.raises(ValueError, match=r"--to: .*notes.txt is a file"):
        release(trained[0], folder / "notes.txt")


@pytest.mark.parametrize(
    "text",
    [
        "# why\nbackbone: resnet18\nhub: {license: mit}  # ours\n",
        f"backbone: resnet18\nhub: {{license: mit, sha256: {'a' * 64}}}\nseed: 3\n",
        f"hub: {{sha256: {'a' * 64}, license: mit}}\nbackbone: resnet18\n",
        "backbone: resnet18\n",
    ],
)
def test_the_hash_is_written_into_the_recipe_beside_its_comments(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert pin(path, SHA)
    before, after = yaml.safe_load(text), yaml.safe_load(path.read_text())
    assert after == {**before, "hub": {**before.get("hub", {}), "sha256": SHA}}
    assert [line for line in text.splitlines() if "#" in line and "hub" not in line] == [
        line for line in path.read_text().splitlines() if "#" in line and "hub" not in line
    ]


def test_a_recipe_of_another_form_is_left_alone(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = "backbone: resnet18\nhub:\n  license: mit\n"
    path.write_text(text)
    assert not pin(path, SHA)
    assert path.read_text() == text


def test_every_recipe_of_the_package_has_the_form_that_takes_a_hash(tmp_path):
    for name, path in recipe_files().items():
        copy = tmp_path / f"{name}.yaml"
        copy.write_text(path.read_text())
        assert pin(copy, SHA), name


def test_the_command_writes_the_folder_and_says_its_hash(trained, tmp_path, capsys):
    main(["publish", str(trained[0].parent), "--to", str(tmp_path)])
    told = capsys.readouterr().out
    assert f"{tmp_path / NAME}: " in told
    assert load_recipe(tmp_path / NAME / "recipe.yaml").hub.sha256 in told
    main(["publish", str(trained[0]), "--to", str(tmp_path / "x"), "--dry-run"])
    assert "may be released" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_the_card_says_what_was_given_and_holds_the_table_of_an_evaluation(trained, tmp_path):
    folder, root = trained[0], tmp_path / "published"
    main(["publish", str(folder), "--to", str(root), "--about", "Twelve gardens."])
    card = root / NAME / "README.md"
    assert "Twelve gardens." in card.read_text()
    words = ["eval", str(root / NAME), "--data", "drawn", "num_images=40", "num_classes=4"]
    words += ["--protocols", "knn", "--no-untrained", "--card", str(root / NAME)]
    for _ in range(2):  # the second takes the place of the first
        main(words)
    text = card.read_text()
    assert text.count("### Measured on drawn") == 1
    assert "Twelve gardens." in text
    results = json.loads((root / NAME / "results.json").read_text())
    (row,) = results["evaluations"]["drawn"]["rows"]
    knn = f"{100 * row['scores']['knn_top1']['value']:.1f}%"
    assert f"| {NAME}, 64 px | {knn} |" in text
    assert check(root / NAME).recipe.name == NAME


def test_what_a_card_says_first_is_refused_for_an_upload(trained, capsys):
    with pytest.raises(SystemExit):
        main(["publish", str(trained[0]), "--org", "me", "--about", "Twelve gardens."])
    assert "--about goes with --to" in capsys.readouterr().err


def test_the_recipe_of_a_release_names_no_folder_of_this_machine(tmp_path):
    data = {"name": "garden", "path": str(tmp_path), "num_workers": 3, "image_size": 64}
    recipe = recipe_of(data=data, speed={"threads": 2})
    exported(tmp_path / "run" / "export", recipe, recipe=as_dict(recipe))
    folder = release(tmp_path / "run", tmp_path / "published")
    found = load_recipe(folder / "recipe.yaml")
    assert (found.data.name, found.data.path, found.data.num_workers) == ("garden", None, "auto")
    assert found.speed.threads == "auto"
    for file in ("recipe.yaml", "results.json", "README.md"):
        assert str(tmp_path) not in (folder / file).read_text()
