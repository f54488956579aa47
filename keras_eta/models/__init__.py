"""Rankers on `tfrs.Model`."""

from keras_eta.models.eta import ETA
from keras_eta.models.ranker import Ranker, Scores

__all__ = ["ETA", "Ranker", "Scores"]
