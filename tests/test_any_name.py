"""Names hold any byte that a file system allows, and come back from every file that lists them."""

import csv
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import encodable, escaped, printable, unescaped
from fg_ssl_zoo.data.contact_sheet import contact_sheet
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.report.inspected_model import readable
from fg_ssl_zoo.features.embedding_file import EmbeddingFile
from fg_ssl_zoo.hub.export import as_json
from fg_ssl_zoo.pretrain import main as train
from tests.pictures import write_photos

CLASS, FILE = os.fsdecode(b"caf\xe9"), os.fsdecode(b"z\xe9\n\\x41.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """120 training images, one cut off, in a class and with a name that are not UTF-8."""
    plain = tmp_path_factory.mktemp("photos") / "set"
    birds = DrawnBirds(124, num_classes=2, image_size=32, seed=0)
    write_photos(plain, birds, classes=True, split_of=lambda i: "train" if i < 120 else "test")
    root = plain.rename(plain.with_name(os.fsdecode(b"s\xe9t")))  # cv2.imwrite takes UTF-8 alone
    for split in ("train", "test"):
        (root / split / birds.classes[0]).rename(root / split / CLASS)
    first = sorted((root / "train" / CLASS).iterdir())[0]
    (root / "train" / CLASS / FILE).write_bytes(first.read_bytes()[:60])
    return root


@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(st.binary(max_size=20))
def test_an_escaped_name_is_one_line_of_utf8_that_reads_back(raw):
    name = os.fsdecode(raw)
    line = escaped(name)
    assert unescaped(line) == name
    assert line.encode().split(b"\n") == [line.encode()]
    assert len(printable(name).splitlines()) <= 1
    assert json.loads(encodable(json.dumps(name, ensure_ascii=False))) == name


@pytest.mark.slow
def test_a_run_notes_a_broken_picture_of_any_name_and_reads_it_back(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train([
        f"data.path={photos}", "data.image_size=32", "data.num_workers=0", "output=run",
        "backbone=test_resnet", "backbone_options={}", "stages.0.train.batch_size=60",
        "stages.0.train.steps=3", "monitor.k=3", "monitor.every=99",
    ])  # fmt: skip
    (noted,) = RunFolder(tmp_path / "run").corrupt_images()
    assert noted.startswith(f"{photos}/train/{CLASS}/{FILE}: ")
    results = json.loads((tmp_path / "run" / "export" / "results.json").read_text("utf-8"))
    assert results["recipe"]["data"]["path"] == str(photos)


def test_embeddings_and_pairs_list_any_name_and_read_it_back(photos, tmp_path, capsys):
    words = ["--data", str(photos), "num_workers=0"]
    index = tmp_path / "x.parquet"
    main(["embed", "test_resnet@scratch", *words, "--image-size", "32", "--out", str(index)])
    tables = [table.to_pydict() for _, table in EmbeddingFile(index).chunks()]
    classes = {unescaped(name) for table in tables for name in table["class"]}
    files = {unescaped(name) for table in tables for name in table["file"]}
    assert CLASS in classes
    assert all((photos / name).is_file() for name in files)
    skipped = (tmp_path / "x.parquet.skipped.txt").read_text("utf-8").split("\n")
    assert unescaped(skipped[0]).startswith(f"{photos}/train/{CLASS}/{FILE}: ")
    query = next((photos / "test" / CLASS).iterdir())
    sheet = tmp_path / "x.png"
    main(["search", "test_resnet@scratch", "--index", str(index), "--query", str(query), "--k", "1",
          "--out", str(sheet)])  # fmt: skip
    assert "test/caf\\udce9/" in capsys.readouterr().out
    pairs = tmp_path / "x.csv"
    main(["compare-splits", *words, "--bits", "100", "--out", str(pairs)])
    with pairs.open(newline="", encoding="utf-8") as lines:
        named = [unescaped(row["train_file"]) for row in csv.DictReader(lines)]
    assert named
    assert all((photos / name).is_file() for name in named)


def test_what_shows_names_shows_any():
    picture = np.zeros((8, 8, 3), np.uint8)
    contact_sheet([[picture]], [CLASS + FILE])
    assert readable([CLASS, FILE]) == ["caf\\xe9", "z\\xe9\\n\\x41.png"]
    assert json.loads(as_json({CLASS: FILE})) == {CLASS: FILE}
