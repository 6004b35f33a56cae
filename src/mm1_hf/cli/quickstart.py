"""`mm1 quickstart`: the whole way in one command."""

from mm1_hf.quickstart.run import quickstart as run


__all__ = ["run"]
