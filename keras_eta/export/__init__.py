"""Exports rankers and retrievers for TensorFlow Serving."""

from keras_eta.export.attribute_table import AttributeTable
from keras_eta.export.columns import COUNT, DISTANCES, EXAMPLES, POSITIONS, PROBABILITY, WEIGHTS
from keras_eta.export.export import export_model
from keras_eta.export.retriever import export_retriever

__all__ = [
    "COUNT",
    "DISTANCES",
    "EXAMPLES",
    "POSITIONS",
    "PROBABILITY",
    "WEIGHTS",
    "AttributeTable",
    "export_model",
    "export_retriever",
]
