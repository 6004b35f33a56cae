"""The models that answer requests of an evaluation."""

from .endpoint import EndpointError, EndpointModel
from .loading import load_model
from .local import LocalModel
from .mm1 import MM1LocalModel


__all__ = ["EndpointError", "EndpointModel", "LocalModel", "MM1LocalModel", "load_model"]
