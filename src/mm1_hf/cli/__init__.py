"""
The verbs of the `mm1` command. Each has a module of its own name here, whose `run` takes the verb's options. `mm1_command`
parses them, and imports the module when its verb is run.
"""

from mm1_command import build_parser, main


__all__ = ["build_parser", "main"]
