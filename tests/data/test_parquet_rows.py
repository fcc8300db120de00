"""Parquet files read in place: the same pictures as from a table, and no more than needed."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data import parquet_rows
from fg_ssl_zoo.data.datasets import file_state, fingerprint, load_splits
from fg_ssl_zoo.data.hub_images import is_data_set
from fg_ssl_zoo.data.inventory import differences, take
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import order_of
from fg_ssl_zoo.data.parquet_rows import ParquetRows
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.features.extract import CentreView
from tests.data.flat_pictures import draw
from tests.parquet import save_parquet


def png(value):
    return cv2.imencode(".png", np.full((4, 5, 3), value, np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Two files of six and seven training rows, three in a row group, and a test file."""
    root = tmp_path_factory.mktemp("parquet") / "birds"
    for name, values in (
        ("train-00000-of-00002", range(6)),
        ("train-00001-of-00002", range(6, 13)),
        ("test-00000-of-00001", range(100, 104)),
    ):
        images = [{"bytes": png(i), "path": f"{i}.png"} for i in values]
        labels = [i % 2 for i in values]
        save_parquet(root / "data" / f"{name}.parquet", images, labels, ["a", "b"], group=3)
    return root


@pytest.fixture
def read(monkeypatch):
    """Numbers of the row groups that are read, with their columns."""
    found = []
    own = ParquetRows._read
    monkeypatch.setattr(
        ParquetRows, "_read", lambda self, *what: found.append(what) or own(self, *what)
    )
    return found


def values(images):
    return [int(images[index]["image"][0, 0, 0]) for index in range(len(images))]


@pytest.mark.parametrize("options", [("path", False), ("hub_id", True)])
def test_rows_in_place_equal_those_of_a_table(birds, options):
    train, test = load_splits(Data(**{options[0]: str(birds)}, streaming=options[1]))
    table, tested = load_splits(Data(hub_id=str(birds)))
    assert isinstance(train.rows, ParquetRows)
    assert (values(train), values(test)) == (values(table), values(tested))
    assert train.labels.tolist() == table.labels.tolist()
    assert (train.classes, test.labels.tolist()) == (table.classes, tested.labels.tolist())
    assert train.groups[0].blocks.tolist() == [3, 3, 3, 3, 1]
    again = pickle.loads(pickle.dumps(train))
    assert (values(again), fingerprint(again)) == (values(train), fingerprint(train))


def test_a_parquet_file_beside_pictures_is_left_alone(birds, tmp_path):
    shutil.copy(birds / "data" / "test-00000-of-00001.parquet", tmp_path / "embeddings.parquet")
    draw(tmp_path / "a" / "0.png")
    assert is_data_set(tmp_path) is None
    assert is_data_set(birds) is True


def test_listing_reads_no_picture(birds, read):
    train, test = load_splits(Data(path=str(birds)))
    assert {column for _, column in read} == {"label"}
    read.clear()
    splits = {"train": train, "test": test}
    assert not differences(take(splits), take(splits))
    assert len({fingerprint(train), file_state(train), fingerprint(test), file_state(test)}) == 4
    assert read == []


def test_a_limit_opens_no_more_than_it_needs(birds, read):
    train, _ = load_splits(Data(path=str(birds), num_images=4, test_split="none"))
    assert (values(train), train.groups[0].blocks.tolist()) == ([0, 1, 2, 3], [3, 1])
    assert {number for number, _ in read} == {0, 1}


def test_row_groups_are_kept_while_there_is_room(birds, read, monkeypatch):
    rows = load_splits(Data(path=str(birds)))[0].rows
    read.clear()
    for row in (0, 1, 12, 0):
        rows[row]
    assert [number for number, _ in read] == [0, 4]
    monkeypatch.setattr(parquet_rows, "MOST_BYTES", 1)
    for row in (5, 12, 5):
        rows[row]
    assert [number for number, _ in read] == [0, 4, 1, 4, 1]


def test_training_reads_each_row_group_once_and_goes_on_anywhere(birds, read):
    train, _ = load_splits(Data(path=str(birds), shuffle_buffer=2))
    order = order_of(train, 1, 0)
    dataset = ViewDataset(train, CentreView(8), seed=0)

    def indices(steps, **how):
        return [b["index"].tolist() for b in step_loader(dataset, order, steps, **how)]

    read.clear()
    whole = indices(range(13), num_workers=0)
    assert sorted(index for (index,) in whole) == list(range(13))
    assert len(read) == 5
    assert indices(range(7, 13), num_workers=2) == whole[7:]


