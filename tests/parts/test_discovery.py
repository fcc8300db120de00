import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.fixed_views import WholeView
from fg_ssl_zoo.parts import Discovery, discover_parts, discovery, pixels
from tests.pictures import Drawings, SomeCorrupt
from tests.runs import launch

CNN = {"num_parts": 4, "size": 16, "sample": 1000}
VIT = {"num_parts": 3, "size": 16, "sample": 1000, "foreground": True}


def build(name="test_resnet", size=64):
    torch.manual_seed(0)
    return create_backbone(name, image_size=size)


def discover(path, images, name="test_resnet", **options):
    how = Discovery(**{**(CNN if name == "test_resnet" else VIT), **options})
    return discover_parts(build(name), images, Accelerator(cpu=True), how, cache=path)


def quadrants(side=64):
    """Four flat colours."""
    image = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    image[:half, :half], image[:half, half:] = (255, 0, 0), (0, 255, 0)
    image[half:, :half], image[half:, half:] = (0, 0, 255), (255, 255, 0)
    return image


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("scope", ["image", "dataset"])
def test_every_drawn_bird_has_a_part_map(tmp_path, birds, name, scope):
    parts = discover(tmp_path, birds, name, scope=scope)
    assert (parts.shape, parts.dtype) == ((16, 16, 16), torch.uint8)
    assert 1 < len(parts.unique()) <= 4  # four parts, or three and background


@pytest.mark.parametrize("scope", ["image", "dataset"])
def test_four_flat_quadrants_are_four_parts(tmp_path, scope, monkeypatch):
    """Colours as features: the network's share is left out of the question."""
    monkeypatch.setattr(pixels, "maps_of", lambda backbone, images, *_, **__: [images])
    images = Drawings(quadrants(), quadrants()[::-1].copy())
    parts = discover(tmp_path, images, scope=scope, normalize=False)
    for found in parts:
        corners = found[:8, :8], found[:8, 8:], found[8:, :8], found[8:, 8:]
        assert sorted(int(corner.unique().item()) for corner in corners) == [0, 1, 2, 3]
    if scope == "dataset":  # a colour has one number in all images
        assert torch.equal(parts[0], parts[1].flip(0))


def test_distances_are_interpolated_before_the_nearest_centre_is_taken(tmp_path):
    """Features 0 and 10 side by side, centres 0 and 4: the border lies where both are as far."""
    how = Discovery(size=8, num_parts=2)
    work = discovery._Work(
        build(), Drawings(quadrants()), Accelerator(cpu=True), how, 0, tmp_path
    )  # fmt: skip
    features = torch.tensor([0.0, 10.0, 0.0, 10.0])[None, :, None]  # (b, n, d), 2 x 2
    found = work._nearest(features, torch.tensor([0.0, 4.0])[None, :, None], torch.zeros(1, 0, 1))
    # squared distances 0, 16 | 100, 36: linear between 2 and 6, cell centres at 0.5, 1.5, ...
    share = (torch.arange(8) + 0.5 - 2).clamp(0, 4) / 4
    wanted = (100 * share > 16 + 20 * share).long()
    assert wanted.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert torch.equal(found[0], wanted.expand(8, 8))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_clusters_of_other_pictures_give_what_a_set_of_both_would(tmp_path, birds, name):
    few = Subset(birds, np.array([3, 7, 11]))
    how = Discovery(**(CNN if name == "test_resnet" else VIT))
    found = discover_parts(
        build(name), few, Accelerator(cpu=True), how, learn_from=birds, cache=tmp_path
    )
    assert torch.equal(found, discover(tmp_path, birds, name)[few.indices])
    assert not torch.equal(found, discover(tmp_path, few, name))  # nor is the file the same


