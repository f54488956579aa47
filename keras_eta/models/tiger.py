"""TIGER, a generative retriever: the next item's semantic id, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.columns import HISTORY_LENGTH, ITEM_ID, Feature, history_name
from keras_eta.distribution import sum_over_replicas
from keras_eta.features import Features
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.layers.semantic_id_table import SemanticIdTable
from keras_eta.layers.transformer_blocks import DecoderBlock, EncoderBlock, Memory
from keras_eta.models.beam_search import Beams, Excluded, Reserve, Step, among, beam_search, with_reserved
from keras_eta.models.compiled_search import search_each
from keras_eta.models.optimizers import EmbeddingsAndDense, check_rates
from keras_eta.models.trainable import TrainableModel
from keras_eta.semantic_ids import SemanticIds
from keras_eta.validation import check_positive_integers, is_number

Inputs = Mapping[str, tf.Tensor]

# Of a search for reserved results, however few they are.
_FEWEST_BEAMS = 10


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class TIGER(TrainableModel):
    """Finds items for a user: an encoder reads the semantic ids of the last behaviours, a decoder spells the next one.

    Trained on impressions with label 1, of which each is the item that follows its history: the sliding windows of a
    log are `Impressions.from_interactions(log, label=lambda log: np.ones(len(log), int), min_history=1)`. Rows with
    label 0 and of unknown items say nothing. The model reads rows, as its `lookup` makes them of raw ids:
    `impressions.to_dataset(model.features, 256, lookup=model.lookup, shuffle=True)`.

    Positions count back from the moment of the prediction: the most recent behaviour is at 0, however long the history
    is. Before the history stands one learned vector, so that an empty history has a prediction as well: what is likely
    of a user of whom nothing is known.

    Args:
        ids: the semantic ids of all items that can be found.
        max_history_length: L, behaviours that are read.
        dim: D, width of all vectors.
        num_heads: heads of every attention.
        key_dim: width of a head. `None`: D / `num_heads`.
        num_layers: of the encoder, and of the decoder.
        feed_forward_units: width of the hidden layers.
        dropout: rate, in training.
        spelt_history: whether the encoder reads the tokens of a behaviour one by one, as in the paper, or their sum. Of
            T tokens each, spelt histories are T times as long, and training takes several times as long.
        label_smoothing: share of a target's weight that is spread over all codes of its level.
        user: an id feature of the user, whose ids are hashed to `num_oov_indices` vectors, of which the encoder reads
            one before the history: `Feature("user_id", num_oov_indices=2000)` is the paper's. `None`: no user is read.

    Call arguments:
        inputs: `item_id`, rows int [N], the item to find; `history_item_id` [N, L], most recent first, and
            `history_length` [N]; with `user`, its column [N].

    Returns:
        float32 [N, size] logits of each token of the item, given those before it: a list of one tensor per level.

    Raises:
        TypeError: if `ids` are no `SemanticIds`, or `user` is no `Feature`.
        ValueError: if an argument is out of its range, `num_heads` does not divide `dim` and there is no `key_dim`, or
            `user` is no id or has several values.

    Reference:
        Rajput et al., "Recommender Systems with Generative Retrieval", arXiv 2305.05065, Sections 3.2 and 4. The paper
        has 4 layers, 6 heads of width 64, and a token of the user, which is left out by default: others found that it
        hurts.
    """

    def __init__(
        self,
        ids: SemanticIds | SemanticIdTable,
        *,
        max_history_length: int = 20,
        dim: int = 64,
        num_heads: int = 4,
        key_dim: int | None = None,
        num_layers: int = 2,
        feed_forward_units: int = 256,
        dropout: float = 0.1,
        spelt_history: bool = False,
        label_smoothing: float = 0.0,
        user: Feature | None = None,
        **kwargs: Any,
    ) -> None:
        sizes = {"max_history_length": max_history_length, "dim": dim, "num_heads": num_heads}
        sizes |= {"num_layers": num_layers, "feed_forward_units": feed_forward_units}
        check_positive_integers(**sizes, **({} if key_dim is None else {"key_dim": key_dim}))
        if key_dim is None and dim % num_heads:
            raise ValueError(f"`num_heads` must divide `dim`. Received: num_heads={num_heads}, dim={dim}")
        rates = {"dropout": dropout, "label_smoothing": label_smoothing}
        for name, rate in rates.items():
            if not is_number(rate) or not 0 <= rate < 1:
                raise ValueError(f"`{name}` must be a number from 0 to below 1. Received: {name}={rate!r}")
        if user is not None and not isinstance(user, Feature):
            raise TypeError(f"`user` must be a keras_eta.Feature or None. Received: user={user!r}")
        if user is not None and (not user.is_id or user.max_values):
            raise ValueError(f"`user` must be an id feature with one value. Received: user={user}")
        super().__init__(**kwargs)
        if isinstance(ids, SemanticIds):
            ids = SemanticIdTable.of(ids, max_history_length, user)
        if not isinstance(ids, SemanticIdTable):
            raise TypeError(f"`ids` must be keras_eta.SemanticIds. Received: ids={ids!r}")
        self.table = ids
        self._arguments = {**sizes, **rates, "key_dim": key_dim, "spelt_history": spelt_history}
        self.max_history_length = max_history_length
        self.user = user
        self.spelt_history = spelt_history
        self.label_smoothing = label_smoothing
        block: dict[str, Any] = {"num_heads": num_heads, "key_dim": key_dim or dim // num_heads, "dropout": dropout}
        block["feed_forward_units"] = feed_forward_units
        self.tokens = tf.keras.layers.Embedding(1 + ids.num_tokens, dim, name="tokens")
        self.positions = tf.keras.layers.Embedding(max_history_length, dim, name="positions")
        # Of the vector before the history, and of those before each token that is spelt.
        self.starts = tf.keras.layers.Embedding(1 + len(ids.sizes), dim, name="starts")
        self.users: Any = (
            None if user is None else tf.keras.layers.Embedding(1 + user.num_oov_indices, dim, name="users")
        )
        self.encoder = [EncoderBlock(**block, name=f"encoder_{number}") for number in range(num_layers)]
        self.decoder = [DecoderBlock(**block, name=f"decoder_{number}") for number in range(num_layers)]
        self.encoder_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="encoder_norm")
        self.decoder_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="decoder_norm")
        self.dropout = tf.keras.layers.Dropout(dropout)
        self.heads = [tf.keras.layers.Dense(size, name=f"head_{level}") for level, size in enumerate(ids.sizes)]

    @property
    def lookup(self) -> FeatureLookup:
        """Raw item ids to rows."""
        return self.table.lookup

    @property
    def features(self) -> Features:
        """The columns that the model reads."""
        return self.lookup.features

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables. Keras calls it at the first batch; call it earlier to restore weights."""
        if not self.table.built:
            self.table.build()
        specs = {name: tf.TensorSpec([None, *shape], tf.int32) for name, shape in self._shapes.items()}
        self.call(
            {name: tf.zeros([1, *(size or 1 for size in spec.shape[1:])], tf.int32) for name, spec in specs.items()}
        )
        self._set_save_spec(specs)
        self.built = True

    @property
    def _shapes(self) -> dict[str, list[int | None]]:
        users: dict[str, list[int | None]] = {} if self.user is None else {self.user.name: []}
        return {ITEM_ID: [], history_name(ITEM_ID): [None], HISTORY_LENGTH: [], **users}

    def call(self, inputs: Inputs, training: bool | None = None) -> list[tf.Tensor]:
        memories = self._memories(inputs, training)
        rows = tf.reshape(inputs[ITEM_ID], [-1])
        before = self.tokens(self.table(rows)[:, :-1])
        x = tf.pad(before, [[0, 0], [1, 0], [0, 0]]) + self.starts(tf.range(1, len(self.table.sizes) + 1))
        x = self.dropout(x, training=training)
        for block, memory in zip(self.decoder, memories, strict=True):
            x = block(x, memory, training=training)
        x = self.decoder_norm(x)
        return [tf.cast(head(x[:, level]), tf.float32) for level, head in enumerate(self.heads)]

    def _memories(self, inputs: Inputs, training: bool | None) -> list[Memory]:
        """What each block of the decoder attends to, of the history of each row."""
        rows = inputs[history_name(ITEM_ID)][:, : self.max_history_length]
        lengths = tf.reshape(inputs[HISTORY_LENGTH], [-1])
        (requests, length), levels = tf.unstack(tf.shape(rows)), len(self.table.sizes)
        tokens = self.table(tf.where(tf.sequence_mask(lengths, length), rows, 0))
        # [R, L, T, D], the position the same for all tokens of an item.
        x = self.tokens(tokens) + self.positions(tf.range(length))[:, tf.newaxis]
        mask = tokens > 0
        if self.spelt_history:
            x = tf.reshape(x, [requests, length * levels, x.shape[-1]])
            mask = tf.reshape(mask, [requests, length * levels])
        else:
            x, mask = tf.reduce_sum(x, axis=2), mask[:, :, 0]
        before = [self.starts(tf.zeros([requests, 1], tf.int32))]
        if self.user is not None:
            before.append(self.users(tf.reshape(inputs[self.user.name], [-1, 1])))
        x = self.dropout(tf.concat([*before, x], axis=1), training=training)
        mask = tf.pad(mask[:, tf.newaxis], [[0, 0], [0, 0], [len(before), 0]], constant_values=True)
        for block in self.encoder:
            x = block(x, mask, training=training)
        x = self.encoder_norm(x)
        return [block.remember(x, mask) for block in self.decoder]

    def retrieve(
        self,
        inputs: Inputs,
        num_results: int,
        num_beams: int = 50,
        excluded: tf.Tensor | None = None,
        reserve: Reserve | None = None,
        jit_compile: bool = False,
    ) -> Beams:
        """The items that are likeliest to follow a history.

        Args:
            inputs: `history_item_id`, rows int [R, L], most recent first, and `history_length` [R]; with `user`, its
                column [R].
            num_results: C, items wanted.
            num_beams: B, beginnings of ids that are kept at each step; at least C. The more, the nearer to exact.
            excluded: rows int [R, E] of items that must not be found. `None`: none.
            reserve: items that results are kept for, which a search of their own finds. `None`: none.
            jit_compile: whether XLA compiles the search, one request after the other: faster for one, but the time
                grows with R. Within a `tf.function`, as every call compiles anew.

        Returns:
            `Beams` of C items, all different; rows of 0 where fewer were found.

        Raises:
            ValueError: if a number is not positive, or there are fewer beams than results, or fewer results than are
                reserved.

        Reference:
            TIGER, Section 4.3: a share of the results (its epsilon) for items that training never saw.
        """
        check_positive_integers(num_results=num_results, num_beams=num_beams)
        if reserve is not None and not 0 < reserve.number <= num_results:
            raise ValueError(
                f"`reserve.number` must be from 1 to `num_results`, {num_results}. Received: {reserve.number}"
            )
        if num_beams < num_results:
            raise ValueError(
                "`num_beams` must be at least `num_results`. "
                f"Received: num_beams={num_beams}, num_results={num_results}"
            )
        # With one that excludes nothing, so that there is one.
        rows = tf.zeros([tf.shape(inputs[HISTORY_LENGTH])[0], 1], tf.int64)
        if excluded is not None:
            rows = tf.concat([rows, tf.cast(excluded, tf.int64)], axis=1)
        if not jit_compile:
            return self._found(inputs, num_results, num_beams, lambda items: among(items, rows), reserve)
        name, longest = history_name(ITEM_ID), self.max_history_length
        history = inputs[name][:, :longest]
        history = tf.pad(history, [[0, 0], [0, longest - tf.shape(history)[1]]])
        fixed = {name: tf.ensure_shape(history, [None, longest]), HISTORY_LENGTH: inputs[HISTORY_LENGTH]}
        fixed |= {user: inputs[user] for user in self._shapes if user not in (*fixed, ITEM_ID)}

        def search(of_one: Inputs, is_excluded: Excluded) -> Beams:
            return self._found(of_one, num_results, num_beams, is_excluded, reserve)

        return search_each(search, fixed, rows, self.table.num_nodes[-1] + 2, num_results)

    def _found(
        self, inputs: Inputs, num_results: int, num_beams: int, excluded: Excluded, reserve: Reserve | None
    ) -> Beams:
        """What `retrieve` gives."""
        requests = tf.shape(inputs[HISTORY_LENGTH])[0]
        speller = self._speller(self._memories(inputs, training=False), requests)
        found = beam_search(speller, self.table, requests, num_beams, excluded)
        if reserve is not None:
            beams = max(reserve.number, _FEWEST_BEAMS)
            reserved = beam_search(speller, self.table, requests, beams, excluded, reserve.nodes)
            best = Beams(*(of_beams[:, : reserve.number] for of_beams in reserved))
            found = with_reserved(found, best, min(num_results, found.rows.shape[1] + best.rows.shape[1]))
        missing = [[0, 0], [0, max(num_results - found.rows.shape[1], 0)]]
        return Beams(
            tf.pad(found.rows, missing)[:, :num_results],
            tf.pad(found.log_probability, missing, constant_values=-float("inf"))[:, :num_results],
        )

    def _speller(self, memories: list[Memory], requests: tf.Tensor) -> Step:
        """The step of a beam search: keys and values of the tokens so far are kept, so each token is read once."""

        def step(level: int, codes: tf.Tensor | None, caches: Any) -> tuple[tf.Tensor, Any]:
            x = self._last_token(level, codes, requests)
            new = []
            for number, (block, memory) in enumerate(zip(self.decoder, memories, strict=True)):
                x, cache = block.step(x, memory, None if caches is None else caches[number])
                new.append(cache)
            return self.heads[level](self.decoder_norm(x)), new

        return step

    def _last_token(self, level: int, codes: tf.Tensor | None, requests: tf.Tensor) -> tf.Tensor:
        """Float [R, B, D], what the decoder reads before it spells the token of a level."""
        x = self.starts(tf.fill([requests, 1] if codes is None else tf.shape(codes), level + 1))
        return x if codes is None else x + self.tokens(codes + self.table.first_tokens[level - 1])

    def compute_losses(self, inputs: tuple[Any, ...], training: bool = False) -> dict[str, tf.Tensor]:
        """The cross-entropy of all tokens, the mean over rows with label 1 whose item has an id, by sample weights."""
        features, labels, *weights = inputs
        rows = tf.reshape(features[ITEM_ID], [-1])
        weight = tf.cast(tf.reshape(labels, [-1]) == 1, tf.float32) * tf.cast(rows > 1, tf.float32)
        if weights:
            weight *= tf.cast(tf.reshape(weights[0], [-1]), tf.float32)
        targets = tf.unstack(self.table.targets(rows), axis=-1)
        loss = tf.zeros_like(weight)
        for target, logits in zip(targets, self(features, training=training), strict=True):
            log_probability = tf.nn.log_softmax(logits)
            of_target = tf.gather(log_probability, target, batch_dims=1)
            smoothing = self.label_smoothing if training else 0.0
            loss -= (1 - smoothing) * of_target + smoothing * tf.reduce_mean(log_probability, axis=-1)
        total = sum_over_replicas(tf.reduce_sum(weight))
        return {"loss": tf.math.divide_no_nan(tf.reduce_sum(weight * loss), total)}

    def default_optimizer(self, embedding_learning_rate: Any = 3e-3, dense_learning_rate: Any = 3e-3) -> Any:
        """Adam for all weights, with clipped gradients.

        Args:
            embedding_learning_rate: for `embedding_variables`; a number or a Keras schedule.
            dense_learning_rate: for `dense_variables`; likewise.
        """
        check_rates(embedding_learning_rate=embedding_learning_rate, dense_learning_rate=dense_learning_rate)
        embeddings, dense = (
            tf.keras.optimizers.Adam(rate, global_clipnorm=1.0)
            for rate in (embedding_learning_rate, dense_learning_rate)
        )
        return EmbeddingsAndDense((embeddings, self.embedding_variables), (dense, self.dense_variables))

    def embedding_variables(self) -> list[tf.Variable]:
        tables = [self.tokens, self.positions, self.starts, *([] if self.users is None else [self.users])]
        return [table.embeddings for table in tables]

    def load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Reads weights, as `tf.keras.Model.load_weights` does.

        Raises:
            ValueError: if they are of other items, or of other semantic ids. The model stays as it was.
        """
        weights, ids = self.get_weights(), self.table.get_weights()
        status = super().load_weights(*args, **kwargs)
        if not all(map(np.array_equal, ids, self.table.get_weights())):
            self.set_weights(weights)
            raise ValueError(
                "The weights are of other items or other semantic ids than the model's. Make the model of the ids that "
                f"they were saved with. Received: arguments={args}"
            )
        return status

    def get_config(self) -> dict[str, Any]:
        table = tf.keras.utils.serialize_keras_object(self.table)
        user = None if self.user is None else dataclasses.asdict(self.user)
        return {"name": self.name, "ids": table, "user": user, **self._arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TIGER:
        user = None if config["user"] is None else Feature(**config["user"])
        return cls(**{**config, "user": user, "ids": tf.keras.utils.deserialize_keras_object(config["ids"])})
