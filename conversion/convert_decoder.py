"""Converts a decoder of transformers to mm1_text: python conversion/convert_decoder.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "decoder", *sys.argv[1:]]))
