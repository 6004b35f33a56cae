"""Converts an image encoder of open_clip to transformers' CLIP: python conversion/convert_open_clip.py SOURCE DIR"""

import sys

from mm1_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", "open_clip", *sys.argv[1:]]))
