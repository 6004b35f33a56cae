"""Converts an AIM encoder, version 1: python conversion/convert_aim.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "aim", *sys.argv[1:]]))
