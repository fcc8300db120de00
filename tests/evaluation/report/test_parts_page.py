"""Images of parts: what is coloured, cut and renumbered, and the page that shows it."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data, load_recipe, to_yaml
from fg_ssl_zoo.data import tensor_cache
from fg_ssl_zoo.data.sample import WrongMask
from fg_ssl_zoo.evaluation.report.parts_page import (
    SIDE,
    Found,
    cut_to_part,
    matched,
    montages,
    painted,
    part_colour,
    readable_subset,
    rounds_of_run,
    small,
)
from fg_ssl_zoo.hub.export import export
from tests.pictures import SomeCorrupt

DRAWN = ["drawn", "num_images=16", "num_classes=4", "image_size=64"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(tensor_cache, "cached_assets_path", lambda *_, **__: tmp_path / "cache")


def masks_of(birds):
    return torch.from_numpy(np.stack([birds[i]["part_mask"] for i in range(len(birds))]))


def test_colours_of_the_first_twenty_parts_are_apart():
    colours = np.stack([part_colour(part) for part in range(20)])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert (distances + 1e3 * np.eye(20)).min() > 25
    assert colours.min() >= 0
    assert colours.max() <= 255


def test_a_painted_part_has_its_colour_and_the_background_stays():
    picture = np.full((80, 120, 3), 100, np.uint8)
    part_map = torch.zeros(8, 8, dtype=torch.uint8)
    part_map[:, 4:] = 5
    for has_background in (True, False):
        seen = painted(picture, part_map, has_background)
        assert seen.shape == picture.shape
        expected = 0.45 * 100 + 0.55 * part_colour(5)
        np.testing.assert_allclose(seen[40, 100], expected, atol=1)
        assert (seen[40, 10] == 100).all() == has_background
        assert (seen[40, 59] == 255).all()  # the line between them


def test_a_cut_shows_the_largest_piece_of_the_part_and_darkens_the_rest():
    image = np.full((100, 100, 3), 200, np.uint8)
    part_map = torch.zeros(10, 10, dtype=torch.uint8)
    part_map[0, 0] = part_map[5:8, 6:9] = 2
    cut = cut_to_part(image, part_map, 2)
    assert cut.shape[0] < SIDE / 2
    assert set(np.unique(cut)) == {90, 200}
    np.testing.assert_allclose((cut[..., 0] == 200).sum(), 9 * (SIDE / 10) ** 2, rtol=0.1)


def test_a_part_thinner_than_a_pixel_shows_the_picture():
    part_map = torch.zeros(64, 64, dtype=torch.uint8)
    part_map[3, 3] = 1
    image = np.zeros((400, 4, 3), np.uint8)
    assert cut_to_part(image, part_map, 1).shape == (SIDE, 2, 3)


@pytest.mark.parametrize("has_background", [True, False])
def test_renumbered_parts_get_the_numbers_of_their_twins(birds, has_background):
    maps = masks_of(birds).long()
    to = Found("one", maps, has_background, {})
    turned = (maps - 1) % int(maps.max()) + 1  # all but the background
    shuffled = torch.where(maps == 0, 0, (turned + 2) % int(maps.max()) + 1)
    other = Found("other", shuffled if has_background else maps.max() - maps, has_background, {})
    assert torch.equal(matched(other, to).maps, maps)


def test_renumbering_is_a_permutation_also_where_sizes_and_counts_differ(birds):
    maps = masks_of(birds).long()
    few = Found("few", (maps > 0).long()[:, ::4, ::4], True, {})
    again = matched(few, Found("many", maps, True, {})).maps
    assert len(again.unique()) == 2
    assert torch.equal(again == 0, few.maps == 0)
    back = matched(Found("many", maps, True, {}), few).maps
    assert len(back.unique()) == len(maps.unique())


@pytest.mark.slow
def test_montages_are_of_the_parts_that_there_are(birds):
    maps = masks_of(birds)
    with_background = montages(birds, Found("masks", maps, True, {}))
    assert len(with_background) == len(maps.unique()) - 1
    assert len(montages(birds, Found("masks", maps, False, {}))) == len(maps.unique())
    assert "images" in with_background[0].text


def test_pictures_keep_their_proportions():
    assert small(np.zeros((300, 600, 3), np.uint8)).shape == (SIDE // 2, SIDE, 3)
    assert small(np.zeros((40, 30, 3), np.uint8)).shape == (SIDE, SIDE * 3 // 4, 3)


def test_what_cannot_be_decoded_is_left_out(birds):
    some = readable_subset(SomeCorrupt(birds, {0, 5}), 300)
    assert len(some) == 14
    with pytest.raises(ValueError, match="none of the images can be decoded"):
        readable_subset(SomeCorrupt(birds, range(16)), 300)


def page_of(out):
    html = (out / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'src="([^"]+)"', html)
    for name in shown:  # nothing but files beside the page
        assert cv2.imread(str(out / name)) is not None, name
    assert "http" not in html
    assert sorted(path.name for path in out.iterdir()) == sorted([*shown, "index.html"])
    return html


def test_a_mask_that_does_not_fit_is_an_error_and_no_picture_less(birds):
    class Wrong(SomeCorrupt):
        def __getitem__(self, index):
            if index == 3:
                raise WrongMask("3.png has another size")
            return super().__getitem__(index)

    with pytest.raises(WrongMask, match="another size"):
        readable_subset(Wrong(birds, {0}), 300)


def test_the_command_writes_a_page_of_several_models(tmp_path, capsys):
    models = ["test_resnet@scratch", "test_vit@scratch"]
    main([
        "parts", *models, "--data", *DRAWN, "--image-size", "64", "--out", str(tmp_path / "out"),
        "--discovery", "num_parts=3", "size=16", "sample=1000",
    ])  # fmt: skip
    html = page_of(tmp_path / "out")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    said = html.replace("<wbr>", "")  # a place for a line break is no text
    assert "by test_resnet, untrained, then test_vit, untrained" in said
    assert html.count("<td>0.") + html.count("<td>-0.") == 4  # masks of drawn birds are known
    assert "index.html" in capsys.readouterr().out


def test_what_is_typed_wrong_is_one_line(tmp_path, capsys):
    command = ["parts", "test_resnet@scratch", "--data", *DRAWN, "--out", str(tmp_path / "out")]
    for words, message in (
        (["--discovery", "parts=3"], "discovery.parts: unknown key"),
        (["--discovery", "foreground=true"], "foreground: test_resnet has no attention"),
        (["--pictures", "0"], "--pictures: 0 is not 1 or more"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *words])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def keep_shown(run, birds, at, parts=None):
    rows = torch.tensor([0, 5, 15])
    maps = masks_of(birds)[rows] if parts is None else parts
    (run / "notes").mkdir(exist_ok=True)
    path = run / "notes" / f"shown_stage{at}.safetensors"
    save_file({"parts": maps, "indices": rows}, path, {"split": "train"})


def test_the_rounds_of_a_run_are_told_in_their_order(tmp_path, birds):
    recipe = load_recipe(overrides=[f"data.{word}" for word in DRAWN[1:]])
    assert rounds_of_run(tmp_path) is None
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert rounds_of_run(tmp_path) is None
    for at in ("0_end", "0_round10", "0_round2", "1_round0"):
        keep_shown(tmp_path, birds, at)
    keep_shown(tmp_path, birds, "0_round2", 2 * masks_of(birds)[[0, 5, 15]])
    images, found = rounds_of_run(tmp_path)
    assert [each.name for each in found] == [
        "the start of round 3 of stage 1",
        "the start of round 11 of stage 1",
        "the end of stage 1",
        "the start of round 1 of stage 2",
    ]
    assert torch.equal(found[0].maps, 2 * masks_of(birds)[[0, 5, 15]])
    for row, index in enumerate((0, 5, 15)):
        assert np.array_equal(images[row]["image"], birds[index]["image"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(replace(recipe, data=Data(num_images=12))))
    with pytest.raises(ValueError, match="trained on other images than drawn has now"):
        rounds_of_run(tmp_path)


def test_the_page_of_a_run_shows_its_rounds(tmp_path, monkeypatch, birds):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(overrides=["backbone=test_resnet", *(f"data.{w}" for w in DRAWN[1:])])
    run = tmp_path / "run"
    export(create_backbone("test_resnet", image_size=64), run / "export", recipe, {"rows": []})
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    for at in ("round0", "round1", "end"):
        keep_shown(run, birds, f"0_{at}")
    main([
        "parts", "run", "--data", *DRAWN, "--out", "out", "--pictures", "8",
        "--discovery", "num_parts=3", "size=16", "sample=1000", "--card", "run",
    ])  # fmt: skip
    shown = "Images of drawn and the parts that this model finds without labels"
    assert f"![{shown}](picture.png)" in (run / "export" / "README.md").read_text()
    same = (tmp_path / "out" / "grid.png").read_bytes()
    assert (run / "export" / "picture.png").read_bytes() == same
    with pytest.raises(SystemExit):  # before the work
        main(["parts", "run", "--data", *DRAWN, "--card", "elsewhere"])
    html = page_of(tmp_path / "out")
    rounds = [f"the start of round {number} of stage 1" for number in (1, 2)]
    assert f"at {', then '.join(rounds)}, then the end of stage 1." in html
