"""Converts a GGUF decoder to its class in transformers: python conversion/convert_gguf.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "gguf", *sys.argv[1:]]))
