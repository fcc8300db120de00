"""Fine-tune a published backbone with transformers' Trainer; fg_ssl_zoo is not needed.

It needs transformers, timm, torchvision and accelerate.

    python examples/finetune_with_trainer.py OWNER/NAME photos
    python examples/finetune_with_trainer.py runs/NAME/export photos

`photos` contains one folder per class, or `train/` and `test/` with such folders; without them,
every fifth image is held out for the test. `--epochs 5` trains for five passes. The result is
written to `finetuned/` with its class names; transformers and timm (`local-dir:finetuned`) open it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)


def pictures(photos: str, learn: Any, look: Any) -> tuple[Dataset, Dataset, list[str]]:
    """Training images, test images and class names.

    Args:
        photos: Holds `train` and `test`, or the class folders themselves.
        learn: Transform of the training images.
        look: Transform of the test images.
    """
    if Path(photos, "train").is_dir():
        train = ImageFolder(f"{photos}/train", learn)
        return train, ImageFolder(f"{photos}/test", look), train.classes
    train, test = ImageFolder(photos, learn), ImageFolder(photos, look)
    held_out = range(0, len(train), 5)
    others = [index for index in range(len(train)) if index not in held_out]
    return Subset(train, others), Subset(test, held_out), train.classes


def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """A batch under the names that the model has for it."""
    pixels, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}


def accuracy(predicted: Any) -> dict[str, float]:
    """Share of the images whose largest logit is the right one."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def main(name: str, photos: str, out: str = "finetuned", **settings: Any) -> float:
    """Accuracy in 0..1 on the test images; `settings` are those of `TrainingArguments`."""
    processor = AutoImageProcessor.from_pretrained(name)
    train, test, classes = pictures(photos, processor.train_transforms, processor.val_transforms)
    model = AutoModelForImageClassification.from_pretrained(
        name, num_labels=len(classes), id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )  # fmt: skip
    arguments = {
        "num_train_epochs": 20, "learning_rate": 2e-4, "weight_decay": 0.05, "warmup_steps": 0.1,
        "per_device_train_batch_size": 32, "eval_strategy": "epoch", "save_strategy": "no",
        "report_to": "none", "dataloader_pin_memory": torch.cuda.is_available(), **settings,
    }  # fmt: skip
    trainer = Trainer(
        model, TrainingArguments(out, remove_unused_columns=False, **arguments),
        data_collator=collate, train_dataset=train, eval_dataset=test, compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(out)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the backbone, as above")
    parser.add_argument("photos", help="a folder")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images (20)")
    chosen = parser.parse_args()
    right = main(chosen.name, chosen.photos, num_train_epochs=chosen.epochs)
    print(f"{right:.1%} of the test images are right")
