"""fg_ssl_zoo: `pretrain` with the optimizer of the built-in recipe; the rest are defaults."""

from fg_ssl_zoo.config import parse_recipe
from fg_ssl_zoo.pretrain import pretrain  # before torch, as in a user's script

# isort: split
from clock import Task, drive


def train(task: Task) -> None:
    """Pretrain by a recipe."""
    recipe = {
        "name": "peers",
        "backbone": task.backbone,
        "data": {
            "path": task.images,
            "image_size": task.image_size,
            "num_workers": task.workers,
        },
        "stages": [
            {
                "method": "simclr",
                "options": {"preset": "simclr"},  # the strengths that the other libraries have
                "train": {
                    "epochs": 100,
                    "batch_size": task.batch_size,
                    "optimizer": "adamw",
                    "lr": 4e-3,
                    "lr_scaling": "sqrt",
                    "weight_decay": 0.05,
                },
            }
        ],
        "speed": {"threads": 1},
        "output": task.out,
    }
    pretrain(parse_recipe(recipe))


if __name__ == "__main__":
    drive(train)
