"""`python -m compress_env.cli`: the command line."""

from compress_env.cli.main import main

main(prog_name="compress-env")
