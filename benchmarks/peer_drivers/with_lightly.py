"""lightly: the loop of its SimCLR example (SGD, one pass a view) around a timm network."""

from clock import Task, drive, loader_of


def train(task: Task) -> None:
    """Train for ever."""
    import timm
    import torch
    from lightly.data import LightlyDataset  # pyright: ignore[reportMissingImports]
    from lightly.loss import NTXentLoss  # pyright: ignore[reportMissingImports]
    from lightly.models.modules.heads import (  # pyright: ignore[reportMissingImports]
        SimCLRProjectionHead,
    )
    from lightly.transforms import SimCLRTransform  # pyright: ignore[reportMissingImports]

    backbone = timm.create_model(task.backbone, num_classes=0, **task.model_options)
    head = SimCLRProjectionHead(backbone.num_features, 2048, 128)
    network = torch.nn.Sequential(backbone, head)
    dataset = LightlyDataset(task.images, transform=SimCLRTransform(input_size=task.image_size))
    loader = loader_of(dataset, task)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06)
    while True:
        for views, *_ in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=task.bf16):
                z0, z1 = (network(view) for view in views)
                loss = criterion(z0, z1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    drive(train)
