"""Megabytes that each extra of the package adds to an installation, from what is installed here; without PyTorch and what it needs.

`python -m benchmarks.install_size` in an environment with everything, `pip install -e '.[all]'`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import click
from packaging.requirements import Requirement

PACKAGE = "compress-env"
WITHOUT = ("torch", "torchvision")
"""Installed in the variant that fits the machine: from 0.2 GB without a GPU to 5 GB."""


def closure(names: Iterable[str]) -> tuple[dict[str, Distribution], set[str]]:
    """Distributions that `NAME[EXTRA]`s need, by name, those that are given among them, and the names of those that are missing."""
    found: dict[str, Distribution] = {}
    missing: set[str] = set()
    left, seen = [Requirement(name) for name in names], set()
    while left:
        wanted = left.pop()
        name = wanted.name.lower().replace("_", "-")
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        for text in found[name].requires or []:
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                left.append(further)
    return found, missing


def megabytes(distributions: Iterable[Distribution]) -> float:
    """What their files take, compiled Python left out."""
    files = (file.locate() for one in distributions for file in one.files or [])
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc" and path.is_file()) / 1e6


@click.command()
def main() -> None:
    """Print a line for the core, and one for each extra."""
    apart = closure(WITHOUT)[0].keys()
    core, _ = closure([PACKAGE])
    own = {name: one for name, one in core.items() if name not in apart}
    print(f"{'core':12} {megabytes(own.values()):6.0f} MB in {len(own)} packages, beside {' and '.join(WITHOUT)} with theirs")
    for extra in distribution(PACKAGE).metadata.get_all("Provides-Extra") or []:
        found, missing = closure([f"{PACKAGE}[{extra}]"])
        added = {name: one for name, one in found.items() if name not in core and name not in apart}
        lacks = f"; not installed here: {', '.join(sorted(missing))}" if missing else ""
        print(f"{extra:12} {megabytes(added.values()):6.0f} MB more in {len(added)}{lacks}")


if __name__ == "__main__":
    main()
