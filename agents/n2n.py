"""N2N learning (Ashok et al., ICLR 2018), the predecessor: REINFORCE for recurrent policies, first removal, then shrinking.

As in the paper, and unlike its released code: all weights of the recurrent policies are trained, each student is credited with its
own reward, and the teacher stays the teacher in both stages.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
import torch
from torch import Tensor, nn

from compress_env.agents.sequence import Baseline

LEVELS = np.linspace(-1, 1, 11)
"""Eleven choices a layer, as in the paper; of the environment's action, so that the one in the middle is the uniform student's."""
HIDDEN = 30


class Remover(nn.Module):
    """A bidirectional LSTM over the layers; for each the logits of keeping and removing it, `(layers, 2)`."""

    def __init__(self, features: int):
        super().__init__()
        self.lstm = nn.LSTM(features, HIDDEN, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, layers: Tensor, choose) -> tuple[list[int], Tensor]:
        """The choices, and the logarithm of their probability."""
        logits = self.head(self.lstm(layers)[0]).log_softmax(1)
        choices = [choose(row) for row in logits]
        return choices, logits[range(len(choices)), choices].sum()


class Shrinker(nn.Module):
    """An LSTM from layer to layer that also sees what it chose for the one before."""

    def __init__(self, features: int):
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(features + len(LEVELS), HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)])
        self.head = nn.Linear(HIDDEN, len(LEVELS))

    def forward(self, layers: Tensor, choose) -> tuple[list[int], Tensor]:
        """The choices, and the logarithm of their probability."""
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


class _N2N(Baseline):
    def __init__(self, env, episodes, seed, rollouts, lr):
        super().__init__(env, episodes, seed)
        self.rollouts, self.lr, self.played = rollouts, lr, 0
        self.observations: list[np.ndarray] = []
        self.final = np.zeros((self.steps, 2))

    def proposals(self, rng):
        best, best_reward = self.final, (yield self.final)
        layers = torch.from_numpy(np.array(self.observations))
        kinds = [d.kind for d in self.env.unwrapped.problem.decisions]
        stages = [(kind, Network) for kind, Network in (("remove", Remover), ("shrink", Shrinker)) if kind in kinds]
        for number, (kind, Network) in enumerate(stages):
            where = np.flatnonzero([k == kind for k in kinds])
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + number)
                policy = Network(layers.shape[1])
            optimizer = torch.optim.Adam(policy.parameters(), lr=self.lr)
            fixed, baseline = best, best_reward
            end = round((number + 1) * self.episodes / len(stages))
            while self.played < end:
                losses = []
                for _ in range(min(self.rollouts, end - self.played)):
                    choices, probability = policy(layers[where], lambda row: _draw(row, rng))
                    actions = _filled(fixed, where, kind, choices)
                    reward = yield actions
                    losses.append(-probability * (reward - baseline))
                    baseline = 0.95 * baseline + 0.05 * reward
                    if reward > best_reward:
                        best, best_reward = actions, reward
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
            with torch.no_grad():
                choices, _ = policy(layers[where], lambda row: int(row.argmax()))
            self.final = _filled(fixed, where, kind, choices)

    def play(self, actions, seed):
        """As the baseline's; the first student's observations describe the layers from then on."""
        observation, _ = self.env.reset(seed=seed)
        observations = []
        for action in actions:
            observations.append(observation)
            observation, reward, *_ = self.env.step(action.astype(np.float32))
        self.observations = self.observations or observations
        self.played += 1
        return reward

    def policy(self):
        """The likeliest choice for each layer, in the order of the steps."""
        actions = cycle(self.final.astype(np.float32))
        return lambda observation: next(actions)


def _draw(logits: Tensor, rng: np.random.Generator) -> int:
    p = logits.detach().double().exp().numpy()
    return int(rng.choice(len(p), p=p / p.sum()))


def _filled(actions: np.ndarray, where: np.ndarray, kind: str, choices: list[int]) -> np.ndarray:
    filled = actions.copy()
    if kind == "remove":
        filled[where, 0] = 1.0 - 2.0 * np.array(choices)
    else:
        filled[where, 1] = LEVELS[choices]
    return filled


def n2n(env, episodes: int, seed: int, rollouts: int = 5, lr: float = 3e-3) -> Baseline:
    """Half of the students for removal at even widths, half for the widths of the best of those; `rollouts` students an update."""
    return _N2N(env, episodes, seed, rollouts, lr)
