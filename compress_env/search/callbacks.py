"""What looks on at a search: callbacks, which are told of each trial once it is recorded, and Python's log."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from compress_env.errors import UserError
from compress_env.registry import load_attribute
from compress_env.search.trial import Trial

log = logging.getLogger(__name__)


class Callback:
    """Is told of what happens in a search, in the search's own process and in the order of the trials.

    A callback of one's own inherits from it, or has at least one of its methods. It changes nothing: a trial is recorded before it is
    told of, the trials are the same with and without it, and where it raises, the search goes on with a warning.
    KeyboardInterrupt ends the search as Ctrl-C does.
    """

    def on_start(self, trials: Sequence[Trial]) -> None:
        """Before the first trial.

        Args:
            trials: Those that an earlier part of the search has recorded, of which `on_trial` is not told again.
        """

    def on_trial(self, trial: Trial) -> None:
        """After each trial."""

    def on_best(self, trial: Trial) -> None:
        """After `on_trial`, if no trial before has as high a reward among those within the budget."""

    def on_end(self) -> None:
        """After the last trial, also if the search was interrupted."""


METHODS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Callbacks:
    """The callbacks of a search.

    Args:
        given: As `make_callbacks` takes them.

    Raises:
        UserError: If one cannot be made, or is none.
    """

    def __init__(self, given: Sequence[Any] = ()):
        self._all = [_Careful(each) for each in (LogTrials(), *make_callbacks(given))]

    @contextmanager
    def during(self, trials: Sequence[Trial]) -> Iterator[None]:
        """The search is the block; these trials were recorded before."""
        self._tell("on_start", list(trials))
        try:
            yield
        finally:
            self._tell("on_end")
            for each in self._all:
                each.end()

    def recorded(self, trial: Trial, best: bool) -> None:
        """A trial was recorded, the best so far or not."""
        self._tell("on_trial", trial)
        if best:
            self._tell("on_best", trial)

    def _tell(self, method: str, *arguments: Any) -> None:
        for each in self._all:
            each.tell(method, *arguments)


class LogTrials(Callback):
    """Each trial at INFO, under the logger `compress_env`; who wants to see it sets logging up as for any library."""

    def on_start(self, trials: Sequence[Trial]) -> None:
        """The number of trials that there are."""
        if trials:
            log.info("the search goes on after %d recorded trials", len(trials))

    def on_trial(self, trial: Trial) -> None:
        """Its numbers in a line."""
        if not log.isEnabledFor(logging.INFO):
            return
        evaluation = trial.evaluation
        name = next(iter(evaluation.metrics))
        result = f"failed ({evaluation.failed})" if evaluation.failed else f"{name} {evaluation.metric:.4f}"
        usage = ", ".join(f"{100 * share:.1f} % of {name}" for name, share in shares(trial).items())
        fits = "within" if trial.feasible else "over"
        log.info("trial %d: reward %.4f, %s, %s, %s the budget", trial.index, trial.reward, result, usage, fits)

    def on_best(self, trial: Trial) -> None:
        """Which is the best."""
        log.info("trial %d is the best so far", trial.index)


def shares(trial: Trial) -> dict[str, float]:
    """What a trial's student uses of each limited resource, as a share of the teacher's usage; 0 where that is 0."""
    used, whole = trial.evaluation.usage, trial.evaluation.teacher_usage
    return {name: used[name] / whole[name] if whole[name] else 0.0 for name in trial.limits}


def warn(message: str, stacklevel: int = 1) -> None:
    """A UserWarning, which is also logged at WARNING if there is a log: without one, Python would print it twice."""
    warnings.warn(message, stacklevel=stacklevel + 1)
    if log.hasHandlers():
        log.warning(message)


def find_callbacks(given: Sequence[Any]) -> list[tuple[str, Callable[[], Any] | Any]]:
    """For each callback its name, and the callback or its factory, which is not called. Raises UserError if there is none."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"callbacks have to be a list, got {given!r}; give [{given!r}]")
    found = []
    for each in given:
        if isinstance(each, str):
            factory = load_attribute(each, "callback")
            if not callable(factory):
                raise UserError(f"the callback {each!r} is no class or function that makes one, but {type(factory).__name__}")
            found.append((each, factory))
        else:
            found.append((_name(each), each))
            _check(each, _name(each))
    return found


def make_callbacks(given: Sequence[Any]) -> list[Any]:
    """Callbacks.

    Args:
        given: Some, and places of factories, `module:factory` or `file.py:factory`, which are called without arguments.

    Raises:
        UserError: If one cannot be made, or is none.
    """
    return [_made(name, found) if isinstance(each, str) else found for each, (name, found) in zip(given, find_callbacks(given))]


def _made(name: str, factory: Callable[[], Any]) -> Any:
    try:
        made = factory()
    except Exception as error:  # noqa: BLE001 - whatever a factory of one's own raises
        raise UserError(f"the callback {name!r} cannot be made: {type(error).__name__}: {error}") from error
    _check(made, name)
    return made


def _check(callback: Any, name: str) -> None:
    if isinstance(callback, type) or not any(callable(getattr(callback, method, None)) for method in METHODS):
        hint = f"; give an object, {callback.__name__}()" if isinstance(callback, type) else ""
        raise UserError(f"{name!r} is no callback: it needs at least one of {', '.join(METHODS)}{hint}")


def _name(callback: Any) -> str:
    return callback.__name__ if isinstance(callback, type) else type(callback).__name__


class _Careful:
    """A callback that can neither end a search nor change its trials.

    Args:
        callback: The callback.
    """

    def __init__(self, callback: Any):
        self._callback, self._name = callback, _name(callback)
        self._failures, self._last = 0, ""

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method if there is one; the first time that one raises, there is a warning."""
        called = getattr(self._callback, method, None)
        if called is None:
            return
        try:
            with _same_random_state():
                called(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a callback raises
            self._failures += 1
            self._last = f"{method}: {type(error).__name__}: {error}"
            if self._failures == 1:
                warn(f"the callback {self._name} failed in {self._last}; the search goes on, and calls it again", stacklevel=5)

    def end(self) -> None:
        """Say how often it failed, if that was more than once."""
        if self._failures > 1:
            warn(f"the callback {self._name} failed {self._failures} times, the last in {self._last}", stacklevel=4)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """The global random states are the same after the block, which agents draw from."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
