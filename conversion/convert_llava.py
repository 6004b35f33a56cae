"""Converts a LLaVA-1.5 or LLaVA-NeXT to an MM1: python conversion/convert_llava.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "llava", *sys.argv[1:]]))
