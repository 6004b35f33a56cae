"""`mm1 chat`: transformers' own, which talks to what `mm1 serve` serves."""

from mm1_hf.cli.serve import run_transformers as run


__all__ = ["run"]
