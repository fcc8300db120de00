"""Tasks with features made by hand, for tests of protocols."""

import numpy as np
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.evaluation.protocol import Task
from fg_ssl_zoo.features.extract import Features


def features(rows, labels) -> Features:
    """Features of a split; the image numbers are 0, 1, ..."""
    rows = torch.as_tensor(np.asarray(rows), dtype=torch.float32)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    return Features(rows, labels, torch.arange(len(labels)))


def made_task(train: Features, test: Features, *, num_classes: int, seed: int = 0) -> Task:
    """A task whose protocols must look at nothing but the features."""
    pictures = DrawnBirds(2, num_classes=2, image_size=32)
    return Task(
        train=train,
        test=test,
        classes=[f"class {number}" for number in range(num_classes)],
        backbone=create_backbone("test_vit", image_size=32),
        train_images=pictures,
        test_images=pictures,
        accelerator=Accelerator(cpu=True),
        seed=seed,
    )


def perfect_task(num_classes: int = 5, each: int = 6) -> Task:
    """The features are the classes themselves."""
    labels = np.tile(np.arange(num_classes), each)
    rows = np.eye(num_classes)[labels]
    return made_task(features(rows, labels), features(rows, labels), num_classes=num_classes)


def random_task(num_classes: int = 5, each: int = 200, width: int = 8) -> Task:
    """The features know nothing of the classes."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(num_classes), each)
    train, test = generator.normal(size=(2, len(labels), width))
    return made_task(features(train, labels), features(test, labels), num_classes=num_classes)


def some(n, d, classes=3, seed=0):
    """Rows around a centre for each class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator)
    labels = torch.arange(n) % classes
    return centres[labels] + 2 * torch.randn(n, d, generator=generator), labels
