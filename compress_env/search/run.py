"""`search`: an agent on an objective for a number of evaluations, every one recorded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from tqdm.auto import tqdm

from compress_env.contexts import apart
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import CannotWrite, UnknownName, UserError
from compress_env.extras import ONNX, MissingPackage, Skipped, need
from compress_env.files import make_folder
from compress_env.objective import Objective
from compress_env.presets import PRESETS
from compress_env.registry import load_attribute, unknown
from compress_env.search.agent import Agent, DrivingAgent, Extendable, WritesScalars
from compress_env.search.asked import AskedState
from compress_env.search.asking import ask_and_tell
from compress_env.search.callbacks import Callbacks
from compress_env.search.executors import executor_for
from compress_env.search.recorder import Recorder, trial_of_policy
from compress_env.search.settings import check_settings
from compress_env.search.store import RunFolder, alone_in
from compress_env.search.tensorboard import FOLDER, TRIALS, TensorBoard
from compress_env.search.together import Together
from compress_env.search.trial import Trial, best_trial
from compress_env.search.trials import Trials

NAMES = (
    "ddpg", "td3", "sac", "tqc", "crossq", "ppo", "a2c", "ars", "amc", "policy",
    "model", "allocation", "random", "uniform", "stages", "greedy", "evolution", "cma-es", "tpe",
)  # fmt: skip
AGENTS = {name: "compress_env.agents.{0}:{0}".format(name.replace("-", "_")) for name in NAMES}
AGENTS |= {f"dyna-{name}": f"compress_env.agents.dyna_agents:dyna_{name}" for name in ("ddpg", "td3", "sac")}
AGENTS["reinforce"] = "compress_env.agents.n2n:n2n"
"""Where the agents are, those that learn first; strings, so that a search with one does not load the others."""
POLICY = "policy.onnx"
"""A learned policy's name in a run folder."""

PLAIN = (OrderEnforcing, PassiveEnvChecker)
"""Wrappers that `gym.make` puts around every environment; they change nothing."""

