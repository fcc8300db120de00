"""Parquet files as a data set of the Hub has them."""


def save_parquet(file, images, labels, names, group=None):
    """Encoded images with class labels.

    Args:
        file: The file to write; its folder is made.
        images: Dictionaries of `bytes` and `path`.
        labels: A number for each image.
        names: Names of the classes.
        group: Rows in a row group; as many as `datasets` puts there when not given.
    """
    import datasets

    datasets.disable_progress_bars()
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows = {"image": images, "label": labels}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    table.to_parquet(file, batch_size=group)
