"""From raw logs to training batches: interactions, impressions, and three data sets.

log -> `Interactions` -> `Impressions` -> `temporal_split` -> `Impressions.to_dataset` -> `model.fit`
"""

from keras_eta.datasets import movielens, synthetic, taobao
from keras_eta.datasets.impressions import Impressions, temporal_split
from keras_eta.datasets.interactions import Interactions, Rejection, Report

__all__ = [
    "Impressions",
    "Interactions",
    "Rejection",
    "Report",
    "movielens",
    "synthetic",
    "taobao",
    "temporal_split",
]
