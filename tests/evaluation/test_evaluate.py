"""Several models in one call, and the same numbers from two processes as from one."""

import csv
import io
import json

import cv2
import numpy as np
import pytest
from accelerate import Accelerator
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.evaluation import table
from fg_ssl_zoo.evaluation.candidates import row_name, with_layer
from fg_ssl_zoo.evaluation.evaluate import Evaluation, evaluate
from fg_ssl_zoo.evaluation.protocols.finetune import Finetune
from tests.pictures import write_photos
from tests.runs import launch

DATA = Data(name="drawn", num_images=24, num_classes=4, image_size=48)
MODELS = ["test_resnet@scratch", "test_vit@scratch"]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Evaluation:
    cache = tmp_path_factory.mktemp("cache")
    return evaluate(
        MODELS,
        DATA,
        Accelerator(cpu=True),
        protocols=["knn", "retrieval"],
        image_size=64,
        cache=cache,
    )


def test_every_model_has_every_metric_with_its_interval(evaluation):
    assert [row.name for row in evaluation.rows] == [
        "test_resnet, untrained",
        "test_vit, untrained",
    ]
    assert table.metrics_of(table.as_plain(evaluation)) == [
        "knn_top1",
        "retrieval_rank1",
        "retrieval_rank5",
        "retrieval_map",
    ]
    for row in evaluation.rows:
        assert row.outcomes["knn_top1"].values.shape == (6,)
        for metric, (low, high) in row.intervals.items():
            assert low <= row.outcomes[metric].value <= high
    assert evaluation.data["num_scored"] == 6
    assert evaluation.data["chance"] == 0.25


def test_what_could_move_a_number_is_written_down(evaluation):
    plain = json.loads(json.dumps(table.as_plain(evaluation)))
    assert plain["crop_pct"] is None  # each model's own
    row = plain["rows"][0]
    assert (row["crop_pct"], row["interpolation"], row["crop_mode"]) == (0.875, "bicubic", "center")
    assert plain["seed"] == 0
    assert plain["data"]["test_fingerprint"] != plain["data"]["train_fingerprint"]
    assert plain["versions"]["timm"]
    score = plain["rows"][0]["scores"]["knn_top1"]
    assert score["settings"] == {"k": 20, "temperature": 0.07, "similarity": "cosine"}
    assert score["notes"] == []
    assert {"value", "low", "high", "mean_per_class", "macro_f1"} <= score.keys()
    assert plain["p_values"]["knn_top1"][0].keys() == {"a", "b", "p"}


def test_markdown_csv_and_terminal_say_the_same(evaluation):
    value = f"{evaluation.rows[1].outcomes['retrieval_map'].value:.1%}"
    assert value in table.markdown(table.as_plain(evaluation)).splitlines()[3]
    assert value in table.terminal(table.as_plain(evaluation))
    lines = list(csv.DictReader(io.StringIO(table.as_csv(table.as_plain(evaluation)))))
    assert len(lines) == 8
    assert f"{float(lines[7]['value']):.1%}" == value
    assert lines[7]["metric"] == "retrieval_map"
    assert lines[7]["macro_f1"] == ""


def test_the_best_is_marked_and_so_is_what_does_not_differ(evaluation):
    cells = [
        line.split(" | ")[2]
        for line in table.markdown(table.as_plain(evaluation)).splitlines()[2:4]
    ]
    best = int(np.argmax([row.outcomes["knn_top1"].value for row in evaluation.rows]))
    assert cells[best].endswith("*")
    assert cells[1 - best].endswith("=")  # six images tell nothing


def test_a_row_alone_is_not_the_best_of_anything(evaluation):
    plain = table.as_plain(evaluation)
    alone = table.markdown({**plain, "rows": plain["rows"][:1]})
    assert "*" not in alone
    assert "interval over the test images.\n" in alone + "\n"


def test_an_architecture_has_one_untrained_row(tmp_path):
    found = evaluate(
        ["test_resnet@scratch", "test_resnet@scratch"], DATA, Accelerator(cpu=True),
        protocols=["knn"], image_size=48, cache=tmp_path,
    )  # fmt: skip
    assert len(found.rows) == 1


