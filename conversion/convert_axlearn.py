"""Converts a decoder of AXLearn to mm1_text: python conversion/convert_axlearn.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "axlearn", *sys.argv[1:]]))
