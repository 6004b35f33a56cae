"""Converts Honeybee's C-Abstractor to a connector of MM1: python conversion/convert_honeybee.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "honeybee", *sys.argv[1:]]))
