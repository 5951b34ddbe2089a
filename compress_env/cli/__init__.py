"""The command line `compress-env`."""
