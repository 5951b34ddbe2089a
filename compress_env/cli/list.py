"""`compress-env list`."""

from __future__ import annotations

import json

import click

from compress_env.cli import options


@click.command("list", short_help="What can be chosen by name.")
@options.as_json("An object, a kind an entry,")
def list_(as_json: bool) -> None:
    """Names of teachers, data sets, agents, rewards and everything else that can be chosen by name, or given as module:attribute.

    \b
    compress-env list
    compress-env list --json | jq .agents
    """
    from compress_env.bench.scenarios import SCENARIOS
    from compress_env.data import DATASETS
    from compress_env.presets import PRESETS
    from compress_env.resources import RESOURCES
    from compress_env.rewards import REWARDS
    from compress_env.search.run import AGENTS
    from compress_env.surgery.ranking import RANKINGS
    from compress_env.surgery.rules.registry import rule_names
    from compress_env.tasks import TASKS
    from compress_env.teachers import TEACHERS

    rows = {
        "teachers": TEACHERS.names(),
        "data sets": [*DATASETS.names(), "imagefolder:DIR", "images:DIR", "hf:NAME"],
        "agents": sorted(AGENTS), "earlier systems": sorted(PRESETS), "rewards": REWARDS.names(),
        "resources": RESOURCES.names(), "rankings": RANKINGS.names(), "tasks": TASKS.names(),
        **{f"losses, {name}": task.losses.names() for name, task in TASKS.items()}, "layer rules": rule_names(),
        "scenarios of bench run": SCENARIOS.names(),
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, rows))
    for kind, names in rows.items():
        click.echo(f"{kind:{width}}  {', '.join(names)}")
