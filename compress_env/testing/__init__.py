"""Conformance suites: whether a part of a user's own keeps the promises that the rest of the package relies on.

A suite is a function that returns nothing, or raises an AssertionError whose sentence names the part and the fault. None needs pytest:

    from compress_env.testing import check_reward

    def test_my_reward():
        check_reward("my_reward:mnasnet")
"""

from __future__ import annotations

from compress_env.testing.agent import check_agent
from compress_env.testing.loss import check_loss
from compress_env.testing.ranking import check_ranking
from compress_env.testing.resource import check_resource
from compress_env.testing.reward import check_reward
from compress_env.testing.rule import check_rule
from compress_env.testing.task import check_task
from compress_env.testing.teacher import check_teacher

__all__ = [
    "check_agent",
    "check_loss",
    "check_ranking",
    "check_resource",
    "check_reward",
    "check_rule",
    "check_task",
    "check_teacher",
]
