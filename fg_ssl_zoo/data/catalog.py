"""The catalogue of fine-grained data sets for `data.name`: sources, columns and terms.

Ids, splits and columns were read from public pages in November 2026 without a download. If a column
has changed since, the error names the existing columns, and `data.columns` replaces ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fg_ssl_zoo.config import nearest


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        title: Full name and year.
        terms: Terms of use of the images, not of the mirror.
        homepage: Page of the official download.
        hub_id: Mirror on the Hugging Face Hub; `None` if there is only the official download.
        columns: Column names of the mirror.
        train_split, test_split: Split names of the mirror; `+` joins splits.
    """

    title: str
    terms: str
    homepage: str
    hub_id: str | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: {"image": "image", "label": "label"})
    train_split: str = "train"
    test_split: str = "test"


CATALOG: dict[str, Entry] = {
    "cub": Entry(
        "Caltech-UCSD Birds-200-2011",
        "non-commercial research and education; the images belong to their Flickr owners",
        "https://www.vision.caltech.edu/datasets/cub_200_2011",
        "bentrevett/caltech-ucsd-birds-200-2011",
    ),
    "aircraft": Entry(
        "FGVC-Aircraft (2013)",
        "non-commercial research only",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        "HuggingFaceM4/FGVC-Aircraft",
        columns={"image": "image", "label": "variant"},
        train_split="train+validation",  # the official trainval
    ),
    "cars": Entry(
        "Stanford Cars (2013)",
        "non-commercial research and education, as ImageNet",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        "tanganke/stanford_cars",
    ),
    "flowers": Entry(
        "Oxford Flowers 102 (2008)",
        "none stated",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        "dpdl-benchmark/oxford_flowers102",
        train_split="train+validation",
    ),
    "pets": Entry(
        "Oxford-IIIT Pet (2012)",
        "CC BY-SA 4.0; the images belong to their owners",
        "https://www.robots.ox.ac.uk/~vgg/data/pets",
        "timm/oxford-iiit-pet",
    ),
    "cassava": Entry(
        "Cassava Leaf Disease (iCassava 2019)",
        "see the homepage",
        "https://www.kaggle.com/c/cassava-disease",
        "dpdl-benchmark/cassava",
    ),
    "nabirds": Entry(
        "NABirds (2015)",
        "non-commercial research, after agreeing to Cornell's terms",
        "https://dl.allaboutbirds.org/nabirds",
    ),
}


def find_entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ValueError: Unknown, with the nearest names.
    """
    if name in CATALOG:
        return CATALOG[name]
    known = nearest(name, ["drawn", *CATALOG])
    raise ValueError(
        f"data.name: unknown data set '{name}'{known}{'' if known.endswith('?') else '.'} "
        "For your own images, set data.path=FOLDER or data.hub_id=OWNER/NAME"
    )
