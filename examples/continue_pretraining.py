"""Continue the self-supervised training of a published model with transformers' Trainer.

    python examples/continue_pretraining.py OWNER/NAME photos
    python examples/continue_pretraining.py runs/NAME/export photos --epochs 5

It needs fg_ssl_zoo, which also installs transformers and accelerate. `photos` contains class
folders, `train/` and `test/` with such folders, or images alone. Heads, teachers and queues of the
method continue from their saved state; labels are not read. `continued/` then contains the method,
and `continued/backbone.safetensors` its backbone, for `init` of a recipe or timm's
`pretrained_cfg_overlay=dict(file=...)`.
"""

import argparse
from typing import Any

from safetensors.torch import save_file
from transformers import AutoModelForPreTraining, Trainer, TrainingArguments

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import load_images
from fg_ssl_zoo.hf_pretraining import FollowTheStudent, collate_views, pictures_for


def main(
    name: str, photos: str, steps: int = 1000, batch_size: int = 64, out: str = "continued",
    subfolder: str = "pretraining", epochs: int | None = None, **settings: Any,
) -> list[float]:  # fmt: skip
    """The loss of every step.

    Args:
        name: A published model or an exported folder.
        photos: Folder of the images.
        steps: Number of training steps.
        batch_size: Images in one step; all images if there are fewer.
        out: Folder of the result.
        subfolder: Subfolder of the method in the published model.
        epochs: Passes over the images; replaces `steps`.
        **settings: Further settings of `TrainingArguments`.
    """
    model = AutoModelForPreTraining.from_pretrained(name, subfolder=subfolder)
    images = load_images(Data(path=photos), "train")
    batch_size = min(batch_size, len(images))
    if epochs is not None:
        steps = epochs * len(images) // batch_size
    arguments = {
        "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
        "save_strategy": "no", "logging_steps": 1, "report_to": "none", **settings,
    }  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(
            out, max_steps=steps, per_device_train_batch_size=batch_size,
            train_sampling_strategy="sequential", remove_unused_columns=False, **arguments,
        ),
        data_collator=collate_views,
        train_dataset=pictures_for(model, images, batch_size=batch_size, steps=steps),
        callbacks=[FollowTheStudent()],  # without it no teacher moves
    )  # fmt: skip
    trainer.train()
    trainer.save_model(out)
    weights = model.method.backbone.model.state_dict()
    save_file({key: value.cpu() for key, value in weights.items()}, f"{out}/backbone.safetensors")
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the model, as above")
    parser.add_argument("photos", help="a folder")
    parser.add_argument("--epochs", type=int, help="passes over the images (1000 steps)")
    chosen = parser.parse_args()
    main(chosen.name, chosen.photos, epochs=chosen.epochs)
