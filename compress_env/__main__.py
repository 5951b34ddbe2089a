"""`python -m compress_env`: the command line."""

from compress_env.cli.main import main

main(prog_name="compress-env")