AnyAgent = Agent | DrivingAgent
Factory = Callable[..., AnyAgent]


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Best-found and final policy are different things, and the first is usually better.

    Attributes:
        trials: Every evaluation.
        best: The trial with the highest reward among those within the budget, or None.
        final_policy: The trial that the learned policy gives without noise, None for agents without one.
        seconds: How long the search took, in all processes if it was resumed.
        interrupted: Whether Ctrl-C stopped it before all evaluations were done.
    """

    trials: Trials
    best: Trial | None
    final_policy: Trial | None
    seconds: float
    interrupted: bool = False


class RecordingEnv(gym.Wrapper):
    """The one adapter for agents that drive an environment: it records finished episodes, and says how many there are.

    Args:
        env: A `LayerRemovalEnv`, with whatever wrappers its user put around it.
        recorder: Takes what is judged.
        together: Judges several students at once, for agents that `drives_several`; they make further environments on the same
            objective, and have it judge and record the students of all. None if this environment is to be driven alone.
    """

    def __init__(self, env: gym.Env, recorder: Recorder, together: Together | None = None):
        super().__init__(env)
        self.recorder, self.together = recorder, together
        self.environment.on_judged = recorder.record

    @property
    def environment(self) -> LayerRemovalEnv:
        """The environment within all wrappers."""
        return self.unwrapped  # type: ignore[return-value]

    @property
    def played(self) -> int:
        """Episodes that were finished, those of an earlier run included that were played again or skipped."""
        return self.recorder.played

    @property
    def trials(self) -> list[Trial]:
        """All that were recorded."""
        return self.recorder.trials

    @property
    def last(self) -> Trial:
        """The trial of the episode that was finished last."""
        return self.recorder.trials[self.recorder.played - 1]

    def skip(self, episodes: int) -> None:
        """Go on after this many recorded trials."""
        self.recorder.skip(episodes)


def search(
    objective: Objective | gym.Env,
    agent: str | Factory = "model",
    evaluations: int = 150,
    seed: int = 0,
    out: RunFolder | str | Path | None = None,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    cluster: str | None = None,
    callbacks: Sequence[Any] = (),
    tensorboard: bool = False,
) -> SearchResult:
    """Let an agent look for the best student for a number of evaluations.

    Each is a trial, appended to `out` at once; a plan is never evaluated twice, but proposing it again counts. If `out` has
    trials, the search goes on after them, to the same trials as without interruption. With more evaluations than it was begun with,
    it goes on from there: the agent's schedules stay those of the first number. Ctrl-C ends it with what there is.
    The same seed gives the same trials on the same machine, except where something is measured.

    Args:
        objective: An objective, or an environment that has one. Agents that drive an environment drive the given one, with its
            wrappers; those that are asked and told take the objective alone.
        agent: A name, `module:factory`, a factory, or a class of Stable-Baselines3. The name of an earlier system stands for its
            agent; the environment is the given one (`compress_env.presets.preset` has keywords for it).
        evaluations: How many students to judge.
        seed: Of everything random.
        out: A run folder.
        progress: Whether to show how far it is.
        settings: Arguments of the agent's own.
        workers: How many students are judged at once, each in a process of its own. Algorithms of Stable-Baselines3 drive as many
            environments; other agents that drive one have one worker.
        cluster: A Ray cluster for the workers: "auto", or its address.
        callbacks: Told of each trial (`compress_env.search.callbacks.Callback`), or `module:factory` of some.
        tensorboard: Whether to write scalars for TensorBoard, to the folder `tensorboard` in `out`.

    Raises:
        UserError: For settings that the agent does not take, callbacks that are none, or trials that cannot be reproduced.
    """
    if evaluations < 1:
        raise UserError(f"evaluations must be at least 1, got {evaluations}")
    env = objective if isinstance(objective, gym.Env) else None
    judge: Objective = objective.get_wrapper_attr("objective") if isinstance(objective, gym.Env) else objective
    factory = find_agent(agent, settings)
    folder = out if isinstance(out, RunFolder) or out is None else RunFolder(out)
    events = _events(folder) if tensorboard else None
    watching = Callbacks([*callbacks, *([TensorBoard(events / TRIALS)] if events else [])])
    if folder:
        make_folder(folder.path)
    interrupted, final = False, None
    label = agent if isinstance(agent, str) else getattr(agent, "__name__", "search")
    with (
        alone_in(folder.path) if folder else nullcontext(),
        tqdm(total=evaluations, desc=label, unit="student", disable=not progress) as bar,
    ):
        if folder:
            folder.repair()
        recorder = Recorder(judge, evaluations, seed, folder, bar, watching)
        with apart(), watching.during(recorder.trials):
            try:
                with _blaming(label, settings):
                    begun = folder.begun(evaluations) if folder else evaluations
                    player = factory(judge, begun, seed, **(settings or {}))
                    saves = folder is not None and _can_save(player)
                    if events and isinstance(player, WritesScalars):
                        player.write_scalars(events)
                    if evaluations != begun:
                        _go_on(player, label, evaluations)
                    _play(player, recorder, env, folder, workers, cluster)
                    if (policy := player.policy()) is not None:
                        final = trial_of_policy(policy, judge, seed)
                if folder and saves and not folder.is_after_trials(POLICY):
                    _save_policy(player, folder.path / POLICY)
            except KeyboardInterrupt:
                interrupted = True
    trials = Trials(recorder.trials)
    return SearchResult(trials, best_trial(trials), final, sum(t.seconds for t in trials), interrupted)


def _events(folder: RunFolder | None) -> Path:
    """Where events for TensorBoard are to be."""
    need("tensorboard=True", "tensorboard")
    if folder is None:
        raise UserError("scalars for TensorBoard are written into a run folder; give out=FOLDER, too")
    return folder.path / FOLDER


@contextmanager
def _blaming(agent: str, settings: Mapping[str, Any] | None) -> Iterator[None]:
    """An error of an agent that was given settings, which it may not bear, as UserError that names them."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a wrong setting leads to in a library
        if isinstance(error, UserError) or not settings:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise UserError(f"the agent {agent!r} failed with {given}: {type(error).__name__}: {error}") from error


