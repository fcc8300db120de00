"""Fine-tune a published backbone with timm and torch alone.

    python examples/finetune_with_timm.py hf-hub:OWNER/NAME photos
    python examples/finetune_with_timm.py local-dir:runs/NAME/export photos

`photos` contains one folder per class, or `train/` and `test/` with such folders; without them,
every fifth image is held out for the test. `--epochs 5` trains for five passes.
"""

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder


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


def main(name: str, photos: str, epochs: int = 20, lr: float = 5e-4, batch_size: int = 32) -> float:
    """Accuracy in 0..1 on the test images."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classes = pictures(photos, None, None)[2]
    model = timm.create_model(name, pretrained=True, num_classes=len(classes)).to(device)
    pixels = timm.data.resolve_model_data_config(model)
    learn = timm.data.create_transform(**pixels, is_training=True)
    look = timm.data.create_transform(**pixels)
    seen, others, _ = pictures(photos, learn, look)
    train = DataLoader(seen, batch_size, shuffle=True)
    test = DataLoader(others, batch_size)
    # Early layers learn more slowly: each at 0.75 times the rate of the next one
    optimizer = create_optimizer_v2(model, "adamw", lr, weight_decay=0.05, layer_decay=0.75)
    total = epochs * len(train)
    schedule = CosineLRScheduler(optimizer, total, warmup_t=total // 10, t_in_epochs=False)
    for epoch in range(epochs):
        model.train()
        for step, (images, labels) in enumerate(train, start=epoch * len(train)):
            schedule.step_update(step)
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    model.eval()
    with torch.inference_mode():
        right = sum((model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in test)
    print(f"{right / len(test.dataset):.1%} of {len(test.dataset)} test images are right")
    return right / len(test.dataset)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the backbone, as above")
    parser.add_argument("photos", help="a folder")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images (20)")
    chosen = parser.parse_args()
    main(chosen.name, chosen.photos, chosen.epochs)
