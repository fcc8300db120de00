"""`fgssl report`: write a page with scores, errors and neighbours of backbones."""

import argparse
from pathlib import Path
from typing import Any

from fg_ssl_zoo.cli.arguments import add_verb
from fg_ssl_zoo.cli.evaluation import add_models, common
from fg_ssl_zoo.config import data_of, encodable, write_whole


def add_verbs(verbs: Any) -> None:
    """Add the verb `report`."""
    report = add_verb(
        verbs,
        "report",
        "Write one HTML page with the scores of backbones, the classes they confuse, "
        "and nearest neighbours.",
    )
    add_models(report)
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help="page to write (default report.html)"
    )
    report.set_defaults(run=_report, out_files=("out",), out_folders=("cache",))


def _report(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.engine.hardware import evaluation_accelerator
    from fg_ssl_zoo.evaluation.report.page import write_report

    accelerator = evaluation_accelerator()
    html = write_report(
        chosen.models,
        data_of(chosen.data),
        accelerator,
        **common(chosen, accelerator),
    )
    if accelerator.is_main_process:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        html = encodable(html)
        write_whole(chosen.out, html)
        print(f"{chosen.out} ({len(html.encode()) / 1e6:.1f} MB)")
