"""Networks that nobody prepared for compression: torchvision's and timm's, with random weights, ten classes and small images."""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import nn

TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "densenet121",
    "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny", "googlenet", "squeezenet1_1", "mnasnet1_0",
    "vit_b_16", "swin_t",
)  # fmt: skip
TIMM = (
    "repvgg_a0", "mobilenetv4_conv_small", "resnetv2_50", "ghostnet_100", "res2net50_26w_4s", "convmixer_768_32",
    "mixer_s16_224", "deit_tiny_patch16_224", "efficientformerv2_s0", "hgnetv2_b0",
)  # fmt: skip
SIZE = 64
SETTINGS = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "vit_b_16": {"image_size": SIZE},
    "mixer_s16_224": {"img_size": SIZE},
    "deit_tiny_patch16_224": {"img_size": SIZE},
    "efficientformerv2_s0": {"img_size": SIZE},
}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network in evaluation mode and two inputs; always the same for a name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = SETTINGS.get(name, {})
        if name in TORCHVISION:
            model = torchvision.models.get_model(name, num_classes=10, **settings)
        else:
            model = timm.create_model(name, num_classes=10, **settings)
        inputs = torch.randn(2, 3, SIZE, SIZE)
        with torch.no_grad():  # normalisation statistics as after training, not 0 and 1
            model.train()(torch.randn(4, 3, SIZE, SIZE))
            for parameter in model.parameters():  # some start at 0, so that nothing before them would matter
                if parameter.numel() > 1 and parameter.abs().max() < 1e-3:
                    parameter.normal_(std=0.1)
    return model.eval(), inputs
