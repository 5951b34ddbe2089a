"""Scenarios that agents are compared in: an environment each, from seconds to minutes a search.

A new one is a line here, or `module:attribute`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress_env.registry import Registry

DIGITS = {"teacher": "resnet8-digits"}
RESNET20 = {"teacher": "resnet20-cifar10"}
VGG16 = {"teacher": "vgg16-cifar10"}
MOBILENETV2 = {"teacher": "mobilenetv2-cifar10"}


@dataclass(frozen=True)
class Scenario:
    """What every agent has to solve.

    Attributes:
        about: One line.
        arguments: Keywords of the environment.
        env_id: The environment.
    """

    about: str
    arguments: Mapping[str, Any]
    env_id: str = "LayerRemoval-v0"


SCENARIOS = Registry("scenario")
for _name, _scenario in {
    "planted": Scenario(
        "a formula with a known optimum, reward 1", DIGITS | {"budget": {"macs": 0.5}}, "LayerRemovalPlanted-v0"
    ),
    "digits-50": Scenario("ResNet-8 on digits, half of the MACs", DIGITS | {"budget": {"macs": 0.5}}),
    "digits-25": Scenario("ResNet-8 on digits, a quarter of the MACs", DIGITS | {"budget": {"macs": 0.25}}),
    "digits-15": Scenario("ResNet-8 on digits, 15 % of the MACs", DIGITS | {"budget": {"macs": 0.15}}),
    "digits-depth": Scenario("removal only", DIGITS | {"budget": {"macs": 0.6}, "schedule": "removal"}),
    "digits-width": Scenario("shrinking only", DIGITS | {"budget": {"macs": 0.25}, "schedule": "shrink"}),
    "digits-several": Scenario("three limits at once", DIGITS | {"budget": {"macs": 0.3, "params": 0.4, "memory": 0.6}}),
    "digits-latency": Scenario("half of the measured latency", DIGITS | {"budget": {"latency": 0.5}}),
    "resnet20-50": Scenario("ResNet-20 on CIFAR-10, half of the MACs", RESNET20 | {"budget": {"macs": 0.5}}),
    "resnet20-25": Scenario("ResNet-20 on CIFAR-10, a quarter of the MACs", RESNET20 | {"budget": {"macs": 0.25}}),
    "vgg16-50": Scenario("VGG-16 on CIFAR-10, half of the MACs", VGG16 | {"budget": {"macs": 0.5}}),
    "vgg16-25": Scenario("VGG-16 on CIFAR-10, a quarter of the MACs", VGG16 | {"budget": {"macs": 0.25}}),
    "mobilenetv2-50": Scenario("MobileNetV2 on CIFAR-10, half of the MACs", MOBILENETV2 | {"budget": {"macs": 0.5}}),
}.items():
    SCENARIOS.register(_name)(_scenario)