def _go_on(player: AnyAgent, label: str, evaluations: int) -> None:
    if isinstance(player, Extendable):
        player.go_on(evaluations)
    elif not isinstance(player, Agent):
        raise UserError(
            f"the agent {label!r} ends after as many evaluations as it was begun with; search again in another folder, or give it a "
            "method go_on(evaluations)"
        )


def _can_save(player: AnyAgent) -> bool:
    """Whether an agent's policy can be written; a warning if it has one and cannot, before the search."""
    if not hasattr(player, "save_policy"):
        return False
    try:
        need(f"{POLICY}, the learned policy,", *ONNX)
    except MissingPackage as error:
        after = "the policy is not written without it; the same search with --resume does so later"
        warnings.warn(Skipped(f"{error}; {after}"), stacklevel=3)
        return False
    return True


def _save_policy(player: Any, path: Path) -> None:
    """Have an agent write its policy; a warning if it cannot, since the search is done by then."""
    try:
        player.save_policy(path)
    except CannotWrite:
        raise
    except UserError as error:
        warnings.warn(f"the policy is not saved: {error}; the trials are", stacklevel=2)


def _play(
    player: AnyAgent, recorder: Recorder, env: gym.Env | None, folder: RunFolder | None, workers: int, cluster: str | None
) -> None:
    if isinstance(player, Agent):
        with closing(executor_for(recorder.objective, workers, cluster)) as executor:
            ask_and_tell(player, recorder, executor, AskedState(player, recorder, folder, executor.places))
        if folder:
            folder.nothing_ahead()
        return
    if not isinstance(player, DrivingAgent):
        raise UserError(f"{type(player).__name__} is no agent: it needs ask(n), tell(trials) and policy(), or drive(env, checkpoint)")
    several = workers > 1 or cluster is not None
    if several:
        _check_several(player, env)
    with closing(executor_for(recorder.objective, workers, cluster)) as executor:
        together = Together(recorder, executor) if several else None
        recording = RecordingEnv(env or LayerRemovalEnv.of(recorder.objective), recorder, together)
        try:
            player.drive(recording, folder.path / "agent.checkpoint" if folder else None)
        finally:
            recording.environment.on_judged = None
    if folder:
        folder.nothing_ahead()


def _check_several(player: DrivingAgent, env: gym.Env | None) -> None:
    """Raises UserError if an agent, or the environment that was given, cannot be beside others."""
    if not getattr(player, "drives_several", False):
        raise UserError(
            f"{type(player).__name__} with these settings drives one environment, a student after the other; search with --workers 1, "
            "with an agent that is asked for students, such as model, random or cma-es, or with one of Stable-Baselines3's, as sac"
        )
    while isinstance(env, PLAIN):
        env = env.env
    if env is not None and (type(env).step, type(env).reset) != (LayerRemovalEnv.step, LayerRemovalEnv.reset):
        raise UserError(
            f"several workers need an environment each, and only this process has the given one with its {type(env).__name__}; set "
            "workers=1, or search on its objective"
        )


def find_agent(agent: str | Factory, settings: Mapping[str, Any] | None = None) -> Factory:
    """The factory of an agent by name or `module:attribute`, or of a class with Stable-Baselines3's interface.

    Raises:
        UnknownName: If there is none; the message suggests the nearest name.
        UserError: If the factory does not take the settings.
    """
    name = PRESETS[agent].agent if isinstance(agent, str) and agent in PRESETS else agent
    if isinstance(name, str) and name not in AGENTS and ":" not in name:
        raise UnknownName(unknown("agent", name, sorted({*AGENTS, *PRESETS})))
    factory = load_attribute(AGENTS.get(name, name), "agent") if isinstance(name, str) else name
    if isinstance(factory, type) and hasattr(factory, "learn"):
        factory = load_attribute("compress_env.agents.sb3:of_class", "agent")(factory)
    check_settings(agent, factory, settings or {})
    return factory
