"""The environment driven by Stable-Baselines3's DDPG, which knows nothing of networks.

You will see students within 10 % of the teacher's multiply-accumulates: the one that shrinks all layers alike, the allocation (what
the action 0 gives), random ones, and DDPG's. Rewards say how close a student will come to its teacher, whose own is 1. The first run
measures for some seconds what each decision costs alone. Takes about half a minute on a CPU.
"""

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.monitor import Monitor

import compress_env  # noqa: F401 - registers the environment
from compress_env.search import search

STUDENTS = 150


def episode(env, policy):
    """The reward of a student: the rewards of an episode's steps add up to it."""
    observation, _ = env.reset()
    total, terminated = 0.0, False
    while not terminated:
        observation, reward, terminated, _, info = env.step(policy(observation))
        total += reward
    return total, info


def main():
    torch.set_num_threads(1)  # faster for networks as small as these
    env = gym.make("LayerRemoval-v0", budget={"macs": 0.1})  # a ResNet-8 on handwritten digits; nothing is downloaded
    objective = env.get_wrapper_attr("objective")
    uniform = search(objective, "uniform", 1, progress=False).best.reward
    # Actions are relative to the allocation: 0 is the allocation itself, and all of them give a student within the budget.
    allocation, _ = episode(env, lambda observation: np.zeros(2, np.float32))
    env.action_space.seed(0)
    drawn = [episode(env, lambda observation: env.action_space.sample())[0] for _ in range(STUDENTS)]

    monitor = Monitor(env)
    agent = DDPG(
        "MlpPolicy", monitor, n_steps=objective.steps, gradient_steps=4, policy_kwargs={"net_arch": [64, 64]}, seed=0
    )  # all else is its own default
    agent.learn(STUDENTS * objective.steps)
    rewards = monitor.get_episode_rewards()
    learned, info = episode(env, lambda observation: agent.predict(observation, deterministic=True)[0])

    print(f"{'uniform':32} {uniform:.3f}")
    print(f"{'allocation':32} {allocation:.3f}")
    print(f"{f'random actions, mean of {STUDENTS}':32} {np.mean(drawn):.3f}")
    print(f"{'DDPG, mean of the last 10':32} {np.mean(rewards[-10:]):.3f}")
    print(f"{'DDPG, its policy':32} {learned:.3f}   {info['usage']['macs']:,.0f} of {info['budget']['macs']:,.0f} MACs")
    print(f"{f'random actions, best of {STUDENTS}':32} {max(drawn):.3f}")
    print(f"{'DDPG, best on the way':32} {max(rewards):.3f}")


if __name__ == "__main__":
    main()
