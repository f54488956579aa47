"""Search units: which behaviours of a long history a ranker attends to."""

from keras_eta.search.full import FullSearch
from keras_eta.search.hamming import HammingSearch
from keras_eta.search.inner_product import InnerProductSearch
from keras_eta.search.search_unit import Retrieved, SearchUnit

__all__ = ["FullSearch", "HammingSearch", "InnerProductSearch", "Retrieved", "SearchUnit"]