@pytest.mark.slow
def test_two_options_of_the_same_weights_are_two_rows_with_their_own_numbers(tmp_path):
    weights = create_backbone("test_resnet", image_size=48).model.state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    words = [
        f"test_resnet{{global_pool: {kind}}}@{tmp_path}/w.safetensors" for kind in ("avg", "max")
    ]

    found = evaluate(
        words, DATA, Accelerator(cpu=True), protocols=["knn"], image_size=48, cache=tmp_path / "c"
    )
    names = [row.name for row in found.rows]
    assert names == [
        "test_resnet{global_pool: avg}@w", "test_resnet{global_pool: avg}, untrained",
        "test_resnet{global_pool: max}@w", "test_resnet{global_pool: max}, untrained",
    ]  # fmt: skip
    assert [row.start for row in found.rows] == [names[1], None, names[3], None]
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 8  # of two splits each
    assert table.as_plain(found)["rows"][2]["options"] == {"global_pool": "max"}


def test_a_number_behind_the_words_scores_that_feature_map(tmp_path):
    words = ["test_resnet@scratch#1", "test_resnet@scratch#3"]
    with pytest.raises(ValueError, match=r"test_resnet has \d+ feature maps; there is no \[99\]"):
        evaluate(["test_resnet@scratch#99"], DATA, Accelerator(cpu=True), cache=tmp_path)
    found = evaluate(
        words, DATA, Accelerator(cpu=True), protocols=["knn"], image_size=48, cache=tmp_path
    )
    assert [row.name for row in found.rows] == [
        "test_resnet, untrained#1", "test_resnet, untrained#3",
    ]  # fmt: skip
    assert with_layer("folder#1/x") == ("folder#1/x", None)


def test_a_metric_that_scores_no_picture_is_left_out_and_says_why(tmp_path):
    data = Data(name="drawn", num_images=8, num_classes=4, image_size=48)  # one test image each
    found = evaluate(
        MODELS[:1], data, Accelerator(cpu=True), protocols=["knn", "retrieval"],
        image_size=48, cache=tmp_path,
    )  # fmt: skip
    text = table.terminal(table.as_plain(found))
    assert table.metrics_of(table.as_plain(found)) == ["knn_top1"]
    assert "retrieval_map: no image is scored (4 images alone in their class" in text


@pytest.mark.slow
def test_a_fine_tuning_that_diverges_costs_its_cell_and_not_the_table(tmp_path):
    data = Data(name="drawn", num_images=64, num_classes=2, image_size=48)
    how = Finetune(epochs=3, batch_size=16, lr=1e30)
    found = evaluate(
        MODELS[:1], data, Accelerator(cpu=True), protocols=["knn", "finetune"],
        options={"finetune": how}, image_size=48, cache=tmp_path,
    )  # fmt: skip
    results = table.as_plain(found)
    assert table.metrics_of(results) == ["knn_top1"]
    assert ", finetune: no image is scored (the loss is " in table.terminal(results)


def test_names_of_rows_are_short_and_differ():
    backbone = create_backbone("test_vit", image_size=32)
    assert row_name("runs/a/export", backbone, True) == "a"
    assert row_name("runs/a/export_teacher", backbone, True) == "a_teacher"
    assert row_name("hf-hub:me/b", backbone, True) == "b"
    assert row_name("test_vit@x/y.safetensors", backbone, True) == "test_vit@y"
    assert row_name("test_vit@x/y.safetensors#partial#3", backbone, True) == "test_vit@y#3"
    assert row_name("runs/a", backbone, False) == "test_vit, untrained"
    for init, name in (("fgssl_a.simclr", "fgssl_a.simclr"), ("local-dir:b/c", "test_vit")):
        backbone.init = init
        assert row_name("runs/a", backbone, False) == f"{name}, start"
    backbone.init = "scratch"
    assert row_name("other/a", backbone, True, taken=["a"]) == "a (2)"
    assert row_name("test_vit@scratch#-2", backbone, True) == "test_vit, untrained#-2"


def numbers_of_a_share(path):
    found = evaluate(
        MODELS[:1], DATA, Accelerator(cpu=True), protocols=["knn", "retrieval", "keypoints"],
        image_size=48, cache=path / "two",
    )  # fmt: skip
    if Accelerator().is_main_process:
        values = [outcome.values for row in found.rows for outcome in row.outcomes.values()]
        np.save(path / "values.npy", np.stack(values))


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    launch(numbers_of_a_share, tmp_path)
    found = evaluate(
        MODELS[:1], DATA, Accelerator(cpu=True), protocols=["knn", "retrieval", "keypoints"],
        image_size=48, cache=tmp_path / "one",
    )  # fmt: skip
    values = [outcome.values for row in found.rows for outcome in row.outcomes.values()]
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), np.stack(values))


