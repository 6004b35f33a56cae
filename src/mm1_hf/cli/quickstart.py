"""`mm1 quickstart`."""

from mm1_hf.quickstart.run import quickstart


__all__ = ["quickstart"]
