"""Hugging Face data sets without a network: parquet files in a folder, opened like a Hub id."""

import pickle

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.catalog import CATALOG
from fg_ssl_zoo.data.datasets import file_state, fingerprint, load_images, load_splits
from fg_ssl_zoo.data.hub_images import HubImages
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.data.splits import class_numbers
from tests.data.flat_pictures import draw
from tests.parquet import save_parquet

SPECIES = ["wren10", "wren9", "jay"]


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 5, 3), value, np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    """Train of twelve rows, test of four; the last train row is no image."""
    import datasets

    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("hub") / "wrens"
    (root / "data").mkdir(parents=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "species": datasets.Value("string"),
            "weight": datasets.Value("float32"),
        }
    )
    for split, count in (("train", 12), ("test", 4)):
        rows = {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)],
            "label": [i % 3 for i in range(count)],
            "species": [SPECIES[i % 3] for i in range(count)],
            "weight": [0.5] * count,
        }
        if split == "train":
            rows["image"][-1] = {"bytes": b"broken", "path": "broken.png"}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return str(root)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Arrow files of these tests stay out of the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")


def test_rows_are_decoded_by_us(parquet):
    train, test = load_splits(Data(hub_id=parquet))
    assert (train.name, len(train), len(test), train.classes) == ("wrens", 12, 4, ["a", "b", "c"])
    np.testing.assert_array_equal(train.labels, np.arange(12) % 3)
    sample = pickle.loads(pickle.dumps(train))[7]
    assert (sample["index"], sample["label"]) == (7, 1)
    np.testing.assert_array_equal(sample["image"], np.full((4, 5, 3), 7))
    with pytest.raises(CorruptImage, match=r"wrens\[train\] row 11 \(broken.png\): not an image"):
        train[11]
    assert fingerprint(train) != fingerprint(test)


