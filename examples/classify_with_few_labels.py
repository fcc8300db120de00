"""Few labels, many pictures: logistic regression on the features of an exported backbone.

    python examples/classify_with_few_labels.py runs/fgssl_resnet18_drawn.simclr/export

Trains on two labelled birds of each drawn species and scores on others; replace the two calls of
`DrawnBirds` with `load_splits(Data(path="photos"))` for your own pictures.
"""

import sys

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from fg_ssl_zoo.data.drawn import DrawnBirds


def main(folder: str, shots: int = 2) -> float:
    """Accuracy in 0..1 of a linear classifier on frozen features."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def features(birds: DrawnBirds) -> np.ndarray:
        pictures = [transform(Image.fromarray(bird["image"])) for bird in birds]
        with torch.inference_mode():
            return model(torch.stack(pictures)).numpy()

    classes, size = 20, model.pretrained_cfg["input_size"][-1]
    labelled = DrawnBirds(shots * classes, num_classes=classes, image_size=size, seed=10)
    others = DrawnBirds(10 * classes, num_classes=classes, image_size=size, seed=11)
    classifier = LogisticRegression(max_iter=5000).fit(features(labelled), labelled.labels)
    accuracy = float(classifier.score(features(others), others.labels))
    print(f"{shots} labels a class: {accuracy:.1%} right (chance {1 / classes:.1%})")
    return accuracy


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
