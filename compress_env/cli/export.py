"""`compress-env export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from compress_env.cli import options
from compress_env.cli.trust import trust_of, trusting


@click.command(short_help="Export the student of a run folder to ONNX and torch.export.")
@trusting
@click.option("--out", type=options.Place(), required=True, help="Run folder with a fine-tuned student.")
@click.option("--onnx", type=options.Place(path_type=Path, dir_okay=False), help="Write ONNX to this file.")
@click.option(
    "--pt2", type=options.Place(path_type=Path, dir_okay=False), help="Write for torch.export.load to this file."
)
@options.quiet
@options.as_json("The largest difference of each file, as a share of the largest output,")
def export(out: str, onnx: Path | None, pt2: Path | None, trust: bool, quiet: bool, as_json: bool) -> None:
    """Rebuild the student from plan.json and student.safetensors, write files that need no code of ours, compare with PyTorch.

    Without --onnx and --pt2 both are written into the run folder, as student.onnx and student.pt2; the batch size is free.

    \b
    compress-env export --out runs/a
    compress-env export --out runs/a --onnx small.onnx --pt2 small.pt2
    """
    from compress_env.api import objective_of
    from compress_env.export import FORMATS, rebuild_student
    from compress_env.extras import ONNX, need
    from compress_env.progress import announced
    from compress_env.search.store import RunFolder

    folder = RunFolder(out)
    folder.read("plan.json")
    given = {"student.onnx": onnx, "student.pt2": pt2}
    paths = {n: p for n, p in given.items() if p} or {n: folder.path / n for n in FORMATS}
    if "student.onnx" in paths:
        need("student.onnx", *ONNX)
    problem = objective_of(folder, not quiet, trust=trust_of([folder], trust)).problem
    student = rebuild_student(problem.module, problem.graph, folder.path)
    result, differences = folder.result(), dict[str, float]()
    for name, path in paths.items():
        with announced(f"writing and checking {path}", not quiet):
            differences[str(path)] = FORMATS[name](student, problem.data.calibration(8), path, result.metadata if result else None)
        if not as_json:
            click.echo(f"{path}: outputs differ from PyTorch's by at most {differences[str(path)]:.1g} of the largest")
    if as_json:
        click.echo(json.dumps(differences, indent=2))
