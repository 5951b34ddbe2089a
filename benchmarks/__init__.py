"""Experiments behind the numbers that are published, each one command from a checkout: `python -m benchmarks.NAME --help`.

Results are beside the code that made them; those of `compress-env bench` are in agents/, ablations/, stock/ and zero-shot/. Nothing
here is part of the package.
"""
