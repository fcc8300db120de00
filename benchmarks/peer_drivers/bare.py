"""A bare loop, the yardstick: timm's network, OpenCV, NT-Xent and AdamW, with all fast switches.

It imports torch, timm and OpenCV only. It has no log, no checkpoint, no measurement and no checks,
and trains in bf16 where the processor has it.
"""

import ctypes
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clock import Task, drive, loader_of


def train(task: Task) -> None:
    """Train for ever."""
    import timm
    import torch
    from timm.layers import set_fused_attn
    from torch.nn import functional as F

    keep_memory()
    set_fused_attn(False)  # faster on a CPU, for short sequences
    backbone = timm.create_model(task.backbone, num_classes=0, **task.model_options)
    width: Any = backbone.num_features
    network = torch.nn.Sequential(
        backbone,
        torch.nn.Linear(width, 2048, bias=False),
        torch.nn.BatchNorm1d(2048),
        torch.nn.ReLU(inplace=True),
        torch.nn.Linear(2048, 128),
    )
    if not task.backbone.startswith("vit_"):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    mean = torch.tensor((0.485, 0.456, 0.406)) * 255
    scale = 1 / (torch.tensor((0.229, 0.224, 0.225)) * 255)
    own = torch.arange(2 * task.batch_size)
    bf16 = has_bf16()
    for pixels in batches(task):  # (2, b, h, w, 3) of uint8
        images = pixels.flatten(0, 1).float().sub_(mean).mul_(scale).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            z = network(images)
        z = F.normalize(z.float(), dim=1)
        logits = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
        loss = F.cross_entropy(logits, own.roll(task.batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def batches(task: Task) -> Iterator[Any]:
    """Shuffled batches of two views, for ever."""
    import cv2

    cv2.setNumThreads(0)
    paths = sorted(str(path) for path in Path(task.images).rglob("*.jpg"))

    class Pictures:
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            image: Any = cv2.imread(paths[index], cv2.IMREAD_COLOR_RGB)
            return view(image, task.image_size), view(image, task.image_size)

    def collate(samples: list[Any]) -> Any:
        import numpy as np
        import torch

        return torch.from_numpy(np.stack([np.stack(one) for one in zip(*samples, strict=True)]))

    loader = loader_of(Pictures(), task, collate_fn=collate)
    while True:
        yield from loader


def view(image: Any, size: int) -> Any:
    """A random crop (8 to 100 % of the area), flipped, with changed colours, perhaps blurred."""
    import cv2

    height, width = image.shape[:2]
    area, ratio = height * width * random.uniform(0.08, 1), math.exp(random.uniform(-0.288, 0.288))
    h = min(height, max(1, round(math.sqrt(area / ratio))))
    w = min(width, max(1, round(math.sqrt(area * ratio))))
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    crop = image[top : top + h, left : left + w]
    shrinks = max(h, w) > size
    crop = cv2.resize(
        crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    if random.random() < 0.5:
        crop = cv2.flip(crop, 1)
    if random.random() < 0.8:
        crop = cv2.transform(crop, colours())
    if random.random() < 0.2:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if random.random() < 0.5:
        crop = cv2.GaussianBlur(crop, (0, 0), random.uniform(0.1, 2))
    return crop


def colours() -> Any:
    """Brightness, contrast, saturation and hue as one 3x4 matrix (hue is a rotation of YIQ)."""
    import numpy as np

    brightness, contrast, saturation = (random.uniform(0.2, 1.8) for _ in range(3))
    angle = 2 * math.pi * random.uniform(-0.2, 0.2)
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.linalg.inv(to_yiq) @ turn @ to_yiq * brightness * contrast
    return np.hstack([matrix, np.full((3, 1), 127.5 * (1 - contrast) * brightness)])


def has_bf16() -> bool:
    """Whether the processor has instructions for bf16; elsewhere it is emulated and slow."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16"))


def keep_memory() -> None:
    """Tell glibc to keep large blocks instead of returning them after each step."""
    glibc = ctypes.CDLL(None)
    glibc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    glibc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


if __name__ == "__main__":
    drive(train)
