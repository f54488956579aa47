"""The ranker: target attention over a short and a long history, and an MLP."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_recommenders as tfrs

from keras_eta.distribution import sum_over_replicas
from keras_eta.features import HISTORY_AGE, HISTORY_LENGTH, Feature, Features, history_name, is_argument, scope_name
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.layers.target_attention import TargetAttention
from keras_eta.metrics import LogOddsAUC
from keras_eta.models.columns import checked_columns
from keras_eta.models.loss_means import LossMeans
from keras_eta.models.optimizers import EmbeddingsAndDense, check_callbacks, writes_to_handles
from keras_eta.search.search_unit import Retrieved, SearchUnit
from keras_eta.validation import check_hidden_units, check_integers_from_zero, check_positive_integers

Inputs = Mapping[str, tf.Tensor]


class Scores(NamedTuple):
    """What a ranker says of C candidates a request, and what it rests on.

    Attributes:
        logits: float32 [R, C], before the sigmoid.
        retrieved: the long history's behaviours that the search unit retrieved; `None` for a ranker that searches none.
        attention: float32 [R, C, H, K], attention weights of what was retrieved; `None` likewise.
    """

    logits: tf.Tensor
    retrieved: Retrieved | None
    attention: tf.Tensor | None


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class Ranker(tfrs.Model):
    """Click-through-rate ranker over user, context, candidate, and a short and a long history.

    The candidate attends to its S most recent behaviours, and to those of the long history that the search unit
    retrieves for it. Both interest vectors, the candidate and the user's and context's features go through an MLP to
    one logit. With `features.age` the vector of a behaviour holds the embedding of its age, which a candidate lacks.

    | `search_unit` | model |
    |---|---|
    | `None` | the short history alone |
    | `HammingSearch` | ETA; use `ETA`, which builds it |
    | `InnerProductSearch` | exact inner-product retrieval |
    | `FullSearch` | target attention over the whole history |

    The model reads indices, as a `FeatureLookup` (or the Transform step of a TFX pipeline) makes them of raw ids.

    Args:
        features: the columns, with known vocabulary sizes. May be `None` where `lookup` is given.
        lookup: the adapted lookup of raw ids, which then travels with the model into its export.
        search_unit: picks what of the long history is attended to. `None`: no long history.
        short_history_length: S. 0: no short history.
        num_heads: heads of both attentions.
        key_dim: width of a head. `None`: the candidate's width divided by the heads, rounded up.
        hidden_units: widths of the MLP's hidden layers.
        activation: of the hidden layers: a name that Keras knows, or a class of layers, Keras's own or a registered
            one such as `keras_eta.layers.Dice`.
        cross_layers: number of `tfrs.layers.dcn.Cross` layers before the MLP (DCN-v2).
        short_attention: layer in place of the short history's `TargetAttention`, e.g. `ActivationUnit`.
        long_attention: the same for the long history.
        embeddings_regularizer: of all embedding tables, e.g. `tf.keras.regularizers.L2(1e-6)`.

    Call arguments:
        inputs: dict of indices and floats: `user`, `context` and item columns [N] or [N, 1], `history_*` [N, L] most
            recent first, and `history_length` [N]. Only the first `features.max_history_length` behaviours are read.
            With `features.age`, `history_age` [N, L] is among them, the buckets that `keras_eta.ops.age_bucket` gives.

    Returns:
        float32 [N] logits, before the sigmoid.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range, a vocabulary size is unknown, or a column is missing.

    Reference:
        ETA, arXiv 2108.04468, Section 3 and Figure 1; DIN, arXiv 1706.06978; DCN-v2, arXiv 2008.13535.
    """

    # Keras's BackupAndRestore deletes what Keras's constructor sets, and a second `fit` misses it.
    _training_state = None

    def __init__(
        self,
        features: Features | None = None,
        *,
        lookup: FeatureLookup | None = None,
        search_unit: SearchUnit | None = None,
        short_history_length: int = 16,
        num_heads: int = 2,
        key_dim: int | None = None,
        hidden_units: Sequence[int] = (128, 64),
        activation: str | type[tf.keras.layers.Layer] = "relu",
        cross_layers: int = 0,
        short_attention: tf.keras.layers.Layer | None = None,
        long_attention: tf.keras.layers.Layer | None = None,
        embeddings_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if lookup is not None and not isinstance(lookup, FeatureLookup):
            raise TypeError(f"`lookup` must be a FeatureLookup or None. Received: lookup={lookup!r}")
        if features is None:
            if lookup is None:
                raise ValueError("Give `features` with vocabulary sizes, or an adapted `lookup`. Received neither.")
            features = lookup.features
        if not isinstance(features, Features):
            raise TypeError(f"`features` must be a keras_eta.Features. Received: features={features!r}")
        _check_activation(activation)
        if search_unit is not None and not isinstance(search_unit, SearchUnit):
            raise TypeError(f"`search_unit` must be a SearchUnit or None. Received: search_unit={search_unit!r}")
        check_integers_from_zero(short_history_length=short_history_length, cross_layers=cross_layers)
        if not short_history_length and search_unit is None:
            raise ValueError("A ranker needs a `short_history_length` above 0 or a `search_unit`. Received neither.")
        check_positive_integers(num_heads=num_heads, **({} if key_dim is None else {"key_dim": key_dim}))
        check_hidden_units(hidden_units)
        # Every replica's step returns what holds for all; the default would sum it over workers once more.
        self.distribute_reduction_method = "first"
        self.features = features
        self.lookup = lookup
        self.search_unit: Any = search_unit
        self.short_history_length = short_history_length
        self.hidden_units = tuple(hidden_units)
        self.activation = activation
        self._num_heads = num_heads
        self._key_dim = key_dim
        self._custom_attention = {"short_attention": short_attention, "long_attention": long_attention}
        self._regularizer = tf.keras.regularizers.get(embeddings_regularizer)

        searched: list[Feature] = []
        if search_unit is not None:
            searched = [feature for feature in features.item_features if feature.name in features.hashed]
            search_unit.make_embeddings(searched, self._regularizer)
        self.embeddings = {} if search_unit is None else dict(search_unit.embeddings)
        for feature in features.all_features:
            if feature.is_id and feature not in searched:
                self.embeddings[feature.name] = tf.keras.layers.Embedding(
                    feature.num_indices,
                    feature.embedding_dim,
                    embeddings_regularizer=self._regularizer,
                    name=scope_name(feature.name),
                )

        if features.age is not None:
            self.embeddings[HISTORY_AGE] = tf.keras.layers.Embedding(
                features.age.num_indices,
                features.age.embedding_dim,
                embeddings_regularizer=self._regularizer,
                name=HISTORY_AGE,
            )

        self.short_attention = None
        if short_history_length:
            self.short_attention = short_attention or self._target_attention("short_attention", False)
        self.long_attention: Any = None
        if search_unit is not None:
            biased = search_unit.similarity_bias
            self.long_attention = long_attention or self._target_attention("long_attention", biased)
            if self.long_attention.similarity_bias != biased:
                raise ValueError(
                    "`long_attention` and `search_unit` must agree on the similarity bias. Received: "
                    f"long_attention.similarity_bias={self.long_attention.similarity_bias}, "
                    f"search_unit.similarity_bias={biased}"
                )
        self.cross = [tfrs.layers.dcn.Cross(name=f"cross_{index}") for index in range(cross_layers)]
        self.mlp = tf.keras.Sequential(name="mlp")
        for units in self.hidden_units:
            self.mlp.add(tf.keras.layers.Dense(units))
            self.mlp.add(tf.keras.layers.Activation(activation) if isinstance(activation, str) else activation())
        self.mlp.add(tf.keras.layers.Dense(1, dtype=tf.float32))
        self.task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.BinaryCrossentropy(from_logits=True, reduction=tf.keras.losses.Reduction.SUM),
            metrics=[
                LogOddsAUC(name="auc"),
                tf.keras.metrics.BinaryCrossentropy(from_logits=True, name="log_loss"),
            ],
        )
        self._loss_means = LossMeans()

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables. Keras calls it at the first batch; call it earlier to restore weights."""
        width = sum(feature.width for feature in self.features.item_features)
        layers: list[tuple[Any, list[int | None]]] = [(layer, [None]) for layer in self.embeddings.values()]
        layers += [(layer, [None, width]) for layer in (self.short_attention, self.long_attention) if layer is not None]
        for layer, shape in layers:
            if not layer.built:
                # Keras scopes names only where it builds by itself; H5 files need them to differ.
                with tf.name_scope(layer.name):
                    layer.build(shape)
        zeros = {name: tf.zeros([1], tf.int32) for name in (*self.features.encoded_row_names, HISTORY_LENGTH)}
        zeros.update({feature.name: tf.zeros([1, 1], tf.int32) for feature in self.features.item_features})
        zeros.update({name: tf.zeros([1, 1], tf.int32) for name in self.features.encoded_history_names})
        self.score(zeros)
        # Keras sets it at the first call, to the shapes of that one; without it no SavedModel is written.
        self._set_save_spec(_specs(self.features))
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Whether Keras's native format has variables to create again; their shapes follow from the configuration."""
        return {"input_shape": None} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Creates all variables."""
        self.build(config["input_shape"])

    def compile(self, optimizer: Any = None, **kwargs: Any) -> None:
        """Configures training; under a `tf.distribute` strategy it also creates all variables.

        Args:
            optimizer: any Keras optimiser. `None`: `default_optimizer()`.
            **kwargs: as `tf.keras.Model.compile`.
        """
        if not self.built:
            with self.distribute_strategy.scope():
                if tf.distribute.has_strategy():
                    self.build()
        optimizer = self.default_optimizer() if optimizer is None else optimizer
        super().compile(optimizer=optimizer, **kwargs)

    def fit(self, *args: Any, **kwargs: Any) -> tf.keras.callbacks.History:
        """Trains the model, as `tf.keras.Model.fit` does.

        Raises:
            ValueError: if a callback sets the learning rate of an optimiser that has none to set.
        """
        arguments = inspect.signature(tf.keras.Model.fit).bind(self, *args, **kwargs).arguments
        check_callbacks(self.optimizer, arguments.get("callbacks"))
        try:
            return super().fit(*args, **kwargs)
        except Exception:
            # A function whose first trace failed can never create the optimiser's variables.
            self.train_function = None
            raise

    def default_optimizer(self, embedding_learning_rate: Any = 0.1, dense_learning_rate: Any = 1e-3) -> Any:
        """Adagrad for embeddings, whose steps move only the rows that a batch touches, and Adam for the rest.

        Args:
            embedding_learning_rate: Adagrad's, for `embedding_variables`; a number or a Keras schedule.
            dense_learning_rate: Adam's, for `dense_variables`; likewise.

        Returns:
            A `keras_eta.models.optimizers.EmbeddingsAndDense` of the two. Callbacks that set its `learning_rate` set
            both rates, in this ratio.
        """
        return EmbeddingsAndDense(
            (tf.keras.optimizers.Adagrad(embedding_learning_rate), self.embedding_variables),
            (tf.keras.optimizers.Adam(dense_learning_rate), self.dense_variables),
        )

    def save(self, filepath: Any, overwrite: bool = True, save_format: str | None = None, **kwargs: Any) -> None:
        """Saves the model as `tf.keras.Model.save` does; for TF Serving, use `keras_eta.export`.

        `CompositeOptimizer`, the default, has no configuration that a file could hold, so its state is left out unless
        `include_optimizer` is given. `save_weights`, checkpoints and `tf.keras.callbacks.BackupAndRestore` keep it.
        """
        native = str(filepath).endswith(".keras") or save_format == "keras"
        if self._has_composite_optimizer() and not native:
            kwargs.setdefault("include_optimizer", False)
        if not native and not all(map(is_argument, self.features.encoded_row_names)):
            # No default signature: TensorFlow's can't have such inputs.
            kwargs.setdefault("signatures", {})
        super().save(filepath, overwrite, save_format, **kwargs)

    def get_compile_config(self) -> Any:
        """The arguments of `compile` for Keras's native format; `None` where the optimiser has no configuration."""
        if self._has_composite_optimizer():
            return None
        # Keras reads the state of a built optimiser back, and fails on that of another in a loss-scale wrapper.
        self._build_optimizer()
        return super().get_compile_config()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` says, and creates the optimiser's variables."""
        self.compile(**tf.keras.utils.deserialize_keras_object(config))
        self._build_optimizer()

    def _build_optimizer(self) -> None:
        if self.built and isinstance(self.optimizer, tf.keras.optimizers.Optimizer):
            self.optimizer.build(self.trainable_variables)

    def _has_composite_optimizer(self) -> bool:
        """Whether there is one, in a loss-scale wrapper or without."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return isinstance(optimizer, tfrs.experimental.optimizers.CompositeOptimizer)

    def call(self, inputs: Inputs, training: bool | None = None) -> tf.Tensor:
        inputs = checked_columns(inputs, self.features)
        row_names = (*self.features.encoded_row_names, HISTORY_LENGTH)
        rows = {name: tf.reshape(inputs[name], [-1]) for name in row_names}
        candidates = {feature.name: rows[feature.name][:, tf.newaxis] for feature in self.features.item_features}
        history = {name: inputs[name] for name in self.features.encoded_history_names}
        return self.score({**rows, **history, **candidates}, training=bool(training)).logits[:, 0]

    def score(self, inputs: Inputs, training: bool = False, jit_compile: bool = False) -> Scores:
        """Scores C candidates against each user's one history.

        Args:
            inputs: dict of indices and floats: `user` and `context` columns [R], item columns [R, C], `history_*` [R,
                L] most recent first (as in the call), `history_length` [R].
            training: whether gradients must flow by the straight-through path.
            jit_compile: whether XLA may compile the search of the long history, as `export_model` wants it.

        Returns:
            `Scores` of [R, C] candidates.
        """
        history, mask = self._history(inputs)
        candidate_vectors = self._vectors(self.features.item_features, inputs)
        candidate = self._concatenated(candidate_vectors)
        parts = [candidate]
        if self.short_attention is not None:
            recent = {name: column[:, : self.short_history_length] for name, column in history.items()}
            behaviours = self._concatenated(self._behaviour_vectors(recent))
            interest, _ = self.short_attention.attend(candidate, behaviours, mask[:, : self.short_history_length])
            parts.append(interest)
        retrieved, attention = None, None
        if self.search_unit is not None:
            interest, retrieved, attention = self._long_interest(
                inputs, candidate_vectors, history, mask, training, jit_compile
            )
            parts.append(interest)
        shape = tf.shape(candidate)
        for feature in (*self.features.user, *self.features.context):
            vector = self._vectors([feature], inputs)[feature.name]
            parts.append(tf.broadcast_to(vector[:, tf.newaxis, :], [shape[0], shape[1], feature.width]))
        x0 = x = tf.concat(parts, axis=-1)
        for cross in self.cross:
            x = cross(x0, x)
        return Scores(self.mlp(x)[..., 0], retrieved, attention)

    def compute_loss(self, inputs: tuple[Any, ...], training: bool = False) -> tf.Tensor:
        features, labels, *weights = inputs
        # Keras averages over the last axis first, so rows need one of their own to be weighted one by one.
        total = self.task(
            labels=tf.reshape(labels, [-1, 1]),
            predictions=self(features, training=training)[:, tf.newaxis],
            sample_weight=tf.reshape(weights[0], [-1, 1]) if weights else None,
        )
        rows = sum_over_replicas(tf.cast(tf.size(labels), total.dtype))
        return tf.math.divide_no_nan(total, rows)

    @property
    def losses(self) -> list[tf.Tensor]:
        """The regularisation losses; of several replicas each has its share, since their gradients are summed."""
        replica = tf.distribute.get_replica_context()
        replicas = 1 if replica is None else replica.num_replicas_in_sync
        return [loss / replicas for loss in super().losses] if replicas > 1 else super().losses

    def train_step(self, inputs: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss, regularization_loss = self.compute_loss(inputs, training=True), self._regularization_loss()
            total_loss = loss + regularization_loss
        # Unlike tfrs.Model, `minimize` scales the loss where the optimiser is a LossScaleOptimizer.
        self.optimizer.minimize(total_loss, self.trainable_variables, tape=tape)
        if self.search_unit is not None:
            if writes_to_handles(self.optimizer):
                self.search_unit.refresh()
            self.search_unit.after_step(self.optimizer.iterations)
        self._loss_means.update(inputs[1], loss, regularization_loss)
        return self._logs()

    def test_step(self, inputs: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        self._loss_means.update(inputs[1], self.compute_loss(inputs), self._regularization_loss())
        return self._logs()

    def _regularization_loss(self) -> tf.Tensor:
        return tf.reduce_sum([tf.reduce_sum(loss) for loss in self.losses])

    def _logs(self) -> dict[str, tf.Tensor]:
        logs = {metric.name: metric.result() for metric in self.metrics}
        return {**logs, "total_loss": logs["loss"] + logs["regularization_loss"]}

    def _history(self, inputs: Inputs) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The history columns by feature name, [R, L] with L cut to the maximum and at least 1, and their mask.

        The column of ages, which no feature names, goes by its own name.
        """
        maximum = self.features.max_history_length
        names = {feature.name: history_name(feature.name) for feature in self.features.history_features}
        if self.features.age is not None:
            names[HISTORY_AGE] = HISTORY_AGE
        columns = {}
        for key, name in names.items():
            column = inputs[name][:, :maximum]
            # One padded column, so that position 0 exists in an empty history.
            missing = tf.maximum(1 - tf.shape(column)[1], 0)
            columns[key] = tf.pad(column, [[0, 0], [0, missing]])
        width = tf.shape(columns[self.features.item_id.name])[1]
        return columns, tf.sequence_mask(inputs[HISTORY_LENGTH], width)

    def _long_interest(
        self,
        inputs: Inputs,
        candidate_vectors: dict[str, tf.Tensor],
        history: dict[str, tf.Tensor],
        mask: tf.Tensor,
        training: bool,
        jit_compile: bool,
    ) -> tuple[tf.Tensor, Retrieved | None, tf.Tensor]:
        """Interest vectors [R, C, D] from the long history, what was retrieved, and its attention weights."""
        searched = self.search_unit.embeddings
        retrieved = self.search_unit(
            {name: inputs[name] for name in searched}, {name: history[name] for name in searched}, mask, jit_compile
        )
        candidate = self._concatenated(candidate_vectors)
        if retrieved is None:
            behaviours = self._concatenated(self._behaviour_vectors(history))
            interest, weights = self.long_attention.attend(candidate, behaviours, mask)
            return interest, None, weights
        # Only what was retrieved is ever gathered as floats.
        columns = {name: tf.gather(column, retrieved.positions, batch_dims=1) for name, column in history.items()}
        vectors = self._behaviour_vectors(columns)
        behaviours = self._concatenated(vectors)
        similarity = self.search_unit.similarity(candidate_vectors, vectors, retrieved.distances, training)
        interest, weights = self.long_attention.attend(candidate, behaviours, retrieved.mask, similarity)
        return interest, retrieved, weights

    def _concatenated(self, vectors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors side by side, in the policy's precision; embeddings that are hashed come unrounded."""
        return tf.concat([tf.cast(vector, self.compute_dtype) for vector in vectors.values()], axis=-1)

    def _vectors(self, features: Sequence[Feature], columns: Inputs) -> dict[str, tf.Tensor]:
        """Embeddings of ids and floats as they are, [..., width], by feature name."""
        return {
            feature.name: self.embeddings[feature.name](columns[feature.name])
            if feature.is_id
            else tf.cast(columns[feature.name], self.compute_dtype)[..., tf.newaxis]
            for feature in features
        }

    def _behaviour_vectors(self, columns: Inputs) -> dict[str, tf.Tensor]:
        """What makes up the vector of each behaviour, by the names of `_history`."""
        vectors = self._vectors(self.features.history_features, columns)
        if self.features.age is not None:
            vectors[HISTORY_AGE] = self.embeddings[HISTORY_AGE](columns[HISTORY_AGE])
        return vectors

    def embedding_variables(self) -> list[tf.Variable]:
        """The embedding tables, whose gradients are sparse."""
        return [layer.embeddings for layer in self.embeddings.values()]

    def dense_variables(self) -> list[tf.Variable]:
        """All other trainable variables, learned planes included."""
        embeddings = {variable.ref() for variable in self.embedding_variables()}
        return [variable for variable in self.trainable_variables if variable.ref() not in embeddings]

    def _target_attention(self, name: str, similarity_bias: bool) -> TargetAttention:
        width = sum(feature.width for feature in self.features.item_features)
        key_dim = self._key_dim or -(-width // self._num_heads)
        return TargetAttention(self._num_heads, key_dim, similarity_bias, name=name)

    def get_config(self) -> dict[str, Any]:
        serialize = tf.keras.utils.serialize_keras_object
        layers = {"lookup": self.lookup, "search_unit": self.search_unit, **self._custom_attention}
        return {
            "name": self.name,
            "features": self.features.to_dict(),
            **{name: None if layer is None else serialize(layer) for name, layer in layers.items()},
            "short_history_length": self.short_history_length,
            "num_heads": self._num_heads,
            "key_dim": self._key_dim,
            "hidden_units": self.hidden_units,
            "activation": self.activation
            if isinstance(self.activation, str)
            else tf.keras.utils.get_registered_name(self.activation),
            "cross_layers": len(self.cross),
            "embeddings_regularizer": tf.keras.regularizers.serialize(self._regularizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Ranker:
        config = dict(config)
        config["features"] = Features.from_dict(config["features"])
        for name in ("lookup", "search_unit", "short_attention", "long_attention"):
            if config.get(name) is not None:
                config[name] = tf.keras.utils.deserialize_keras_object(config[name])
        config["activation"] = _activation_class(config["activation"]) or config["activation"]
        return cls(**config)


def _specs(features: Features) -> dict[str, tf.TensorSpec]:
    """What a call reads, of any number of rows and behaviours."""
    rows = (*features.encoded_row_names, HISTORY_LENGTH)
    floats = {feature.name for feature in features.all_features if not feature.is_id}
    floats |= {history_name(name) for name in floats}
    return {
        name: tf.TensorSpec([None] if name in rows else [None, None], tf.float32 if name in floats else tf.int32)
        for name in (*rows, *features.encoded_history_names)
    }


def _activation_class(name: str) -> type | None:
    """The registered class or the layer of Keras of that name; `None` for the name of a function."""
    found: type | None = tf.keras.utils.get_registered_object(name) or getattr(tf.keras.layers, name, None)
    return found if isinstance(found, type) else None


def _check_activation(activation: Any) -> None:
    is_layer = isinstance(activation, type) and issubclass(activation, tf.keras.layers.Layer)
    if not isinstance(activation, str) and not is_layer:
        raise TypeError(f"`activation` must be a name or a class of layers. Received: activation={activation!r}")
    if is_layer and _activation_class(tf.keras.utils.get_registered_name(activation)) is not activation:
        raise ValueError(
            "`activation` must be a layer of Keras or registered by `tf.keras.utils.register_keras_serializable`, to "
            f"be restored with a saved model. Received: activation={activation!r}"
        )
