"""Rankers on `tfrs.Model`."""

from keras_eta.models.eta import ETA
from keras_eta.models.ranker import Ranker, Scores
from keras_eta.models.tasks import RetrievalTask

__all__ = ["ETA", "Ranker", "RetrievalTask", "Scores"]
