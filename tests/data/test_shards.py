"""Tar files in the layout of WebDataset: which pictures, which labels, which split, which error."""

import bz2
import gzip
import io
import itertools
import lzma
import tarfile

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.data import shards, tar_index
from fg_ssl_zoo.data.datasets import (
    all_splits,
    file_state,
    fingerprint,
    image_name,
    load_splits,
)
from fg_ssl_zoo.data.inventory import differences, take
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import order_of
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.features.extract import CentreView
from tests.data.flat_pictures import data, draw


def png(value):
    return cv2.imencode(".png", np.full((6, 8, 3), value, np.uint8))[1].tobytes()


def tar(path, members):
    """A tar file of {name: content}; numbers are grey pictures, text is text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            content = png(content) if isinstance(content, int) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def birds_in_shards(tmp_path):
    for shard in range(3):
        members = {}
        for row in range(4):
            number = 4 * shard + row
            members |= {f"{number:04}.png": number, f"{number:04}.cls": str(number % 2 + 9)}
        tar(tmp_path / "birds" / f"train-{shard:04}.tar", members)
    tar(
        tmp_path / "birds" / "val-0000.tar",
        {"a/x.cls": "\ufeff10\n", "a/x.png": 77, "a/x.json": "{}"},
    )
    return tmp_path / "birds"


def values(images):
    return [int(images[index]["image"][0, 0, 0]) for index in range(len(images))]


def test_pictures_labels_and_splits(birds_in_shards):
    train, test = load_splits(data(birds_in_shards))
    assert (train.name, train.classes, values(train)) == ("birds", ["9", "10"], list(range(12)))
    assert train.labels.tolist() == [0, 1] * 6
    assert (values(test), test.labels.tolist()) == ([77], [1])
    assert (train[5]["index"], train[5]["label"]) == (5, 1)
    assert image_name(train, 5) == "train-0001.tar/0005.png"
    assert image_name(test, 0) == "val-0000.tar/a/x.png"


@pytest.mark.parametrize("pattern", ["train-{0000..0002}.tar", "train-*.tar"])
def test_patterns_and_single_files(birds_in_shards, pattern):
    found = all_splits(data(birds_in_shards / pattern), hold_out=False)
    assert (list(found), values(found["train"])) == (["train"], list(range(12)))
    one = all_splits(data(birds_in_shards / "train-0001.tar"), hold_out=False)["train"]
    assert (one.name, values(one)) == ("train_0001", [4, 5, 6, 7])


def test_folders_are_splits_and_classes(tmp_path):
    tar(tmp_path / "train" / "0.tar", {"jay/1.JPG": 1, "crow/2.png": 2, ".hidden/3.png": 3})
    tar(tmp_path / "test" / "0.tar", {"jay/4.png": 4})
    train, test = load_splits(data(tmp_path, columns={"label": "folder"}))
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (
        ["crow", "jay"], [1, 0], [1],
    )  # fmt: skip
    assert load_splits(data(tmp_path))[0].labels is None


def test_a_shard_is_scanned_once_until_it_changes(birds_in_shards, monkeypatch):
    first, _ = load_splits(data(birds_in_shards))
    scanned = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda *a: scanned.append(a[0].name) or scan(*a))
    again, _ = load_splits(data(birds_in_shards))
    assert scanned == []
    assert (values(again), fingerprint(again)) == (values(first), fingerprint(first))
    before, state = take({"train": again}), file_state(again)
    tar(birds_in_shards / "train-0001.tar", {"0009.png": 200, "0009.cls": "9"})
    changed, _ = load_splits(data(birds_in_shards))
    assert scanned == ["train-0001.tar"]
    assert values(changed) == [0, 1, 2, 3, 200, 8, 9, 10, 11]
    assert fingerprint(changed) != fingerprint(first)
    assert file_state(changed) != state
    assert str(differences(before, take({"train": changed}))).startswith("1 added, 4 gone")


@pytest.mark.parametrize(
    ("process", "order"),
    [("0", [0, 1, 2]), ("1", [1, 2, 0]), ("2", [2, 0, 1]), ("", [0, 1, 2]), ("-1", [0, 1, 2])],
)
def test_the_processes_of_a_machine_begin_at_different_shards(
    birds_in_shards, monkeypatch, process, order
):
    monkeypatch.setenv("LOCAL_RANK", process)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    scanned = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda *a: scanned.append(a[0].name) or scan(*a))
    train = all_splits(data(birds_in_shards / "train-*.tar"), hold_out=False)["train"]
    assert scanned == [f"train-{number:04}.tar" for number in order]
    assert values(train) == list(range(12))
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    again = all_splits(data(birds_in_shards / "train-*.tar"), hold_out=False)["train"]
    assert values(again) == list(range(12))


def test_training_goes_on_at_any_step_with_any_helpers(birds_in_shards):
    train, _ = load_splits(data(birds_in_shards, shuffle_buffer=2))
    assert train.groups[0].blocks.tolist() == [4, 4, 4]
    order = order_of(train, 4, 3)
    dataset = ViewDataset(train, CentreView(8), seed=3)

    def indices(steps, **how):
        return [batch["index"].tolist() for batch in step_loader(dataset, order, steps, **how)]

    whole = indices(range(6), num_workers=0)
    assert sorted(itertools.chain(*whole[:3])) == list(range(12))
    assert indices(range(4, 6), num_workers=2) == whole[4:]
    halves = [indices(range(6), num_workers=0, rank=rank, world=2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_long_names_and_offsets_equal_those_of_tarfile(tmp_path):
    name = "a/" * 80 + "ü" * 60 + ".png"
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=form) as opened:
            for member in (name, "b.png"):
                info = tarfile.TarInfo(member)
                info.size = len(png(3))
                opened.addfile(info, io.BytesIO(png(3)))
        assert [*tar_index.scan(tmp_path / f"{number}.tar").names] == [name, "b.png"]
    train, _ = load_splits(data(tmp_path))
    with tarfile.open(tmp_path / "0.tar") as opened:
        assert train.encoded(0) == opened.extractfile(name).read()


def test_a_shard_that_shrinks_while_it_is_read_is_a_corrupt_image(birds_in_shards):
    train, _ = load_splits(data(birds_in_shards))
    (birds_in_shards / "train-0000.tar").write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"train-0000\.tar/0000\.png: the shard has become"):
        train[0]
    (birds_in_shards / "train-0001.tar").unlink()
    lost = []
    for index in (4, 5):
        with pytest.raises(CorruptImage, match=r"train-0001\.tar cannot be read") as raised:
            train[index]
        lost.append(str(raised.value))
    assert len(set(lost)) == 2  # a run counts lines, and more than 1 % of the images end it


def with_links(path, members, links):
    """A tar file of images and of (name, kind, target) links before and behind them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for number, (name, kind, target) in enumerate(links):
            if number == 1:
                for member, value in members.items():
                    info = tarfile.TarInfo(member)
                    content = value if isinstance(value, bytes) else png(value)
                    info.size = len(content)
                    opened.addfile(info, io.BytesIO(content))
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            opened.addfile(info)
    return path


