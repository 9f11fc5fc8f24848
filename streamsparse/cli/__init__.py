"""The command line: argv to the stages."""

from streamsparse.cli.app import main

__all__ = ["main"]
