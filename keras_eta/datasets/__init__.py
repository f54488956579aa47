"""From raw logs to training batches: interactions, impressions, and four data sets.

log -> `Interactions` -> `Impressions` -> `temporal_split` -> `Impressions.to_dataset` -> `model.fit`

`sample_negatives` makes impressions of a log that holds positives only.
`baseline_scores` counts what a ranker must beat.
`cluster_log` makes `Clusters` of a log, the behaviours that TWIN-V2 reads.
"""

from keras_eta.datasets import complete_journey, movielens, synthetic, taobao
from keras_eta.datasets.baselines import baseline_scores
from keras_eta.datasets.clustering import cluster_behaviours, quantile_groups
from keras_eta.datasets.clusters import Clusters, cluster_log, regular_snapshots
from keras_eta.datasets.impressions import Impressions, temporal_split
from keras_eta.datasets.interactions import Interactions, Rejection, Report
from keras_eta.datasets.item_vectors import load_item_vectors, save_item_vectors
from keras_eta.datasets.negatives import corrected_logits, sample_negatives

__all__ = [
    "Clusters",
    "Impressions",
    "Interactions",
    "Rejection",
    "Report",
    "baseline_scores",
    "cluster_behaviours",
    "cluster_log",
    "complete_journey",
    "corrected_logits",
    "load_item_vectors",
    "movielens",
    "quantile_groups",
    "regular_snapshots",
    "sample_negatives",
    "save_item_vectors",
    "synthetic",
    "taobao",
    "temporal_split",
]
