"""Fine-tune a published backbone with transformers' Trainer; fg_ssl_zoo is not needed.

    python examples/finetune_with_trainer.py OWNER/NAME photos
    python examples/finetune_with_trainer.py runs/NAME/export photos

`photos/train` and `photos/test` hold a folder of pictures for each class. The result, with its
class names, lies in `finetuned/`: transformers opens it, and timm too (`local-dir:finetuned`).
"""

import sys
from typing import Any

import torch
from torchvision.datasets import ImageFolder
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)


def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """A batch under the names that the model has for it."""
    pixels, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}


def accuracy(predicted: Any) -> dict[str, float]:
    """Share of the pictures whose largest logit is the right one."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def main(name: str, photos: str, out: str = "finetuned", **settings: Any) -> float:
    """Accuracy in 0..1 on `photos/test`; `settings` are those of `TrainingArguments`."""
    processor = AutoImageProcessor.from_pretrained(name)
    train = ImageFolder(f"{photos}/train", processor.train_transforms)
    test = ImageFolder(f"{photos}/test", processor.val_transforms)
    model = AutoModelForImageClassification.from_pretrained(
        name, num_labels=len(train.classes), id2label=dict(enumerate(train.classes)),
        label2id=train.class_to_idx,
    )  # fmt: skip
    arguments = {
        "num_train_epochs": 20, "learning_rate": 2e-4, "weight_decay": 0.05, "warmup_steps": 0.1,
        "per_device_train_batch_size": 32, "eval_strategy": "epoch", "save_strategy": "no",
        "report_to": "none", **settings,
    }  # fmt: skip
    trainer = Trainer(
        model, TrainingArguments(out, remove_unused_columns=False, **arguments),
        data_collator=collate, train_dataset=train, eval_dataset=test, compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(out)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{main(*sys.argv[1:]):.1%} of the test pictures are right")