def test_links_to_members_are_read_and_others_are_counted(tmp_path, caplog):
    with_links(
        tmp_path / "train.tar",
        {"a/1.png": 1, "a/1.cls": b"jay", "b/2.png": 2, "b/2.cls": b"crow"},
        [
            ("b/early.png", tarfile.SYMTYPE, "../a/1.png"),
            ("b/3.png", tarfile.LNKTYPE, "a/1.png"),
            ("b/3.cls", tarfile.LNKTYPE, "./a/1.cls"),
            ("b/4.png", tarfile.SYMTYPE, "3.png"),
            ("b/5.png", tarfile.SYMTYPE, "/data/5.png"),
            ("b/6.png", tarfile.SYMTYPE, "6.png"),
            ("b/7.json", tarfile.SYMTYPE, "/data/7.json"),
        ],
    )
    train, _ = load_splits(data(tmp_path, columns={"label": "folder"}, test_split="none"))
    assert values(train) == [1, 2, 1, 1, 1]
    assert [train.classes[label] for label in train.labels] == ["a", "b", "b", "b", "b"]
    assert "2 links to nothing that is read in the tar file, 1 .json" in caplog.text
    members = tar_index.scan(tmp_path / "train.tar")
    assert [*members.names] == ["a/1.png", "b/2.png", "b/early.png", "b/3.png", "b/4.png"]
    assert [*members.labels] == ["jay", "crow", "jay", "jay", "jay"]


def test_a_tar_file_without_an_end_was_cut_off(birds_in_shards):
    file = birds_in_shards / "train-0001.tar"
    with tarfile.open(file) as opened:
        last = opened.getmembers()[-1].offset
    whole = file.read_bytes()
    for end in (last, last + 100):
        file.write_bytes(whole[:end] if end == last else whole[:last] + bytes(100))
        with pytest.raises(ValueError, match=rf"no end-of-archive block at byte {last}\); was it"):
            load_splits(data(birds_in_shards))
    file.write_bytes(whole[:last] + bytes(512))  # one block, as some programs write
    assert load_splits(data(birds_in_shards))[0].labels is None


