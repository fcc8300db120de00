"""`fgssl classifier` and `fgssl predict`: train a classifier on few labels, and apply it."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import (
    add_cache,
    add_image_size,
    add_model_and_data,
    add_verb,
    count,
    write_csv,
)
from fg_ssl_zoo.cli.labelled import features_of_readable
from fg_ssl_zoo.config import data_of, home_path

if TYPE_CHECKING:
    from fg_ssl_zoo.data.inputs import GivenImages
    from fg_ssl_zoo.data.sample import Images
    from fg_ssl_zoo.evaluation.head import Head
    from fg_ssl_zoo.features.embedder import Embedder
    from fg_ssl_zoo.features.extract import Features


def add_verbs(verbs: Any) -> None:
    """Add the two verbs."""
    classifier = add_verb(
        verbs,
        "classifier",
        "Train a classifier on a backbone, and write it as a folder for timm, transformers and "
        "onnxruntime.",
    )
    add_model_and_data(classifier)
    classifier.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="new folder of the classifier"
    )
    classifier.add_argument("--shots", type=int, help="labelled images per class (default: all)")
    classifier.add_argument(
        "--head", choices=("linear", "finetune"), default="linear",
        help="linear: on frozen features, in seconds (default); finetune: then train the whole "
        "network with it",
    )  # fmt: skip
    classifier.add_argument(
        "--epochs", type=float, help="passes over the images with --head finetune (default 20)"
    )
    add_image_size(classifier)
    classifier.add_argument(
        "--seed", type=int, default=0, help="seed of the selection of --shots (default 0)"
    )
    add_cache(classifier)
    classifier.set_defaults(run=_classifier, out_folders=("out", "cache"))

    predict = add_verb(
        verbs,
        "predict",
        "Write the predicted class and all probabilities of images into a CSV file.",
    )
    predict.add_argument(
        "model",
        metavar="FOLDER",
        help="folder that fgssl classifier wrote, or one with the same files",
    )
    predict.add_argument(
        "pictures", nargs="+", metavar="IMAGE", help="image files or folders of images"
    )
    predict.add_argument("--out", type=Path, required=True, help="the .csv file to write")
    predict.add_argument(
        "--batch-size", type=count, default=64, help="images in one forward pass (default 64)"
    )
    predict.set_defaults(run=_predict, out_files=("out",))


def _classifier(chosen: argparse.Namespace) -> None:
    import torch

    from fg_ssl_zoo.data.datasets import Subset, load_splits
    from fg_ssl_zoo.data.loader import resolve_num_workers
    from fg_ssl_zoo.evaluation.finetuned import EPOCHS, fine_tuned
    from fg_ssl_zoo.evaluation.head import fit_head
    from fg_ssl_zoo.evaluation.protocols.low_shot import draw_shots
    from fg_ssl_zoo.features.embedder import load
    from fg_ssl_zoo.features.extract import extract, ready
    from fg_ssl_zoo.hub.classifier_folder import check_folder_of_classifier, write_classifier
    from fg_ssl_zoo.ops.distributed import world_size

    _check_numbers(chosen)
    check_folder_of_classifier(home_path(chosen.out))  # before the work
    data = data_of(chosen.data)
    train, test = load_splits(data, seed=chosen.seed)
    if train.labels is None:
        raise ValueError("a classifier needs labels; put each class into a folder of its own")
    embedder = load(chosen.model, image_size=chosen.image_size, crop_pct=data.crop_pct)
    train_rows = features_of_readable(embedder, train, data, chosen.cache)
    test_rows = None
    if test is not None:
        test_rows = features_of_readable(embedder, test, data, chosen.cache)
    assert train_rows.labels is not None
    features, labels = train_rows.features, train_rows.labels
    rows = torch.arange(len(labels))
    if chosen.shots:
        rows = draw_shots(labels.numpy(), chosen.shots, chosen.seed)
    head = fit_head(features[rows], labels[rows], train.classes)
    backbone, accuracy, epochs = embedder.backbone, _accuracy(head, train, test_rows), None
    is_main = embedder.accelerator.is_main_process
    if is_main:
        print(f"{len(head.classes)} classes, {len(rows)} labelled images", flush=True)
        _say_accuracy(accuracy, test_rows, "")
    if chosen.head == "finetune":
        epochs = chosen.epochs or EPOCHS
        workers = resolve_num_workers(data.num_workers, world_size())
        labelled = Subset(train, train_rows.indices[rows].numpy())
        backbone, head = fine_tuned(
            backbone, head, labelled, embedder.accelerator,
            epochs=epochs, seed=chosen.seed, num_workers=workers,
        )  # fmt: skip
        if test is not None:
            test_rows = extract(
                ready(backbone, embedder.accelerator), test, embedder.accelerator,
                crop_pct=embedder.crop_pct, num_workers=workers,
            )  # fmt: skip
        accuracy = _accuracy(head, train, test_rows)
        if is_main:
            _say_accuracy(accuracy, test_rows, f" after {epochs:g} passes of fine-tuning")
    if not is_main:
        return
    print(f"writing {chosen.out}", flush=True)
    backbone.crop_pct = embedder.crop_pct
    folder = write_classifier(
        backbone, head.weight, head.bias, head.classes, chosen.out,
        num_labelled=len(rows), accuracy=accuracy,
        num_test=0 if test_rows is None else len(test_rows.features), finetuned_epochs=epochs,
    )  # fmt: skip
    print(f"{folder}: timm and transformers open it; its README.md shows how")


def _check_numbers(chosen: argparse.Namespace) -> None:
    """Refuse options that do not fit together, and numbers outside of their range."""
    if chosen.epochs is not None and chosen.head != "finetune":
        raise ValueError("--epochs: only --head finetune has passes over the images")
    if chosen.epochs is not None and not 0 < chosen.epochs < math.inf:
        raise ValueError(f"--epochs: {chosen.epochs:g} is not a number above 0")
    if chosen.shots is not None and chosen.shots < 1:
        raise ValueError(f"--shots: {chosen.shots} is not 1 or more")


def _accuracy(head: "Head", train: "Images", rows: "Features | None") -> float | None:
    """Accuracy on labelled images; `None` if there are none."""
    if rows is None or rows.labels is None:
        return None
    predicted = head.probabilities(rows.features).argmax(dim=1).tolist()
    right = [
        head.classes[row] == train.classes[label]
        for row, label in zip(predicted, rows.labels.tolist(), strict=True)
    ]
    return sum(right) / len(right)


def _say_accuracy(accuracy: float | None, rows: "Features | None", when: str) -> None:
    if accuracy is not None and rows is not None:
        print(f"accuracy on {len(rows.features)} other images{when}: {accuracy:.1%}", flush=True)


def _predict(chosen: argparse.Namespace) -> None:
    import torch

    from fg_ssl_zoo.backbones.create import open_classifier
    from fg_ssl_zoo.backbones.weights.config import read_config
    from fg_ssl_zoo.backbones.weights.folder import exported_folder
    from fg_ssl_zoo.data.datasets import why_unreadable
    from fg_ssl_zoo.data.inputs import GivenImages
    from fg_ssl_zoo.features.embedder import load
    from fg_ssl_zoo.features.extract import some

    if chosen.out.suffix.lower() != ".csv":
        raise ValueError(f"--out {chosen.out}: the suffix is .csv")
    folder = home_path(chosen.model)
    names = read_config(exported_folder(folder)).get("label_names") or []
    linear = open_classifier(str(folder)) if names else None
    if linear is None or len(names) != linear.out_features:
        raise ValueError(
            f"{folder} has no classifier with class names; fgssl classifier writes one"
        )
    images = GivenImages(chosen.pictures)
    embedder = load(str(folder))
    features, which = _features(embedder, images, chosen.batch_size)
    if not which:
        raise ValueError(f"none of the {len(images)} images can be read; nothing is written")
    with torch.inference_mode():
        probabilities = linear.cpu()(features).softmax(dim=1)
    if not embedder.accelerator.is_main_process:
        return
    rows = [["file", "class", "probability", *names]]
    for row, index in zip(probabilities, which, strict=True):
        best = int(row.argmax())
        cells = [f"{p:.4f}" for p in row.tolist()]
        rows.append([str(images.items[index]), names[best], cells[best], *cells])
    write_csv(chosen.out, rows)
    print(f"{chosen.out}: {len(which)} images")
    if lost := sorted({*range(len(images))} - {*which}):
        named = some([why_unreadable(images, index) for index in lost[:4]])
        print(f"{len(lost)} images cannot be read and are left out: {named}")


def _features(embedder: "Embedder", images: "GivenImages", batch_size: int) -> Any:
    """(n, d) features of the images that can be read, and their (n,) numbers."""
    import torch

    from fg_ssl_zoo.features.extract import stream

    batches = list(
        stream(
            embedder.backbone, images, embedder.accelerator, range(len(images)),
            crop_pct=embedder.crop_pct, batch_size=batch_size,
        )
    )  # fmt: skip
    rows = [features for features, _ in batches]
    return torch.cat(rows), torch.cat([which for _, which in batches]).tolist()
