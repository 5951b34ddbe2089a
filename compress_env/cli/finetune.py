"""`compress-env finetune`."""

from __future__ import annotations

from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.run import show
from compress_env.cli.trust import trust_of, trusting
from compress_env.spec import FinetuneSpec


@click.command(short_help="Distil the best student of a run folder fully.")
@trusting
@click.option("--out", type=options.Place(), required=True, help="Run folder of a search.")
@options.of(FinetuneSpec)
@options.quiet
@options.as_json("The content of result.json")
def finetune(out: str, trust: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Distil the best student of a run fully; an interrupted fine-tuning goes on from its last epoch.

    \b
    compress-env finetune --out runs/a --epochs 40
    compress-env finetune --out runs/a --epochs 40 --lr 0.05 --batch-size 128 --loss mine.py:loss
    torchrun --nproc-per-node 4 -m compress_env finetune --out runs/a --epochs 40

    The last one shares each batch among four processes, with a GPU each where there are GPUs; so does `accelerate launch`. All of them
    have to see the run folder, the data and the teacher under the same names.
    """
    from compress_env.distill import processes
    from compress_env.finishing import finish, finish_along
    from compress_env.search.store import RunFolder

    with processes.together():
        folder = RunFolder(out)
        trusted = trust_of([folder], trust)
        if processes.rank():
            finish_along(folder, trust=trusted, **settings)
        else:
            show(finish(folder, progress=not quiet, trust=trusted, **settings), as_json)
