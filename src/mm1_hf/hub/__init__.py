"""Publishing a model: its repository on the Hub, its model card and licence, quantised variants, and export to
ONNX."""
