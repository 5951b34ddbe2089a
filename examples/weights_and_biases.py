"""Weights & Biases beside a search: a callback of ten lines. Needs `pip install wandb`, and no account, as it runs offline here.

You will see what the run has logged after a search of 8 random students: the last trial, and the best in the summary.
With an account, leave `mode="offline"` out. Digits, CPU, about 10 seconds.
"""

import tempfile

import wandb

from compress_env import compress
from compress_env.search.callbacks import Callback, shares


class WeightsAndBiases(Callback):
    def __init__(self, **settings):
        self.run = wandb.init(**settings)

    def on_trial(self, trial):
        self.run.log({"reward": trial.reward, **trial.evaluation.metrics, **shares(trial)}, step=trial.index, commit=True)

    def on_best(self, trial):
        self.run.summary.update({"best reward": trial.reward, "best trial": trial.index})

    def on_end(self):
        self.logged = dict(self.run.summary)
        self.run.finish()


def main():
    with tempfile.TemporaryDirectory() as folder:
        settings = wandb.Settings(console="off", silent=True)
        watching = WeightsAndBiases(mode="offline", project="compress", dir=folder, settings=settings)
        compress(agent="random", evaluations=8, finetune_epochs=0, out=f"{folder}/run", callbacks=[watching], progress=False)
        for name in ("_step", "reward", "accuracy", "macs", "best trial", "best reward"):
            print(f"{name:12} {watching.logged[name]:.4g}")


if __name__ == "__main__":
    main()
