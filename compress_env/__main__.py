from compress_env.cli.main import main

main(prog_name="compress-env")
