"""A reward of one's own: a function of an evaluation and its limits, given as a function or as "module:attribute".

You will see the best of 12 random students under three rewards. The default asks for accuracy alone, the other two
also pay for what is saved beyond the budget; both ways to name a function agree. Digits, CPU, about 10 seconds.
"""

import gymnasium as gym

import compress_env  # noqa: F401 - registers the environment
from compress_env.evaluation import Evaluation
from compress_env.search import search


def mnasnet(evaluation: Evaluation, limits) -> float:
    """Accuracy times (MACs / target) to the power of -0.07 (Tan et al., CVPR 2019, equation 2)."""
    return evaluation.metric * (evaluation.usage["macs"] / limits["macs"]) ** -0.07


def itemised(evaluation: Evaluation, limits) -> dict[str, float]:
    """A sum that pays for parameters saved. Terms come back by name in `info["reward_terms"]` and in every trial."""
    return {"accuracy": evaluation.metric, "saved": 0.5 * (1 - evaluation.size)}


def main():
    rewards = {
        "relative (default)": "relative",
        "mnasnet": mnasnet,
        "my_reward:mnasnet": "my_reward:mnasnet",
        "my_reward:itemised": "my_reward:itemised",
    }
    print(f"{'reward':20} {'best':>7} {'accuracy':>9} {'MACs':>8} {'params':>7}  terms")
    for name, reward in rewards.items():
        env = gym.make("LayerRemoval-v0", budget={"macs": 0.5}, reward=reward, evaluator={"calibration_images": 128})
        best = search(env, "random", evaluations=12, seed=0, progress=False).best
        terms = ", ".join(f"{term} {value:.3f}" for term, value in best.reward_terms.items() if value)
        used = f"{best.evaluation.usage['macs']:8,.0f} {best.evaluation.usage['params']:7,.0f}"
        print(f"{name:20} {best.reward:7.4f} {best.evaluation.metric:9.2%} {used}  {terms}")


if __name__ == "__main__":
    main()
