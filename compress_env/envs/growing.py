"""`NetworkGrowth-v0` and `NetworkTransformation-v0`: networks that become larger, or move their capacity, within a budget."""

from __future__ import annotations

from typing import Any

from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.spec import EnvironmentSpec
from compress_env.walk.observation import entries_table


class NetworkGrowthEnv(LayerRemovalEnv):
    """
    ## Description
    A small network is walked over twice: first the agent decides at each place (behind an activation, or behind the addition of a
    residual branch) whether a layer is **inserted** that leaves every number as it is, then for each group of tied channels how much
    **wider** it becomes, by copies of its channels. So each network that the agent comes to computes what the small one does (Net2Net,
    Chen et al., ICLR 2016), and goes on learning from there: it is trained for a moment on labels and judged on validation images.
    It is efficient architecture search (EAS, Cai et al., AAAI 2018) within a budget, counted on the module that was really built. No
    teacher is needed; `teacher` is the small network.

    ## Action Space
    `Box(-1, 1, (2,), float32)`. Each step reads the entry that it needs and ignores the other. Actions are clamped so that the budget
    stays within reach.

    | Num | Action | -1 | 0 | 1 |
    |-----|--------|----|---|---|
    | 0   | keep   | nothing is inserted | nothing is inserted | a layer or a residual block is inserted, as above 0 |
    | 1   | sparsity | `max_growth` times the channels | the growth that, for all open groups alike, meets the budget | as it came |

    ## Observation Space
    `Box(0, 1, (20,), float32)`; the previous actions lie in [-1, 1].

{entries}

    ## Rewards
    0 at each step but the last, then `reward(evaluation, limits)`: by default `metric`, the accuracy on validation images; `eas` is
    tan(accuracy pi / 2). A network that cannot be evaluated gives -1.

    ## Starting State
    The network as it came, nothing decided. A budget that is a range is drawn from, as in `LayerRemoval-v0`.

    ## Episode End
    `terminated` after one step a place and one a group; never truncated. A group of a layer that is not there keeps its step, which
    then has no effect.

    ## Information
    As of `LayerRemoval-v0`; the plan names what is `inserted`.

    ## Arguments
    Those of `LayerRemoval-v0`, with the defaults `budget={{"macs": "200%"}}`, `reward="metric"`, `evaluator={{"distill_steps": 100,
    "loss": "labels", "lr": 0.002, "refit": False}}`; `max_growth` (2) is how many times its channels a group may have. Actions are
    absolute, and rewards are not shaped: there is nothing that a network loses when it grows.

    ## Version History
    * v0: first version.
    """

    changes = "grow"

    @classmethod
    def make_objective(cls, progress: bool, **settings: Any) -> Objective:
        """The objective of the environment's keywords."""
        if settings.get("changes", cls.changes) != cls.changes:
            raise UserError(f"this environment has changes={cls.changes!r}; leave changes out")
        return Objective(EnvironmentSpec.of_keywords(**{**settings, "changes": cls.changes}), progress=progress)


class NetworkTransformationEnv(NetworkGrowthEnv):
    """
    ## Description
    As `NetworkGrowth-v0`, and blocks of the network may go and groups become narrower, too, as in `LayerRemoval-v0` with absolute
    actions: capacity moves from where it is wasted to where it is needed. What grows preserves what the network computes; what
    shrinks is trained on.

    ## Arguments
    Those of `NetworkGrowth-v0`, with the default `budget={"macs": "100%"}`: the network's own MACs.

    ## Version History
    * v0: first version.
    """

    changes = "transform"


NetworkGrowthEnv.__doc__ = (NetworkGrowthEnv.__doc__ or "").format(entries=entries_table(predicted=False))
