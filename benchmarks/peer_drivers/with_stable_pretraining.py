"""stable-pretraining: the SimCLR example of its README on a folder of images.

Without online probes and without a logger, which makes it faster. The views have the strengths of
the other libraries.
"""

from typing import Any

from clock import Task, drive, loader_of


def train(task: Task) -> None:
    """Fit by Lightning."""
    import lightning as pl  # pyright: ignore[reportMissingImports]
    import stable_pretraining as spt  # pyright: ignore[reportMissingImports]
    from stable_pretraining import forward  # pyright: ignore[reportMissingImports]
    from torch import nn
    from torchvision.datasets import ImageFolder

    dataset = spt.data.FromTorchDataset(
        ImageFolder(task.images),
        names=["image", "label"],
        transform=views(task.image_size),
    )
    loader = loader_of(dataset, task)
    backbone = spt.backbone.from_timm(task.backbone, num_classes=0, **task.model_options)
    head = nn.Sequential(
        nn.Linear(backbone.num_features, 2048, bias=False),
        nn.BatchNorm1d(2048),
        nn.ReLU(inplace=True),
        nn.Linear(2048, 128),
    )
    module = spt.Module(
        backbone=backbone,
        projector=head,
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
        optim={
            "optimizer": {"type": "LARS", "lr": 0.3, "weight_decay": 1e-6},
            "scheduler": {"type": "LinearWarmupCosineAnnealing"},
            "interval": "epoch",
        },
    )
    trainer = pl.Trainer(
        max_epochs=100,
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if task.bf16 else "32-true",
        logger=False,
        num_sanity_val_steps=0,
    )
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()


def views(size: int) -> Any:
    """Two views with the strengths of lightly's `SimCLRTransform`."""
    from stable_pretraining.data import transforms  # pyright: ignore[reportMissingImports]

    def view() -> Any:
        return transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.PILGaussianBlur(sigma=(0.1, 2.0), p=0.5),
            transforms.ToImage(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        )

    return transforms.MultiViewTransform([view(), view()])


if __name__ == "__main__":
    drive(train)
