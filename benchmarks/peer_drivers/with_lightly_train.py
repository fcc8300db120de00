"""lightly-train: `lightly_train.pretrain`, with its defaults for SimCLR."""

from clock import Task, drive


def train(task: Task) -> None:
    """Pretrain by one call."""
    import lightly_train  # pyright: ignore[reportMissingImports]
    import timm

    lightly_train.pretrain(
        out=task.out,
        data=task.images,
        model=timm.create_model(task.backbone, num_classes=0, **task.model_options),
        method="simclr",
        epochs=100,
        batch_size=task.batch_size,
        num_workers=task.workers,
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if task.bf16 else "auto",
        transform_args={"image_size": (task.image_size, task.image_size)},
        overwrite=True,
    )


if __name__ == "__main__":
    drive(train)