def test_replaced_pictures_of_a_folder_that_datasets_opens_have_another_state(tmp_path):
    import datasets

    for name, shade in (("a/0", 1), ("a/1", 2), ("b/0", 3), ("b/1", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(png(shade))

    def state():
        datasets.disable_progress_bars()
        train, _ = load_splits(Data(hub_id=str(tmp_path), test_split="none"))
        return file_state(train)

    before = state()
    assert state() == before
    (tmp_path / "b" / "1.png").write_bytes(png(5))  # of the same size
    assert state() != before


def test_strings_become_numbers_in_natural_order(parquet):
    train, test = load_splits(Data(hub_id=parquet, columns={"label": "species"}, name="mine"))
    assert (train.name, train.classes) == ("mine", ["jay", "wren9", "wren10"])
    np.testing.assert_array_equal(test.labels, [2, 1, 0, 2])


@pytest.mark.parametrize("form", ["parquet", "streamed parquet", "save_to_disk"])
@pytest.mark.parametrize("names", [["c", "a", "b"], ["b", "c"]])
def test_labels_of_the_test_split_travel_by_name(tmp_path, names, form):
    import datasets

    splits = {}
    for split, classes in (("train", ["a", "b", "c"]), ("test", names)):
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
        rows = {
            "image": [{"bytes": png(i), "path": None} for i, _ in enumerate(classes)],
            "label": list(range(len(classes))),
        }
        splits[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    root = tmp_path / "letters"
    if form == "save_to_disk":
        datasets.DatasetDict(splits).save_to_disk(root)
    else:
        for split, rows in splits.items():
            rows.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    how = {"streaming": True, "num_images": 9} if form == "streamed parquet" else {}
    train, test = load_splits(Data(hub_id=str(root), **how))
    assert train.classes == test.classes == ["a", "b", "c"]
    assert [test.classes[label] for label in test.labels] == names


def test_labels_of_a_validation_split_travel_by_name_and_joined_splits_agree(tmp_path):
    images = [{"bytes": png(i), "path": None} for i in range(3)]
    for split, classes in (("train", ["a", "b", "c"]), ("validation", ["c", "b", "a"])):
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        save_parquet(file, images, [0, 1, 2], classes)
    _, test = load_splits(Data(hub_id=str(tmp_path)))
    assert [test.classes[label] for label in test.labels] == ["c", "b", "a"]
    with pytest.raises(ValueError, match=r"splits train\+validation of .* in different orders"):
        load_splits(Data(hub_id=str(tmp_path), train_split="train+validation"))


def test_splits_are_found_in_any_case_and_those_that_are_not_used_are_named(tmp_path, caplog):
    import datasets

    rows = {"image": [{"bytes": png(i), "path": None} for i in range(2)], "label": [0, 1]}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    root = str(tmp_path / "letters")
    datasets.DatasetDict({"Train": split, "Val": split, "Test": split}).save_to_disk(root)
    train, test = load_splits(Data(hub_id=root))
    assert (train.where, test.where) == (f"{root}[Train]", f"{root}[Test]")
    assert "the images in Val are not used" in caplog.text
    caplog.clear()
    load_splits(Data(hub_id=root, train_split="Train+Val"))
    assert not caplog.text
    datasets.DatasetDict({"train": split, "Train": split}).save_to_disk(root)
    assert load_splits(Data(hub_id=root))[0].where == f"{root}[train]"


def test_splits_are_joined_and_limited(parquet):
    train, test = load_splits(Data(hub_id=parquet, train_split="train+test", num_images=6))
    np.testing.assert_array_equal(np.bincount(train.labels), [2, 2, 2])
    assert len(test) == 4


def test_streaming_reads_the_first_rows(parquet):
    options = {"hub_id": parquet, "columns": {"label": "species"}, "test_split": "none"}
    train, none = load_splits(Data(streaming=True, num_images=5, **options))
    whole = load_images(Data(**options), "train")
    assert (len(train), none, train.classes) == (5, None, whole.classes)
    np.testing.assert_array_equal(train.labels, whole.labels[:5])
    np.testing.assert_array_equal(train[4]["image"], whole[4]["image"])


def test_other_formats_are_streamed_into_memory(tmp_path):
    for number in range(3):
        draw(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", (number, 0, 0))
    train, _ = load_splits(
        Data(hub_id=str(tmp_path), streaming=True, num_images=3, test_split="none")
    )
    assert (len(train), isinstance(train.rows, list)) == (3, True)
    with pytest.raises(ValueError, match=r"has no Parquet files, .*; say how many with data\.num"):
        load_splits(Data(hub_id=str(tmp_path), streaming=True, test_split="none"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"label": "kind"}},
            r"columns.label: .* has no column 'kind', but image \(Image\)",
        ),
        ({"columns": {"lable": "kind"}}, r"data.columns: unknown key 'lable'"),
        ({"columns": {"label": "weight"}}, r"holds float; integers or strings are needed"),
        ({"train_split": "trian"}, r"data.train_split: .* no split 'trian'; there are train, test"),
    ],
)
def test_wrong_options_are_one_line(parquet, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load_splits(Data(hub_id=parquet, **options))
    assert "\n" not in str(error.value)


def test_a_set_out_of_reach_names_the_way_out():
    with pytest.raises(
        ValueError, match=r"cannot be loaded: .*; or download it from https.*data.path"
    ):
        load_splits(Data(name="cub"))
    with pytest.raises(ValueError, match=r"nabirds is not on the Hub; download it from https"):
        load_splits(Data(name="nabirds"))


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"'aircrafts'; did you mean aircraft.*data.path=FOLDER"):
        load_splits(Data(name="aircrafts"))


@pytest.mark.parametrize("name", CATALOG)
def test_catalogue_entries_are_complete(name):
    entry = CATALOG[name]
    assert entry.title
    assert entry.terms
    assert entry.homepage.startswith("https://")
    assert entry.hub_id is None or entry.hub_id.count("/") == 1
    assert set(entry.columns) == {"image", "label"}


def test_class_numbers():
    classes, labels = class_numbers([5, 30, 5], None, None, "x")
    assert classes == ["5", "30"]
    np.testing.assert_array_equal(labels, [0, 1, 0])
    for hidden in ([-1, -1], [None, "a"]):
        assert class_numbers(hidden, ["a", "b"], None, "x") == ([], None)
    named = class_numbers([0, 1, 1], ["wren", "jay"], ["jay", "crow", "wren"], "x")
    np.testing.assert_array_equal(named[1], [2, 0, 0])
    assert class_numbers([0, 0], ["jay", "unused"], ["jay"], "x")[0] == ["jay"]
    with pytest.raises(ValueError, match=r"1 classes of x are not in the training split: wren"):
        class_numbers([0, 1], ["jay", "wren"], ["jay"], "x")
    with pytest.raises(ValueError, match=r"x holds class 2; there are 2 names"):
        class_numbers([0, 2], ["jay", "wren"], None, "x")
    with pytest.raises(ValueError, match=r"1 classes of x are not in the training split: wren"):
        class_numbers(["wren", "jay"], None, ["jay"], "x")


def save_rows(root, images, labels, form):
    """A training split as Parquet or as `save_to_disk` writes it."""
    import datasets

    datasets.disable_progress_bars()
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"image": images, "label": labels}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    if form == "save_to_disk":
        table.save_to_disk(root)
    else:
        root.mkdir()
        table.to_parquet(root / "train-0.parquet")
    return root


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_a_training_split_that_is_not_there_is_named_with_those_that_are(tmp_path, form):
    root = save_rows(tmp_path / "birds", [{"bytes": png(1), "path": None}], [0], form)
    message = r"^data\.train_split: .*birds has no split 'test'; there are train$"
    with pytest.raises(ValueError, match=message):
        load_splits(Data(path=str(root), train_split="test"))


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_a_row_without_an_image_is_one_unreadable_image(tmp_path, form):
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    images[2] = None
    root = save_rows(tmp_path / "birds", images, [0, 1, 0, 1], form)
    train, _ = load_splits(Data(path=str(root), test_split="none"))
    assert fingerprint(train)
    assert train[3]["label"] == 1
    with pytest.raises(CorruptImage, match=r"birds\[train\] row 2 has no image$"):
        train[2]


def test_a_row_is_read_once_per_image():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    content = cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes()
    rows = Counted([{"bytes": content, "path": "a.png"}])
    assert HubImages(rows, "birds[train]", name="birds")[0]["image"].shape == (4, 5, 3)
    assert rows.reads == 1