def test_a_file_that_is_gone_or_damaged_is_named(birds, tmp_path):
    file = tmp_path / "x-00000-of-00001.parquet"
    file.write_bytes((birds / "data" / "test-00000-of-00001.parquet").read_bytes())
    rows = ParquetRows([str(file)], "image")
    file.unlink()
    with pytest.raises(CorruptImage, match=r"x-00000-of-00001\.parquet: cannot be read"):
        rows[0]
    file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"data\.hub_id: .*\.parquet cannot be read \("):
        ParquetRows([str(file)], "image")


def save_columns(file, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


IMAGE = {"bytes": png(1), "path": "1.png"}


@pytest.mark.parametrize(
    ("rows", "kind"), [([{"img": IMAGE, "w": 1}], "dict"), ([[IMAGE]], "List"), ([1.5], "double")]
)
@pytest.mark.parametrize("key", ["path", "hub_id"])
def test_a_column_without_images_is_named_with_the_others(tmp_path, rows, kind, key):
    save_columns(tmp_path / "train-0.parquet", image=rows, label=["jay"])
    message = rf"column 'image' of .* holds no images; its columns: image \({kind}|float64\), label"
    with pytest.raises(ValueError, match=message) as error:
        load_splits(Data(**{key: str(tmp_path)}))
    assert "\n" not in str(error.value)


def test_a_column_of_paths_is_read_as_by_datasets(tmp_path):
    files = [str(draw(tmp_path / "photos" / f"{i}.png", (i, i, i))) for i in range(3)]
    save_columns(tmp_path / "rows" / "train-0.parquet", image=files, label=["jay"] * 3)
    for key in ("path", "hub_id"):
        train, _ = load_splits(Data(**{key: str(tmp_path / "rows")}, test_split="none"))
        assert values(train) == [0, 1, 2]


def test_a_split_without_rows_is_an_error(tmp_path):
    save_columns(tmp_path / "train-0.parquet", image=[], label=[])
    with pytest.raises(ValueError, match=r"\[train\] has no rows; each split needs at least one$"):
        load_splits(Data(path=str(tmp_path)))


def test_a_validation_split_is_read_in_place(birds, tmp_path):
    for old, new in (("train-00000-of-00002", "train-0"), ("test-00000-of-00001", "validation-0")):
        shutil.copy(birds / "data" / f"{old}.parquet", tmp_path / f"{new}.parquet")
    train, test = load_splits(Data(path=str(tmp_path)))
    assert (values(train), values(test)) == (list(range(6)), list(range(100, 104)))
    assert isinstance(test.rows, ParquetRows)


@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_folders_of_parquet_files_are_splits(birds, tmp_path, test):
    for old, new in (("train-00000-of-00002", "train"), ("test-00000-of-00001", test)):
        (tmp_path / new).mkdir()
        shutil.copy(birds / "data" / f"{old}.parquet", tmp_path / new / "0.parquet")
    train, tested = load_splits(Data(path=str(tmp_path)))
    assert (values(train), values(tested)) == (list(range(6)), list(range(100, 104)))


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "data-00000-of-00001.arrow"])
def test_one_file_of_a_data_set_names_its_folder(birds, tmp_path, name):
    shutil.copy(birds / "data" / "test-00000-of-00001.parquet", tmp_path / name)
    message = rf"{name} is one file of a data set; give its folder, {tmp_path}$"
    with pytest.raises(ValueError, match=message):
        load_splits(Data(path=str(tmp_path / name)))


def test_each_row_of_a_lost_file_is_an_unreadable_picture_of_its_own(birds, tmp_path):
    shutil.copytree(birds, tmp_path / "birds")
    train, _ = load_splits(Data(path=str(tmp_path / "birds")))
    (tmp_path / "birds" / "data" / "train-00001-of-00002.parquet").unlink()
    lost = []
    for index in (6, 7):
        with pytest.raises(CorruptImage, match=rf"row {index}: .*00001-of-00002.parquet: cannot"):
            train[index]
        with pytest.raises(CorruptImage) as raised:
            train[index]
        lost.append(str(raised.value))
    assert len(set(lost)) == 2


def test_row_groups_that_have_no_room_together_are_told(birds, monkeypatch, caplog):
    files = [str(file) for file in sorted((birds / "data").glob("train*"))]
    rows = ParquetRows(files, "image", buffer=2)
    assert not caplog.messages
    each = max(rows._bytes(number) for number in range(5))
    assert each >= 3 * len(png(0))
    monkeypatch.setattr(parquet_rows, "MOST_BYTES", 5 * each - 1)
    ParquetRows(files, "image", buffer=2)
    assert "reads from 5 row groups at a time" in caplog.text
