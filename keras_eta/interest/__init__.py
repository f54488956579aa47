"""Interest units: how a ranker reads a candidate's interest out of a sequence of behaviours."""

from keras_eta.interest.attention import AttentionUnit
from keras_eta.interest.base import Columns, Interest, InterestUnit, Retrieved
from keras_eta.interest.eta import ETAInterest, default_distance_edges
from keras_eta.interest.full import FullInterest
from keras_eta.interest.inner_product import InnerProductInterest
from keras_eta.interest.match import MatchInterest
from keras_eta.interest.mimn import MIMN
from keras_eta.interest.pooling import PoolingInterest
from keras_eta.interest.recent import RecentInterest
from keras_eta.interest.sdim import SDIM
from keras_eta.interest.sim_hard import SIMHard
from keras_eta.interest.sim_soft import SIMSoft
from keras_eta.interest.top_k import TopKUnit
from keras_eta.interest.twin import TWIN
from keras_eta.interest.twin_v2 import TWINV2

__all__ = [
    "MIMN",
    "SDIM",
    "TWIN",
    "TWINV2",
    "AttentionUnit",
    "Columns",
    "ETAInterest",
    "FullInterest",
    "InnerProductInterest",
    "Interest",
    "InterestUnit",
    "MatchInterest",
    "PoolingInterest",
    "RecentInterest",
    "Retrieved",
    "SIMHard",
    "SIMSoft",
    "TopKUnit",
    "default_distance_edges",
]
