"""Keras layers of target attention over long behaviour sequences."""

from keras_eta.layers.activation_unit import ActivationUnit
from keras_eta.layers.dice import Dice
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.layers.fingerprinted_embedding import FingerprintedEmbedding
from keras_eta.layers.hamming_top_k import HammingTopK
from keras_eta.layers.residual_quantizer import Quantized, ResidualQuantizer
from keras_eta.layers.simhash import SimHash
from keras_eta.layers.target_attention import TargetAttention

__all__ = [
    "ActivationUnit",
    "Dice",
    "FeatureLookup",
    "FingerprintedEmbedding",
    "HammingTopK",
    "Quantized",
    "ResidualQuantizer",
    "SimHash",
    "TargetAttention",
]
