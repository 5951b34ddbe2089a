"""N2N learning (Ashok et al., ICLR 2018), the predecessor: REINFORCE for recurrent policies, first removal, then shrinking.

As in the paper, and unlike its released code: all weights of the recurrent policies are trained, each student is credited with its
own reward, and the teacher stays the teacher in both stages. `--agent n2n` also sets the environment as it was there
(`compress_env.presets`); `--agent reinforce` is the agent alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.agents.sequence import BatchAgent, Batches
from compress_env.contexts import seeded
from compress_env.errors import UserError
from compress_env.objective import Objective
from compress_env.rewards import annealed
from compress_env.search.agent import Policy
from compress_env.search.trial import Trial

LEVELS = np.linspace(-1, 1, 11)
"""Eleven choices a layer, as in the paper; of the environment's action, so that the one in the middle is 0."""
HIDDEN = 30

Choose = Callable[[Tensor], int]


class Remover(nn.Module):
    """A bidirectional LSTM over the layers, with a choice between keeping and removing for each.

    Args:
        features: Entries that describe a layer.
    """

    values = np.array([1.0, -1.0])
    """Actions of the choices."""

    def __init__(self, features: int):
        super().__init__()
        self.lstm = nn.LSTM(features, HIDDEN, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, layers: Tensor, choose: Choose) -> tuple[list[int], Tensor]:
        """Choices for layers.

        Args:
            layers: Their descriptions `(layers, features)`.
            choose: Takes the log-probabilities `(choices,)` of one layer.

        Returns:
            The number of each choice, and the logarithm of the probability of all of them.
        """
        logits = self.head(self.lstm(layers)[0]).log_softmax(1)
        choices = [choose(row) for row in logits]
        return choices, logits[range(len(choices)), choices].sum()


class Shrinker(nn.Module):
    """An LSTM from layer to layer that also sees its choice for the one before.

    Args:
        features: Entries that describe a layer.
    """

    values = LEVELS
    """Actions of the choices."""

    def __init__(self, features: int):
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(features + len(LEVELS), HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)])
        self.head = nn.Linear(HIDDEN, len(LEVELS))

    def forward(self, layers: Tensor, choose: Choose) -> tuple[list[int], Tensor]:
        """Choices for layers.

        Args:
            layers: Their descriptions `(layers, features)`.
            choose: Takes the log-probabilities `(choices,)` of one layer.

        Returns:
            The number of each choice, and the logarithm of the probability of all of them.
        """
        states = [(torch.zeros(HIDDEN), torch.zeros(HIDDEN)) for _ in self.cells]
        previous = torch.zeros(len(LEVELS))
        choices, total = [], torch.zeros(())
        for layer in layers:
            signal = torch.cat([layer, previous])
            for i, cell in enumerate(self.cells):
                states[i] = cell(signal, states[i])
                signal = states[i][0]
            logits = self.head(signal).log_softmax(0)
            choices.append(choose(logits))
            total = total + logits[choices[-1]]
            previous = nn.functional.one_hot(torch.tensor(choices[-1]), len(LEVELS)).float()
        return choices, total


class N2N(BatchAgent):
    """Half of the students for removal, all else as it begins, half for the widths of the best of those.

    It begins with the student of the action 0; where limits are soft with the teacher, so that the first stage only removes. There, a
    student above its limits is punished more with each update of a stage (`annealed`).

    Args:
        objective: What students are judged by.
        evaluations: How many students the search is to judge.
        seed: Of networks and draws.
        rollouts: Students an update.
        lr: Rate of Adam.
        annealing: Updates of a stage after which a student above soft limits gets -1.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int, rollouts: int = 5, lr: float = 3e-3, annealing: int = 15):
        super().__init__(objective, evaluations, seed)
        if rollouts < 1:
            raise UserError(f"rollouts is a number of students, 1 or more; got {rollouts}")
        if annealing < 1:
            raise UserError(f"annealing is a number of updates, 1 or more; got {annealing}")
        self.rollouts, self.lr, self.annealing, self.total = rollouts, lr, annealing, evaluations
        self.final = np.zeros((self.steps, 2), np.float32)
        """The likeliest choices, `(steps, 2)`."""
        self.seen = np.zeros((self.steps, len(objective.embedding.names)), np.float32)
        """Descriptions of the layers, `(steps, entries)`."""

    def go_on(self, evaluations: int) -> None:
        """Another number of students: the second stage ends later, or earlier."""
        self.total = evaluations

    def batches(self, rng: np.random.Generator) -> Batches:
        """The student that it begins with, whose observations describe the layers; then one batch an update."""
        best = np.tile([0.0, 0.0] if self.objective.hard else [1.0, -1.0], (self.steps, 1))
        (first,) = yield [best]
        played, best_found = 1, (first.feasible, first.reward)
        self.seen = self._observations(first)
        layers = torch.from_numpy(self.seen)
        shrinks = np.array([d.shrinks for d in self.objective.problem.decisions])
        stages = [(kind, network) for kind, network in ((False, Remover), (True, Shrinker)) if kind in shrinks]
        for number, (kind, network) in enumerate(stages):
            where = np.flatnonzero(shrinks == kind)
            with seeded(self.seed + number):
                policy = network(layers.shape[1])
            optimizer = torch.optim.Adam(policy.parameters(), lr=self.lr)
            fixed, baseline, update = best, best_found[1], 0
            last = number + 1 == len(stages)
            end = self.total if last else min(self.total, round((number + 1) * self.evaluations / len(stages)))
            while played < end:
                rollouts = [
                    policy(layers[where], lambda row: _draw(row, rng)) for _ in range(min(self.rollouts, end - played))
                ]
                students = [self._filled(fixed, where, policy.values[choices]) for choices, _ in rollouts]
                trials = yield students
                losses = []
                for actions, (_, log_probability), trial in zip(students, rollouts, trials):
                    reward = annealed(trial.reward, trial.feasible, update, self.annealing)
                    losses.append(-log_probability * (reward - baseline))
                    baseline = 0.95 * baseline + 0.05 * reward
                    if (trial.feasible, trial.reward) > best_found:
                        best, best_found = actions, (trial.feasible, trial.reward)
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
                update, played = update + 1, played + len(trials)
            with torch.no_grad():
                choices, _ = policy(layers[where], lambda row: int(row.argmax()))
            self.final = self._filled(fixed, where, policy.values[choices]).astype(np.float32)

    def _observations(self, first: Trial) -> np.ndarray:
        """Observations `(steps, entries)` on the way to the student of the action 0."""
        walk, seen = self.objective.begin(first.limits), []
        while not walk.done:
            seen.append(self.objective.observe(walk))
            walk.step(0.0, 0.0)
        return np.array(seen)

    def _filled(self, actions: np.ndarray, where: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The actions with other values at the steps `where`."""
        filled = actions.copy()
        filled[where, [self.objective.problem.decisions[i].column for i in where]] = values
        return filled

    def policy(self) -> Policy:
        """The likeliest choice for each layer; the progress that is observed says which it is, else the nearest description."""
        names = self.objective.embedding.names
        if "progress" in names:
            progress = names.index("progress")
            return lambda observation: self.final[min(round(float(observation[progress]) * self.steps), self.steps - 1)]
        return lambda observation: self.final[int(np.square(self.seen - observation).sum(1).argmin())]


def _draw(logits: Tensor, rng: np.random.Generator) -> int:
    p = logits.detach().double().exp().numpy()
    return int(rng.choice(len(p), p=p / p.sum()))


n2n = N2N
