from dataclasses import replace

import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import create_backbone
from fg_ssl_zoo.evaluation.evaluate import make_task
from fg_ssl_zoo.evaluation.finetune import TRAIN, Classifier, finetune


def test_fine_tuning_learns_its_pictures_and_leaves_the_backbone_alone(birds, tmp_path):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=64).eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    task = make_task(backbone, birds, birds, Accelerator(cpu=True), crop_pct=1.0, cache=tmp_path)
    short = replace(TRAIN, epochs=25, batch_size=8)
    (outcome,) = finetune(task, train=short)
    assert outcome.metric == "finetune_top1"
    assert outcome.value > 0.7  # chance is a quarter; they are the training pictures
    assert outcome.settings["epochs"] == 25
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_backbone_learns_at_a_tenth_of_the_classifiers_rate():
    method = Classifier(create_backbone("test_vit", image_size=32), 3)
    backbone, classifier = method.param_groups()
    assert backbone["lr_scale"] == 0.1
    assert "lr_scale" not in classifier
    count = len(list(method.parameters()))
    assert len(backbone["params"]) + len(classifier["params"]) == count