def test_a_wrong_name_among_several_costs_no_work(tmp_path):
    said = []
    with pytest.raises(ValueError, match="no model 'resnet81'"):
        evaluate(
            ["test_resnet@scratch", "resnet81"], DATA, Accelerator(cpu=True),
            image_size=48, cache=tmp_path, say=said.append,
        )  # fmt: skip
    assert not said


@pytest.fixture
def garden(tmp_path):
    """Sixteen images of four species in train/ and test/."""
    birds = DrawnBirds(16, num_classes=4, image_size=48)
    for index in range(16):
        folder = (
            tmp_path / "garden" / ("test" if index >= 12 else "train") / f"s{birds.labels[index]}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), birds[index]["image"][..., ::-1])
    return tmp_path / "garden"


def test_the_command_prints_and_writes(garden, tmp_path, capsys):
    words = ["eval", "test_resnet@scratch", "--data", str(garden), "--image-size", "48"]
    out = tmp_path / "out"
    main([*words, "--protocols", "knn", "--cache", str(tmp_path), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "knn_top1" in printed
    assert "garden: 12 training and 4 test images" in printed
    assert "k is 12: there are no more images" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "results.csv", "results.json", "results.md",
    ]  # fmt: skip


def test_every_count_is_what_was_used_and_unreadable_pictures_are_named(
    garden, tmp_path, capsys, monkeypatch
):
    words = ["eval", "test_resnet@scratch", "--data", str(garden), "--image-size", "48"]
    words += ["--protocols", "knn", "--cache", str(tmp_path), "--out", str(tmp_path)]
    (garden / "train" / "s0" / "0.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert "1 of 12 images of garden cannot be read, more than 1%" in error
    assert "s0/0.png: the file is empty" in error
    assert len(error.splitlines()) == 1

    monkeypatch.setattr("fg_ssl_zoo.features.extract.MOST_CORRUPT", 0.1)
    main(words)
    printed = capsys.readouterr().out
    assert "garden: 11 training and 4 test images" in printed
    assert "1 train images cannot be read and are left out: " in printed
    data = json.loads((tmp_path / "results.json").read_text())["data"]
    assert (data["num_train"], data["num_test"]) == (11, 4)
    assert data["unreadable"]["train"][0].endswith("s0/0.png: the file is empty")
    assert data["unreadable"]["test"] == []

    for path in (garden / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert "none of the 4 images of garden can be read" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocols", "kn"], "unknown protocol 'kn'; did you mean knn"),
        (["--data", "nowhere/pictures"], "nowhere/pictures"),
        (["--data", "cubs"], "unknown data set 'cubs'; did you mean cub"),
        (
            ["--data", "drawn", "num_imags=3"],
            "data.num_imags: unknown key; did you mean num_images",
        ),
        (["--data", "drawn", "cub"], "--data names one folder or data set, not drawn and cub"),
        (
            ["--finetune", "epochs=3"],
            "options are given for finetune, which is not among the protocols",
        ),
        (
            ["--protocols", "finetune", "--finetune", "class_weight=inverse"],
            "finetune.class_weight: unknown key; did you mean class_weights",
        ),
        (
            ["--protocols", "finetune", "--finetune", "train_what=layer4"],
            "finetune.train_what: ",
        ),
        (["--protocols", "linear_sdg"], "did you mean linear_sgd"),
        (["--protocols", "keypoints"], "garden has no keypoints"),
    ],
)
def test_what_is_typed_wrong_is_one_line(garden, tmp_path, change, message, capsys):
    words = ["eval", "test_resnet@scratch", "--data", str(garden), "--image-size", "48"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--cache", str(tmp_path), *change])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_unlabelled_pictures_are_refused_with_what_works(tmp_path, capsys):
    birds = DrawnBirds(4, num_classes=2, image_size=48)
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), birds[index]["image"])
    with pytest.raises(SystemExit):
        main(["eval", "test_resnet@scratch", "--data", str(tmp_path)])
    assert "has no labels; put each class into a folder of its own" in capsys.readouterr().err


def test_classes_of_one_picture_are_refused_with_what_is_needed(tmp_path, capsys):
    birds = DrawnBirds(2, num_classes=2, image_size=48)
    write_photos(tmp_path / "rare", birds, classes=True)
    with pytest.raises(SystemExit):
        main(["eval", "test_resnet@scratch", "--data", str(tmp_path / "rare")])
    assert "error: rare has no labelled test images: two or more" in capsys.readouterr().err
