"""Rankers, a retriever, and an autoencoder of items, on `tfrs.Model`."""

from keras_eta.models.eta import ETA
from keras_eta.models.ranker import Ranker, Scores
from keras_eta.models.rq_vae import RQVAE
from keras_eta.models.tasks import RetrievalTask
from keras_eta.models.tiger import TIGER

__all__ = ["ETA", "RQVAE", "TIGER", "Ranker", "RetrievalTask", "Scores"]
