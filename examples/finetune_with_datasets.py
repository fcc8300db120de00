"""Fine-tune a published backbone on a data set of the Hub, with datasets, timm and accelerate.

    python examples/finetune_with_datasets.py hf-hub:OWNER/NAME OWNER/DATASET
    accelerate launch examples/finetune_with_datasets.py local-dir:runs/NAME/export photos

The second argument is a Hub data set with the columns `image` and `label`, such as
`bentrevett/caltech-ucsd-birds-200-2011`, or a folder with one folder per class or with `train/` and
`test/`. Without a test split, a fifth of each class is held out. `--epochs 5` trains for five
passes.
"""

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader


def main(name: str, data: str, epochs: int = 20, lr: float = 3e-4, batch_size: int = 32) -> float:
    """Accuracy in 0..1 on the split `test`."""
    accelerator = Accelerator()
    is_folder = Path(data).is_dir()
    sets = load_dataset("imagefolder", data_dir=data) if is_folder else load_dataset(data)
    if "test" not in sets:
        sets = sets["train"].train_test_split(0.2, stratify_by_column="label", seed=0)
    classes = sets["train"].features["label"].names
    model = timm.create_model(name, pretrained=True, num_classes=len(classes))
    pixels = timm.data.resolve_model_data_config(model)

    def loader(split: str, is_training: bool) -> DataLoader:
        transform = timm.data.create_transform(**pixels, is_training=is_training)

        def seen(rows: dict[str, Any]) -> dict[str, Any]:
            images = [transform(image.convert("RGB")) for image in rows["image"]]
            return {"image": images, "label": rows["label"]}

        shown = sets[split].select_columns(["image", "label"]).with_transform(seen)
        return DataLoader(shown, batch_size, shuffle=is_training)

    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    model, optimizer, train, test = accelerator.prepare(
        model, optimizer, loader("train", True), loader("test", False)
    )
    total = epochs * len(train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer.optimizer, lr, total)
    for epoch in range(epochs):
        model.train()
        for batch in train:
            loss = F.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    model.eval()
    hits = []
    with torch.inference_mode():
        for batch in test:
            right = model(batch["image"]).argmax(1) == batch["label"]
            hits.append(accelerator.gather_for_metrics(right).cpu())
    accuracy = torch.cat(hits).float().mean().item()
    accelerator.print(f"{accuracy:.1%} of {len(torch.cat(hits))} test images are right")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the backbone, as above")
    parser.add_argument("data", help="a dataset of the Hub, or a folder")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images (20)")
    chosen = parser.parse_args()
    main(chosen.name, chosen.data, chosen.epochs)
