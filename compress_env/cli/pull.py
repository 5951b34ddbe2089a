"""`compress-env pull`."""

from __future__ import annotations

import shlex

import click

from compress_env.cli import options


@click.command(short_help="Bring a student or a policy from the Hugging Face Hub.")
@click.argument("repo_id", metavar="USER/NAME")
@click.option("--out", type=options.Place(file_okay=False), required=True, help="New or empty folder to put it into.")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit; the main branch if absent.")
@options.quiet
def pull(repo_id: str, out: str, revision: str | None, quiet: bool) -> None:
    """Pull what `compress-env push` has pushed. Only files of its names are asked for; their sizes and formats are checked before they
    are used, and other files stay where they are.

    \b
    compress-env pull USER/NAME --out pulled
    compress-env export --out pulled --onnx small.onnx
    compress-env policy apply pulled/policy.onnx --budget macs=35% --out runs/b
    """
    from compress_env.hub.transfer import pull_from_hub
    from compress_env.search.run import POLICY
    from compress_env.students import WEIGHTS

    folder = pull_from_hub(repo_id, out, revision=revision, progress=not quiet)
    click.echo(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    if (folder / WEIGHTS).is_file():
        click.echo(f"student: compress_env.load_student({str(folder)!r})")
    if (folder / POLICY).is_file():
        click.echo(f"policy: compress-env policy apply {shlex.quote(str(folder / POLICY))} --budget macs=35% --out runs/applied")
