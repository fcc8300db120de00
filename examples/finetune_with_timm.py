"""Fine-tune a published backbone with timm and torch alone.

    python examples/finetune_with_timm.py hf-hub:OWNER/NAME photos
    python examples/finetune_with_timm.py local-dir:runs/NAME/export photos

`photos/train` and `photos/test` hold a folder of pictures for each class.
"""

import sys

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def main(name: str, photos: str, epochs: int = 20, lr: float = 5e-4, batch_size: int = 32) -> float:
    """Accuracy in 0..1 on `photos/test`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classes = ImageFolder(f"{photos}/train").classes
    model = timm.create_model(name, pretrained=True, num_classes=len(classes)).to(device)
    pixels = timm.data.resolve_model_data_config(model)
    learn = timm.data.create_transform(**pixels, is_training=True)
    look = timm.data.create_transform(**pixels)
    train = DataLoader(ImageFolder(f"{photos}/train", learn), batch_size, shuffle=True)
    test = DataLoader(ImageFolder(f"{photos}/test", look), batch_size)
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
    print(f"{right / len(test.dataset):.1%} of {len(test.dataset)} test pictures are right")
    return right / len(test.dataset)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
