"""MLflow beside a search: a callback of ten lines. Needs `pip install mlflow`, and no server, as it writes to a file here.

You will see what MLflow has of a search of 8 random students: the number of trials, the last one and the best.
With a server, give its address to `set_tracking_uri`. Digits, CPU, about 10 seconds.
"""

import tempfile

import mlflow

from compress_env import compress
from compress_env.search.callbacks import Callback, shares


class MLflow(Callback):
    def __init__(self, **settings):
        self.run = mlflow.start_run(**settings)

    def on_trial(self, trial):
        mlflow.log_metrics({"reward": trial.reward, **trial.evaluation.metrics, **shares(trial)}, step=trial.index)

    def on_best(self, trial):
        mlflow.log_metrics({"best_reward": trial.reward, "best_trial": trial.index}, step=trial.index)

    def on_end(self):
        mlflow.end_run()


def main():
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        watching = MLflow(run_name="random")
        compress(agent="random", evaluations=8, finetune_epochs=0, out=f"{folder}/run", callbacks=[watching], progress=False)
        client, number = mlflow.MlflowClient(), watching.run.info.run_id
        print(f"trials       {len(client.get_metric_history(number, 'reward'))}")
        for name, value in sorted(client.get_run(number).data.metrics.items()):
            print(f"{name:12} {value:.4g}")


if __name__ == "__main__":
    main()
