"""The command line `compress-env`.

Each command is a file; heavy modules are imported where they are used, so that `--help` answers at once.
"""

from __future__ import annotations

import os

import click

from compress_env.cli.bench import bench
from compress_env.cli.commands import Group
from compress_env.cli.distill import distill
from compress_env.cli.export import export
from compress_env.cli.finetune import finetune
from compress_env.cli.inspect import inspect
from compress_env.cli.list import list_
from compress_env.cli.policy import policy
from compress_env.cli.pull import pull
from compress_env.cli.push import push
from compress_env.cli.report import report
from compress_env.cli.runs import runs
from compress_env.cli.search import search
from compress_env.cli.trials import trials
from compress_env.cli.validate import validate


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="compress-env")
@click.pass_context
def main(context: click.Context) -> None:
    """Compress a trained network: an agent searches for the student that keeps most of the accuracy within a budget.

    \b
    compress-env search --budget macs=0.5                       the shipped teacher on bundled digits, in a minute
    compress-env search --teacher resnet20-cifar10 --data imagefolder:cifar10 --budget macs=0.5 --out runs/a
    compress-env search --teacher net.py:make --weights net.pt --data imagefolder:photos --budget latency=2ms
    compress-env inspect --teacher resnet20-cifar10             what can be removed or shrunk, and what that saves
    compress-env list                                           what teachers, agents, rewards and so on there are
    """
    if "RANK" in os.environ and context.invoked_subcommand != "finetune":
        from compress_env.distill import processes

        if processes.started():
            raise click.UsageError("torchrun and accelerate can start several processes of `compress-env finetune` only")


for _command in (search, inspect, finetune, distill, report, export, validate, runs, trials, policy, push, pull, bench, list_):
    main.add_command(_command)


if __name__ == "__main__":
    main()
