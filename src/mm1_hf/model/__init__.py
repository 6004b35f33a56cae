"""
The model: every module here travels to the Hub with a saved model, and loads there where this package is not installed.

So they import only transformers, torch, numpy, Pillow and each other, by `from .name import`, and lie flat in this folder.
`presets/` holds the published sizes, and stays in the package.
"""
