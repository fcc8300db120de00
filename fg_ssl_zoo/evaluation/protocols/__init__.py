"""The protocols: one file each, detected by the record `PROTOCOL` at its end.

To add one, write a file with a function, a dataclass of its options and the record; nothing else
lists protocols. `clusters.py` is the one to copy.
"""

import importlib
import pkgutil
from collections.abc import Iterable

from fg_ssl_zoo.config import nearest
from fg_ssl_zoo.evaluation.protocol import Protocol
from fg_ssl_zoo.metrics import ON_CARDS, Metric, metric_of


def _records() -> dict[str, Protocol]:
    """Name -> record: default protocols, then others on features, then those on the network."""
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    records: list[Protocol] = [importlib.import_module(name).PROTOCOL for name in names]
    records.sort(key=lambda record: (not record.default, record.reads == "network", record.name))
    return {record.name: record for record in records}


PROTOCOLS = _records()

DEFAULT = tuple(name for name, record in PROTOCOLS.items() if record.default)

METRICS = (*(metric for record in PROTOCOLS.values() for metric in record.metrics), *ON_CARDS)


def metric(name: str) -> Metric:
    """The record of a metric in a results file; an unknown metric has its key as title."""
    return metric_of(name, METRICS)


def known_protocols(names: Iterable[str]) -> list[str]:
    """The names, once each.

    Raises:
        ValueError: One of them is unknown; names the nearest.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol '{name}'{nearest(name, PROTOCOLS)}")
    return names
