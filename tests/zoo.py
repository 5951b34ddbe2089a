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
FURTHER = (
    "bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_lite_tiny", "coatnet_nano_rw_224",
    "convit_tiny", "convnextv2_atto", "crossvit_tiny_240", "cs3darknet_s", "csatv2", "cspresnet50", "darknet53",
    "davit_tiny", "dla34", "dpn48b", "eca_nfnet_l0", "edgenext_xx_small", "efficientformer_l1", "efficientnetv2_rw_t",
    "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_dw", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "fbnetv3_b", "focalnet_tiny_srf", "gcvit_xxtiny", "gernet_s", "ghostnetv2_100", "ghostnetv3_100", "gmlp_s16_224",
    "halonet26t", "haloregnetz_b", "hardcorenas_a", "hgnet_tiny", "hiera_tiny_224", "hrnet_w18_small",
    "inception_next_atto", "inception_v3", "inception_v4", "lambda_resnet26t", "lambda_resnet50ts", "lcnet_050",
    "legacy_xception", "levit_128s", "mambaout_femto", "maxvit_pico_rw_256", "mixnet_s", "mobilenet_edgetpu_v2_xs",
    "mobilenetv4_hybrid_medium", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "nasnetalarge", "nest_tiny",
    "nextvit_small", "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "poolformer_s12", "pvt_v2_b0", "rdnet_tiny",
    "repghostnet_050", "repvit_m1", "resmlp_12_224", "resnest14d", "resnet18d", "resnet26t", "resnetrs50", "rexnet_100",
    "sebotnet33ts_256", "selecsls42", "semnasnet_075", "senet154", "sequencer2d_s", "seresnet50", "shvit_s1", "skresnet18",
    "spnasnet_100", "starnet_s1", "swiftformer_xs", "swin_s3_tiny_224", "swinv2_tiny_window8_256", "test_vit",
    "tf_efficientnet_lite0", "tiny_vit_5m_224", "tinynet_e", "tresnet_m", "twins_pcpvt_small", "visformer_tiny",
    "vit_tiny_patch16_224", "vitamin_small_224", "volo_d1_224", "vovnet39a", "wide_resnet50_2", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
"""Of timm, too, one or two a family."""
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


def further(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of FURTHER and two inputs of 64 x 64 pixels, or of its own size if it takes no other."""
    for settings in ({}, {"img_size": SIZE}):
        try:
            model, x = timm.create_model(name, num_classes=10, **settings).eval(), torch.randn(2, 3, SIZE, SIZE)
            with torch.no_grad():
                model(x)
            return model, x
        except Exception:  # noqa: BLE001 - it takes no such size, or no such setting
            continue
    model = timm.create_model(name, num_classes=10).eval()
    return model, torch.randn(2, *model.default_cfg["input_size"])
