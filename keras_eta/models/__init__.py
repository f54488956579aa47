"""Rankers and a retriever on `tfrs.Model`."""

from keras_eta.models.eta import ETA
from keras_eta.models.ranker import Ranker, Scores
from keras_eta.models.tasks import RetrievalTask
from keras_eta.models.tiger import TIGER

__all__ = ["ETA", "TIGER", "Ranker", "RetrievalTask", "Scores"]
