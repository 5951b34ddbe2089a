"""The environment in ten lines, driven by Stable-Baselines3's DDPG.

You will see the rewards of uniform and random students and of plain DDPG, all within 30 % of the teacher's
multiply-accumulates. 25 students are few: `agents/ddpg.py` has settings that learn from more of them, and
`compress-env search --agent ddpg` runs it. Takes about 15 seconds on a CPU.
"""

import gymnasium as gym
import numpy as np
from stable_baselines3 import DDPG
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise

import compress_env  # noqa: F401 - registers the environment


def episode(env, policy):
    """Reward and info of a student; every reward before the last is 0."""
    observation, info = env.reset()
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(policy(observation))
    return reward, info


def main():
    env = gym.make("LayerRemoval-v0", budget={"macs": 0.3})  # a ResNet-8 on handwritten digits; nothing is downloaded
    env.action_space.seed(0)
    # Action 0 keeps every layer and shrinks all alike. Actions are clamped: whatever an agent does fits the budget.
    uniform, info = episode(env, lambda observation: np.zeros(2, np.float32))
    random = [episode(env, lambda observation: env.action_space.sample())[0] for _ in range(10)]

    monitor, noise = Monitor(env), NormalActionNoise(np.zeros(2), np.full(2, 0.4))
    agent = DDPG("MlpPolicy", monitor, gamma=1.0, action_noise=noise, learning_starts=90, learning_rate=1e-4, seed=0)
    agent.learn(25 * env.unwrapped.steps)  # 25 students, one an episode
    learned, _ = episode(env, lambda observation: agent.predict(observation, deterministic=True)[0])

    print(f"{'student':28} reward, accuracy relative to the teacher's")
    print(f"{'uniform':28} {uniform:.4f}   {info['usage']['macs']:,.0f} of {info['budget']['macs']:,.0f} MACs")
    print(f"{'random, mean of 10':28} {np.mean(random):.4f}")
    print(f"{'random, best of 10':28} {max(random):.4f}")
    print(f"{'DDPG, best of 25 on the way':28} {max(monitor.get_episode_rewards()):.4f}")
    print(f"{'DDPG, what it learned':28} {learned:.4f}")


if __name__ == "__main__":
    main()