def test_a_picture_by_itself_learns_nothing_from_others(tmp_path, birds):
    with pytest.raises(ValueError, match="scope: 'image' cannot use clusters of other images"):
        discover_parts(
            build(), birds, Accelerator(cpu=True), Discovery(scope="image"), learn_from=birds
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_picture_clustered_by_itself_does_not_depend_on_the_others(tmp_path, birds, name):
    whole = discover(tmp_path, birds, name, scope="image")
    some = Subset(birds, np.array([11, 2, 5]))
    assert torch.equal(discover(tmp_path, some, name, scope="image"), whole[[11, 2, 5]])


@pytest.mark.parametrize("options", [{}, {"pca": 6}, {"smooth": 3}, {"restarts": 2}])
def test_options_give_maps_of_their_own_and_the_same_again(tmp_path, birds, options):
    few = Subset(birds, np.arange(4))
    one = discover(tmp_path / "one", few, **options)
    assert torch.equal(discover(tmp_path / "two", few, **options), one)
    assert torch.equal(discover(tmp_path / "one", few, seed=1, **options), one) is False


def test_a_set_is_clustered_by_the_deepest_map_and_a_picture_by_all_of_them():
    assert Discovery().layers_of(build()) == ("layer3",)
    assert Discovery(scope="image").layers_of(build()) == ("layer3", "layer2", "layer1", "maxpool")
    assert Discovery().layers_of(build("test_vit")) == ("keys",)
    assert Discovery(layers=(1, 2)).layers_of(build()) == (1, 2)


def test_a_smoothed_map_is_the_majority_of_the_map(tmp_path, birds):
    from fg_ssl_zoo.ops.label_maps import majority

    few = Subset(birds, np.arange(4))
    assert torch.equal(discover(tmp_path, few, smooth=3), majority(discover(tmp_path, few), 3))


def test_overlapping_patches_find_parts_too(tmp_path, birds):
    few = Subset(birds, np.arange(4))
    plain = discover(tmp_path, few, "test_vit")
    assert discover(tmp_path, few, "test_vit", stride=8).shape == plain.shape


def test_neither_mode_nor_statistics_change(tmp_path, birds):
    backbone = build().train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    discover_parts(backbone, birds, Accelerator(cpu=True), Discovery(**CNN), cache=tmp_path)
    assert backbone.training
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("scope", ["image", "dataset"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_flat_pictures_do_not_crash(tmp_path, name, scope):
    flat = Drawings(*(np.full((50, 70, 3), value, np.uint8) for value in (0, 128)))
    assert discover(tmp_path, flat, name, scope=scope, num_parts=9).shape == (2, 16, 16)


def test_a_picture_that_cannot_be_decoded_has_an_empty_map(tmp_path, birds):
    whole = discover(tmp_path, birds, scope="image")
    some = discover(tmp_path, SomeCorrupt(birds, (3,)), scope="image")
    assert not some[3].any()
    kept = [i for i in range(16) if i != 3]
    assert float((some[kept] == whole[kept]).float().mean()) > 0.99


def test_none_that_can_be_decoded_is_an_error(tmp_path, birds):
    with pytest.raises(ValueError, match="drawn: none of the images can be decoded"):
        discover(tmp_path, SomeCorrupt(birds, range(16)))


# --------------------------------------------------------------------------- files


def stop_behind(monkeypatch, blocks):
    """Interrupt the discovery when it has done this many blocks."""
    maps = discovery._Work._maps

    def stopping(self, block, centres):
        if block.number >= blocks:
            raise KeyboardInterrupt
        return maps(self, block, centres)

    monkeypatch.setattr(discovery._Work, "_maps", stopping)


@pytest.mark.parametrize("scope", ["image", "dataset"])
@pytest.mark.slow
def test_an_interrupted_discovery_goes_on_where_it_was(tmp_path, monkeypatch, scope):
    images = DrawnBirds(40, num_classes=4, image_size=48, seed=0)
    whole = discover(tmp_path / "whole", images, scope=scope)
    with monkeypatch.context() as patch:
        stop_behind(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            discover(tmp_path / "cut", images, scope=scope)
    reads, read = [], discovery._Work.read
    monkeypatch.setattr(
        discovery._Work, "read", lambda self, blocks: reads.extend(blocks) or read(self, blocks)
    )
    for _ in range(2):
        assert torch.equal(discover(tmp_path / "cut", images, scope=scope), whole)
        assert reads == [2]
    assert len(list((tmp_path / "cut").iterdir())) == 1


def test_other_weights_pictures_or_options_are_other_files(tmp_path, birds):
    few = Subset(birds, np.arange(4))
    discover(tmp_path, few)
    discover(tmp_path, few, seed=1)
    discover(tmp_path, Subset(birds, np.arange(5)))
    backbone = build()
    next(backbone.parameters()).data.mul_(1.5)
    discover_parts(backbone, few, Accelerator(cpu=True), Discovery(**CNN), cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_a_file_cut_off_is_made_anew(tmp_path, birds):
    few = Subset(birds, np.arange(4))
    parts = discover(tmp_path, few)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(discover(tmp_path, few), parts)


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parts": 5, "size": 2}, "num_parts: 5 parts on maps of 2 x 2 pixels; use 1 to 4"),
        ({"num_parts": 0}, "num_parts: 0 parts"),
        ({"num_parts": 256}, "use 1 to 255"),
        ({"scope": "chunk"}, "scope: 'chunk' is neither image nor dataset"),
        ({"scope": "image", "pca": 4}, "pca: needs scope=dataset"),
        ({"smooth": 2}, "smooth: 2 is not an odd number"),
        ({"foreground": True}, "foreground: test_resnet has no attention"),
        ({"sample": 1, "num_parts": 15}, "num_parts: 15 parts of a sample of 4 pixels"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, birds, options, message):
    with pytest.raises(ValueError, match=message):
        discover(tmp_path, Subset(birds, np.arange(4)), **options)


def test_more_parts_than_tokens_are_refused(tmp_path, birds):
    with pytest.raises(ValueError, match=r"20 parts of the 16 features that test_vit has"):
        discover(tmp_path, birds, "test_vit", num_parts=20)


def test_features_that_are_not_finite_name_their_pictures(tmp_path, birds):
    backbone = build()
    next(backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the features of drawn\[0\], .* are not finite"):
        discover_parts(backbone, birds, Accelerator(cpu=True), Discovery(**CNN), cache=tmp_path)


# --------------------------------------------------------------------------- geometry, processes


def test_the_whole_view_keeps_every_corner():
    image = np.zeros((40, 90, 3), np.uint8)
    image[:20, :45], image[20:, 45:] = 100, 200
    seen = WholeView(32)({"image": image, "index": 0}, np.random.default_rng(0))["image"]
    assert seen.shape == (32, 32, 3)
    assert (seen[4, 4, 0], seen[4, 28, 0], seen[28, 4, 0], seen[28, 28, 0]) == (100, 0, 0, 200)


def discover_a_share(path, images, name, scope):
    torch.set_num_threads(1)
    found = discover(path / "cache", images, name, scope=scope)
    torch.save(found, path / f"{torch.distributed.get_rank()}.pt")


@pytest.mark.parametrize(("name", "scope"), [("test_resnet", "image"), ("test_vit", "dataset")])
@pytest.mark.slow
def test_two_processes_find_the_parts_that_one_finds(tmp_path, name, scope):
    images = DrawnBirds(40, num_classes=4, image_size=48, seed=0)
    launch(discover_a_share, tmp_path, images, name, scope)
    one = discover(tmp_path / "one", images, name, scope=scope)
    for r in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{r}.pt"), one)
