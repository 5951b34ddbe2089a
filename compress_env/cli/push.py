"""`compress-env push`."""

from __future__ import annotations

import click

from compress_env.cli import options


@click.command(short_help="Put a student or a policy on the Hugging Face Hub.")
@click.argument("source", type=options.Place(), metavar="RUN")
@click.option("--to", required=True, metavar="USER/NAME", help="The repository; it is made if it is not there.")
@click.option("--private", is_flag=True, help="Only you see it.")
@click.option("--license", "license_", metavar="ID", help="Such as mit or apache-2.0; without it, the card says that none is stated.")
@click.option(
    "--dry-run", "dry_run", type=options.Place(file_okay=False), metavar="FOLDER", help="Write what would be pushed here, and stop."
)
@options.quiet
def push(source: str, to: str, private: bool, license_: str | None, dry_run: str | None, quiet: bool) -> None:
    """Push the distilled student of RUN, its policy, or both, with a model card that has its numbers, its budget and its command. RUN
    is a run folder, a folder of `compress-env distill`, or the file of a policy.

    Settings, numbers, plan, weights and ONNX travel: files that run no code when they are loaded. Log in first, with `hf auth login`,
    or set HF_TOKEN.

    \b
    compress-env push runs/a --to USER/NAME --dry-run look-at-it
    compress-env push runs/a --to USER/NAME --private --license mit
    compress-env push policy.onnx --to USER/NAME
    """
    from compress_env.hub.transfer import prepared, push_to_hub

    if dry_run is not None:
        folder = prepared(source, to, dry_run, license=license_)
        for file in sorted(folder.iterdir()):
            click.echo(f"{file}  {file.stat().st_size:,} bytes")
        return
    click.echo(push_to_hub(source, to, private=private, license=license_, progress=not quiet))
