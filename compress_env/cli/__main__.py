from compress_env.cli.main import main

main()
