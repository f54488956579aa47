"""TIGER whose decoder keeps nothing: at each token it reads the beginnings of all beams again."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.layers.transformer_blocks import Memory
from keras_eta.models import TIGER
from keras_eta.models.beam_search import Step


class UncachedTIGER(TIGER):
    """Finds what `TIGER` finds, to compare times with. The keys and values of the history are made once, as there."""

    def _speller(self, memories: list[Memory], requests: tf.Tensor) -> Step:
        def step(level: int, codes: tf.Tensor | None, beginnings: Any) -> tuple[tf.Tensor, Any]:
            last = self._last_token(level, codes, requests)[:, :, tf.newaxis]
            beginnings = last if beginnings is None else tf.concat([beginnings, last], axis=2)
            beams = tf.shape(beginnings)[1]
            x = tf.reshape(beginnings, [requests * beams, level + 1, beginnings.shape[-1]])
            for block, memory in zip(self.decoder, memories, strict=True):
                x = block(x, Memory(*(tf.repeat(part, beams, axis=0) for part in memory)))
            logits = self.heads[level](self.decoder_norm(x)[:, -1])
            return tf.reshape(logits, [requests, beams, logits.shape[-1]]), beginnings

        return step
