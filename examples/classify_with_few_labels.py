"""Few labels, many images: logistic regression on the features of an exported backbone.

    python examples/classify_with_few_labels.py runs/fgssl_resnet18_drawn.simclr/export
    python examples/classify_with_few_labels.py runs/NAME/export photos --shots 5

`photos` contains one folder per class, or `train/` and `test/` with such folders; without them, a
fifth of each class is held out for the test. Without `photos`, drawn birds are used. Only the
classifier is trained, on a few labelled images of each class, so there are no epochs.
`fgssl classifier` does the same and writes a folder.
"""

import argparse

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.sample import Images


def main(folder: str, photos: str | None = None, shots: int = 2) -> float:
    """Accuracy in 0..1 of a linear classifier on frozen features.

    Args:
        folder: Of the exported backbone.
        photos: Folder of labelled images; drawn birds when not given.
        shots: Labelled images of each class.
    """
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def features(images: Images, rows: np.ndarray) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for some in np.array_split(rows, len(rows) // 64 + 1):
                pictures = [transform(Image.fromarray(images[int(row)]["image"])) for row in some]
                found.append(model(torch.stack(pictures)).numpy())
        return np.concatenate(found)

    if photos is None:
        size = model.pretrained_cfg["input_size"][-1]
        labelled = DrawnBirds(20 * shots, num_classes=20, image_size=size, seed=10)
        others = DrawnBirds(200, num_classes=20, image_size=size, seed=11)
    else:
        labelled, others = load_splits(Data(path=photos))
    if labelled.labels is None or others is None or others.labels is None:
        raise SystemExit(f"{photos}: put each class into a folder of its own")
    rows = [np.flatnonzero(labelled.labels == c)[:shots] for c in range(len(labelled.classes))]
    few = np.concatenate(rows)
    classifier = LogisticRegression(max_iter=5000)
    classifier.fit(features(labelled, few), labelled.labels[few])
    scored = features(others, np.arange(len(others)))
    accuracy = float(classifier.score(scored, others.labels))
    chance = 1 / len(labelled.classes)
    print(f"{shots} labels a class: {accuracy:.1%} right (chance {chance:.1%})")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of the backbone, as above")
    parser.add_argument("photos", nargs="?", help="a folder; drawn birds when not given")
    parser.add_argument("--shots", type=int, default=2, help="labelled images of each class (2)")
    chosen = parser.parse_args()
    main(chosen.folder, chosen.photos, chosen.shots)
