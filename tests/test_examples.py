import runpy
from pathlib import Path

import torch

from fg_ssl_zoo.backbones.backbone import create_backbone
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.hub.export import export

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_few_labels_beat_chance_on_features_that_were_never_trained(tmp_path):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=64)
    folder = export(backbone, tmp_path / "export", load_recipe(), {"rows": []})
    example = runpy.run_path(str(EXAMPLES / "classify_with_few_labels.py"))
    assert example["main"](str(folder), shots=3) > 0.05
