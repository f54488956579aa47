"""Rankers, and an autoencoder of items, on `tfrs.Model`."""

from keras_eta.models.eta import ETA
from keras_eta.models.ranker import Ranker, Scores
from keras_eta.models.rq_vae import RQVAE
from keras_eta.models.tasks import RetrievalTask

__all__ = ["ETA", "RQVAE", "Ranker", "RetrievalTask", "Scores"]
