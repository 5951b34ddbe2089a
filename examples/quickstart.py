"""The environment driven by Stable-Baselines3's SAC, which knows nothing of networks.

You will see that it learns: the students of its first random episodes, of its last ones, and of its policy, beside the student that
shrinks all layers alike, all within 10 % of the teacher's multiply-accumulates. `compress-env search` finds better ones (`agents/`
has settings and models of the reward that make more of an evaluation). Takes about 10 seconds on a CPU.
"""

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.monitor import Monitor

import compress_env  # noqa: F401 - registers the environment

RANDOM, STUDENTS = 30, 120


def episode(env, policy):
    """Reward and info of a student; every reward before the last is 0."""
    observation, info = env.reset()
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(policy(observation))
    return reward, info


def main():
    torch.set_num_threads(1)  # faster for networks as small as these
    env = gym.make("LayerRemoval-v0", budget={"macs": 0.1})  # a ResNet-8 on handwritten digits; nothing is downloaded
    # Action 0 keeps every layer and shrinks all alike. Actions are clamped: whatever an agent does fits the budget.
    uniform, info = episode(env, lambda observation: np.zeros(2, np.float32))

    steps = env.get_wrapper_attr("objective").steps  # of an episode: one student
    monitor = Monitor(env)
    agent = SAC(
        "MlpPolicy", monitor, gamma=1.0, n_steps=steps, ent_coef=0.05, learning_rate=1e-3, train_freq=(1, "episode"),
        gradient_steps=-1, learning_starts=RANDOM * steps, policy_kwargs={"net_arch": [128, 128]}, seed=0,
    )  # fmt: skip
    agent.learn(STUDENTS * steps)
    rewards = monitor.get_episode_rewards()
    learned, last = episode(env, lambda observation: agent.predict(observation, deterministic=True)[0])

    print(f"{'student':28} reward, a guess at the accuracy after distillation, relative to the teacher's")
    print(f"{'uniform':28} {uniform:.3f}   {info['usage']['macs']:,.0f} of {info['budget']['macs']:,.0f} MACs")
    print(f"{'SAC, mean of first 30':28} {np.mean(rewards[:RANDOM]):.3f}")
    print(f"{'SAC, mean of last 30':28} {np.mean(rewards[-RANDOM:]):.3f}")
    print(f"{'SAC, best on the way':28} {max(rewards):.3f}")
    print(f"{'SAC, its policy':28} {learned:.3f}   {last['usage']['macs']:,.0f} MACs")


if __name__ == "__main__":
    main()