def test_a_second_tar_file_behind_the_first_is_named(tmp_path, caplog):
    parts = [tar(tmp_path / f"{i}", {f"{i}.png": i}).read_bytes() for i in range(2)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    assert values(load_splits(data(tmp_path))[0]) == [0]
    assert "left out are 1 archive behind the first (of cat?)" in caplog.text


def test_labels_may_have_an_ending_in_upper_case(tmp_path):
    tar(tmp_path / "train.tar", {"1.JPG": 1, "1.CLS": "jay"})
    assert [*tar_index.scan(tmp_path / "train.tar").labels] == ["jay"]


@pytest.mark.parametrize(
    ("pack", "program"),
    [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")],
)
def test_a_compressed_file_named_tar_says_how_to_unpack_it(tmp_path, pack, program):
    file = tar(tmp_path / "a.tar", {"1.png": 1})
    file.write_bytes(pack(file.read_bytes()))
    message = rf"a\.tar is compressed, .* unpack it: {program} < a\.tar > NEW\.tar$"
    with pytest.raises(ValueError, match=message):
        load_splits(data(tmp_path))


def test_a_broken_link_is_named(tmp_path):
    (tmp_path / "a.tar").symlink_to("nowhere")
    with pytest.raises(
        ValueError, match=r"a\.tar cannot be read \(No such.*\): it is a broken link$"
    ):
        load_splits(data(tmp_path))


def test_names_with_more_than_one_dot_are_counted_together(tmp_path, caplog):
    dotted = {f"img.{number}.png": number for number in range(9)}
    others = {f"{number}.x{number}": "x" for number in range(9)}
    tar(tmp_path / "a.tar", {"1.png": 1} | dotted | others)
    load_splits(data(tmp_path))
    assert "9 .png with a second dot in the name, 1 .x0, 1 .x1" in caplog.text
    assert "1 .x3, and 5 more" in caplog.text


def test_damaged_and_foreign_files_are_refused(birds_in_shards, tmp_path):
    whole = (birds_in_shards / "train-0001.tar").read_bytes()
    for damaged in (whole[:1600], whole[:700], whole[:2048] + b"x" * 512 + whole[2560:], b"", b"x"):
        (birds_in_shards / "train-0001.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train-0001\.tar cannot be read as a tar file \("):
            load_splits(data(birds_in_shards))


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("train-{0000..0003}.tar", {}, r"1 of 4 shards of .* are not there, as .*train-0003\.tar"),
        ("gone-*.tar", {}, r"there is no file .*gone-\*\.tar: gone-\*\.tar is not in .*birds"),
        (
            "train-{0002..0000}.tar",
            {},
            r"range \{0002\.\.0000\} .* is empty; \{0000\.\.0002\} counts up",
        ),
        ("{train,val}-*.tar", {}, r"; patterns are \{0000\.\.0127\} for a range of numbers and \*"),
        ("train-000[01].tar", {}, r"there is no file .*; patterns are \{0000\.\.0127\}"),
        (
            "train-0000.tar::train-0001.tar",
            {},
            r"there is no file .*; patterns are \{0000\.\.0127\}",
        ),
        ("gone.tar", {}, r"there is no file .*gone\.tar: gone\.tar is not in .*birds; known are"),
        ("val-000.tar", {}, r"there is no file .*; did you mean val-0000\.tar"),
        ("x/0.tar", {}, r"there is no file .*0\.tar: x is not in .*birds$"),
        ("x.parquet", {}, r"there is no file .*x\.parquet: x\.parquet is not in .*birds$"),
        ("x.tar.gz", {}, r"x\.tar\.gz is compressed, .* unpack to a \.tar"),
        ("", {"columns": {"image": "png"}}, "unknown key 'image' for tar files; known is label"),
        ("", {"columns": {"label": "json"}}, "'json' for tar files; cls .* or folder is needed"),
        ("", {"train_split": "fold1"}, r"no split .fold1.; known are train, val"),
        ("text", {}, r"no images in 1 shards of .*text, as .*0\.tar; found 2 \.txt"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(birds_in_shards, path, options, message):
    tar(birds_in_shards.parent / "text" / "0.tar", {"a.txt": "a", "b.txt": "b"})
    place = birds_in_shards / path if path != "text" else birds_in_shards.parent / "text"
    (birds_in_shards / "x.tar.gz").touch()
    with pytest.raises(ValueError, match=message) as error:
        load_splits(data(place, **options))
    assert "\n" not in str(error.value)


def test_an_archive_beside_its_own_pictures_is_left_alone(tmp_path):
    draw(tmp_path / "images" / "a" / "1.png")
    tar(tmp_path / "images.tar", {"1.png": 1})
    assert shards.shard_files(tmp_path)[1] == []


def test_shards_in_any_folder_and_case_are_read_and_rows_beside_them_are_named(tmp_path, caplog):
    tar(tmp_path / "2021" / "a" / "train-0.TAR", {"1.png": 1})
    tar(tmp_path / "2021" / "train" / "b" / "0.tar", {"2.png": 2})
    (tmp_path / "2021" / "train-0.parquet").touch()
    (tmp_path / "2021" / "again").symlink_to(tmp_path)
    train, _ = load_splits(data(tmp_path))
    assert values(train) == [1, 2]
    assert "the .tar files are read; not used are 1 .parquet" in caplog.text
    one, _ = load_splits(data(tmp_path / "2021" / "a" / "train-0.TAR"))
    assert values(one) == [1]


def test_a_folder_of_compressed_files_says_so(tmp_path):
    for name in ("0.tar.gz", "1.tgz"):
        (tmp_path / name).touch()
    message = (
        r"holds only compressed tar files, as 0\.tar\.gz, .* unpack to a \.tar or to a folder$"
    )
    with pytest.raises(ValueError, match=message):
        load_splits(data(tmp_path))
    draw(tmp_path / "a" / "1.png")
    assert shards.shard_files(tmp_path)[1] == []


def test_folders_in_a_tar_file_that_are_called_like_splits_are_named(tmp_path, caplog):
    members = {"birds/train/jay/1.png": 1, "birds/test/jay/1.png": 2}
    tar(tmp_path / "all" / "birds.tar", members)
    train, _ = load_splits(data(tmp_path / "all"))
    assert len(train) == 2
    assert "the folders test, train inside of tar files are not read as splits" in caplog.text
    assert "make a tar file of each split, as train.tar and test.tar" in caplog.text
    caplog.clear()
    for name in members:
        tar(tmp_path / "two" / f"{name.split('/')[1]}.tar", {name: 1})
    load_splits(data(tmp_path / "two"))
    assert "inside of tar files" not in caplog.text


def test_labels_that_were_asked_for_and_are_not_there_are_named(tmp_path, caplog):
    tar(tmp_path / "n01.tar", {"n01_1.png": 1})
    assert load_splits(data(tmp_path, columns={"label": "folder"}))[0].labels is None
    assert "unlabelled: no image lies in a folder inside of its tar file" in caplog.text
    assert load_splits(data(tmp_path, columns={"label": "cls"}))[0].labels is None
    assert "unlabelled: no image has a label NAME.cls beside it" in caplog.text


def held_out_members(path):
    test = load_splits(data(path))[1]
    return {image_name(test, index) for index in range(len(test))}


def test_an_added_shard_moves_few_images_to_the_other_split(tmp_path, caplog):
    def shard(name):
        members = {}
        for row in range(50):
            members |= {f"{name}{row}.png": row, f"{name}{row}.cls": "ab"[row % 2]}
        tar(tmp_path / "birds" / f"{name}.tar", members)

    shard("m")
    before = held_out_members(tmp_path / "birds")
    assert "20 % of each class, by a hash of the name in the tar file" in caplog.text
    shard("a")
    after = held_out_members(tmp_path / "birds")
    assert (len(before), len(after)) == (10, 20)
    assert len(before - after) <= 5
    (tmp_path / "birds" / "below").mkdir()
    (tmp_path / "birds" / "a.tar").rename(tmp_path / "birds" / "below" / "a.tar")
    moved = held_out_members(tmp_path / "birds")  # names are now below/a.tar/...
    assert {name.removeprefix("below/") for name in moved} == after


def test_images_of_one_key_are_held_out_together(tmp_path):
    members = {f"{row}{ending}": row for row in range(20) for ending in (".png", ".jpg")}
    labels = {f"{row}.cls": "ab"[row % 2] for row in range(20)}
    tar(tmp_path / "birds.tar", members | labels)
    keys = [name.rpartition(".")[0] for name in sorted(held_out_members(tmp_path / "birds.tar"))]
    assert len(keys) == 8
    assert keys[::2] == keys[1::2]
