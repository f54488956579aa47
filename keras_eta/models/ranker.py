"""The ranker: interest units over behaviour sequences, and an MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_recommenders as tfrs

from keras_eta.calibration import Calibrator
from keras_eta.features import Features
from keras_eta.interest.base import Interest, InterestUnit
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.metrics import LogOddsAUC
from keras_eta.models.id_dropout import IdDropout
from keras_eta.models.input_checks import (
    batch_columns,
    check_calibrator,
    check_interests,
    check_retrieval_task,
    checked_features_of,
    specs_of,
    with_candidates,
)
from keras_eta.models.losses import RETRIEVAL_LOSS, ranking_losses
from keras_eta.models.mlp import check_activation, make_mlp
from keras_eta.models.popularity import Popularity
from keras_eta.models.prior import warn_if_nothing_was_learned
from keras_eta.models.ranker_config import deserialized, serialized
from keras_eta.models.tasks import RetrievalTask
from keras_eta.models.trainable import TrainableModel, is_native
from keras_eta.models.unit_embeddings import make_embeddings
from keras_eta.models.user_states import UserStates, own_state
from keras_eta.names import is_argument
from keras_eta.validation import check_hidden_units, check_integers_from_zero

Inputs = Mapping[str, tf.Tensor]


class Scores(NamedTuple):
    """Scores of C candidates per request, and what they rest on.

    Attributes:
        logits: float32 [R, C], before the sigmoid.
        interests: what each interest unit read out of its sequence, by the unit's name.
    """

    logits: tf.Tensor
    interests: dict[str, Interest]


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class Ranker(UserStates, TrainableModel):
    """Click-through-rate ranker: interest units, whose vectors go through an MLP.

    Each interest unit reads a vector for the candidate out of a sequence of behaviours. These vectors, the candidate
    and the user's and context's features go through the MLP to one logit. With `features.age` the vector of a behaviour
    holds the embedding of its age, which a candidate lacks.

    The model reads indices, as a `FeatureLookup` (or the Transform step of a TFX pipeline) makes them of raw ids.

    Args:
        features: the columns, with known vocabulary sizes. May be `None` where `lookup` is given.
        lookup: the adapted lookup of raw ids, which then travels with the model into its export.
        interests: the interest units, e.g. `[RecentInterest(16), ETAInterest(48)]`; `ETA` builds just these two.
        hidden_units: widths of the MLP's hidden layers.
        activation: of the hidden layers: a name that Keras knows, or a class of layers, Keras's own or a registered
            one such as `keras_eta.layers.Dice`.
        cross_layers: number of `tfrs.layers.dcn.Cross` layers before the MLP (DCN-v2).
        popularity: whether the MLP reads how often the training data has the candidate: what `lookup` has counted, or
            `model.popularity.set_counts` was given; see `keras_eta.models.popularity.Popularity`.
        embeddings_regularizer: of all embedding tables, e.g. `tf.keras.regularizers.L2(1e-6)`.
        id_dropout: share of the users', contexts' and candidates' ids that training takes for unknown ones, so that the
            out-of-vocabulary rows learn what to say of an id never seen; one for all features, or by feature name.
        retrieval_task: what the shared embeddings of items learn beside the click, so that neighbours are to one taste.
        calibrator: what makes probabilities of logits in `probabilities` and in exports, as `keras_eta.calibration.fit`
            gives it of a trained model; `None`: the sigmoid. It can be set later, by `model.calibrator = ...`.

    Call arguments:
        inputs: dict of indices and floats: `user`, `context` and item columns [N] or [N, 1], `history_*` [N, L] most
            recent first, and `history_length` [N]. Only the first `features.max_history_length` behaviours are read.
            With `features.age`, `history_age` [N, L] is among them, the buckets that `keras_eta.ops.age_bucket` gives;
            with `features.calendar`, `timestamp_hour` and `timestamp_weekday` [N], of `keras_eta.ops.hour_and_weekday`.
            A feature of V values has an axis of V more. The columns of `features.sequences` are like the history's.
        return_scores: whether to return the `Scores` of [N, 1] candidates in place of the logits.

    Returns:
        float32 [N] logits, before the sigmoid.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range, a vocabulary size is unknown, a column or sequence is missing,
            or two interest units have one name.

    Reference:
        ETA, arXiv 2108.04468, Section 3 and Figure 1; DIN, arXiv 1706.06978; DCN-v2, arXiv 2008.13535.
    """

    def __init__(
        self,
        features: Features | None = None,
        *,
        lookup: FeatureLookup | None = None,
        interests: Sequence[InterestUnit] = (),
        hidden_units: Sequence[int] = (128, 64),
        activation: str | type[tf.keras.layers.Layer] = "relu",
        cross_layers: int = 0,
        popularity: bool = False,
        embeddings_regularizer: Any = None,
        id_dropout: float | Mapping[str, float] = 0.0,
        retrieval_task: RetrievalTask | None = None,
        calibrator: Calibrator | None = None,
        **kwargs: Any,
    ) -> None:
        features = checked_features_of(features, lookup)
        check_interests(interests, features)
        check_retrieval_task(retrieval_task)
        check_activation(activation)
        check_integers_from_zero(cross_layers=cross_layers)
        check_hidden_units(hidden_units)
        parts = [f"{unit.name}_loss" for unit in interests if unit.has_own_loss]
        super().__init__(part_names=[*parts, *([] if retrieval_task is None else [RETRIEVAL_LOSS])], **kwargs)
        self.features = features
        self.lookup = lookup
        self.interests = list(interests)
        self.hidden_units = tuple(hidden_units)
        self.activation = activation
        self._regularizer = tf.keras.regularizers.get(embeddings_regularizer)

        embeddings = make_embeddings(self.interests, features, self._regularizer)
        self.feature_embedding, self.own_embeddings = embeddings
        for unit in self.interests:
            unit.bind(features, self.own_embeddings.get(unit.name, self.feature_embedding).tables)
        self.cross = [tfrs.layers.dcn.Cross(name=f"cross_{index}") for index in range(cross_layers)]
        self.mlp = make_mlp(self.hidden_units, activation)
        counts = None if lookup is None else lookup.item_counts
        self.popularity = Popularity(features.item_id, counts) if popularity else None
        self.id_dropout = IdDropout(features, id_dropout)
        self.retrieval_task = retrieval_task
        if retrieval_task is not None:
            retrieval_task.bind(features, lookup)
        self.calibrator = calibrator
        self._click_loss = tf.keras.losses.BinaryCrossentropy(from_logits=True, reduction=tf.keras.losses.Reduction.SUM)
        self.task = tfrs.tasks.Ranking(
            loss=self._click_loss,
            metrics=[
                LogOddsAUC(name="auc"),
                tf.keras.metrics.BinaryCrossentropy(from_logits=True, name="log_loss"),
            ],
        )

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables. Keras calls it at the first batch; call it earlier to restore weights."""
        self.build_embeddings()
        for layer in (self.popularity, self.id_dropout, self.retrieval_task):
            if layer is not None and not layer.built:
                # Keras scopes names only where it builds by itself.
                with tf.name_scope(layer.name):
                    layer.build()
        specs = specs_of(self.features)
        zeros = {name: tf.zeros([size or 1 for size in spec.shape], spec.dtype) for name, spec in specs.items()}
        self.score(with_candidates(zeros, self.features))
        # Keras sets it at the first call, to the shapes of that one; without it no SavedModel is written.
        self._set_save_spec(specs)
        self.built = True

    def fit(self, *args: Any, **kwargs: Any) -> tf.keras.callbacks.History:
        """As `tf.keras.Model.fit`; logs a warning where the log loss ends no better than the mean label's.

        Raises:
            ValueError: as `TrainableModel.fit`, or if there is a `calibrator`, which training would make wrong.
        """
        if self.calibrator is not None:
            raise ValueError(
                "`fit` moves the weights that `calibrator` was fitted to. Set `model.calibrator = None` before, and "
                f"fit another afterwards. Received: model.calibrator of class {type(self.calibrator).__name__}"
            )
        if self.popularity is not None:
            self.popularity.warn_if_unknown()
        history = super().fit(*args, **kwargs)
        warn_if_nothing_was_learned(history, next(metric for metric in self.metrics if metric.name == "auc"))
        return history

    def call(self, inputs: Inputs, training: bool | None = None, return_scores: bool = False) -> Any:
        columns = self.batch_columns(inputs)
        scores = self.score(self.id_dropout(columns) if training else columns, training=bool(training))
        return scores if return_scores else scores.logits[:, 0]

    def batch_columns(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        """The columns of a batch, checked, each row's item as its one candidate."""
        return with_candidates(batch_columns(inputs, self.features), self.features)

    def score(
        self,
        inputs: Inputs,
        training: bool = False,
        jit_compile: bool = False,
        state: Mapping[str, tf.Tensor] | None = None,
    ) -> Scores:
        """Scores C candidates against each user's one history.

        Args:
            inputs: dict of indices and floats: `user` and `context` columns [R], item columns [R, C], `history_*` [R,
                L] most recent first (as in the call), `history_length` [R], and so for `features.sequences`.
            training: whether gradients must flow by the straight-through path.
            jit_compile: whether XLA may compile the search of the long history, as `export_model` wants it.
            state: what `user_state` gave for these users; units with a state then read no history.

        Returns:
            `Scores` of [R, C] candidates.
        """
        self.build_embeddings()
        shared = self.feature_embedding.candidates(inputs)
        # Looked up once, before any unit asks for them.
        parts, interests = [shared.vectors], {}
        if self.popularity is not None:
            parts.append(self.popularity(shared.ids[self.features.item_id.name]))
        for unit in self.interests:
            embedding = self.embedding_of(unit)
            candidate = shared if embedding is self.feature_embedding else embedding.candidates(inputs)
            if state is not None and unit.state_names:
                interests[unit.name] = unit.from_state(candidate, own_state(unit, state))
            else:
                history = embedding.sequence(inputs, unit.sequence)
                interests[unit.name] = unit(candidate, history, training=training, jit_compile=jit_compile)
            parts.append(interests[unit.name].vector)
        return Scores(self._logits(inputs, parts), interests)

    def _logits(self, inputs: Inputs, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Logits [R, C] of candidates, by their own vectors and their interest vectors, [R, C, D] each."""
        shape = tf.shape(parts[0])
        rows = self.feature_embedding.rows(inputs)
        of_rows = [tf.broadcast_to(x[:, tf.newaxis, :], [shape[0], shape[1], x.shape[-1]]) for x in rows]
        x0 = x = tf.concat([*parts, *of_rows], axis=-1)
        for cross in self.cross:
            x = cross(x0, x)
        return self.mlp(x)[..., 0]

    @property
    def calibrator(self) -> Calibrator | None:
        """What makes probabilities of logits; `None`: the sigmoid."""
        return self._calibrator

    @calibrator.setter
    def calibrator(self, calibrator: Calibrator | None) -> None:
        check_calibrator(calibrator)
        self._calibrator = calibrator

    def probabilities(self, logits: Any) -> tf.Tensor:
        """Probabilities of logits, of any shape, as an export gives them: calibrated where there is a `calibrator`."""
        return tf.sigmoid(logits) if self.calibrator is None else self.calibrator(logits)

    def compute_losses(self, inputs: tuple[Any, ...], training: bool = False) -> dict[str, tf.Tensor]:
        """The click loss and, in training, the losses of units as `<unit>_loss`, and that of the retrieval task."""
        return ranking_losses(self, inputs, training)

    def refresh(self) -> None:
        """Derives again what the units keep beside the embeddings; needed only after writes to raw variable handles."""
        for unit in self.interests:
            unit.refresh()
        if self.popularity is not None:
            self.popularity.refresh()

    def after_step(self, step: tf.Tensor) -> None:
        for unit in self.interests:
            unit.after_step(step)

    def save(self, filepath: Any, overwrite: bool = True, save_format: str | None = None, **kwargs: Any) -> None:
        if not all(map(is_argument, self.features.encoded_row_names)) and not is_native(filepath, save_format):
            # No default signature: TensorFlow's can't have such inputs.
            kwargs.setdefault("signatures", {})
        super().save(filepath, overwrite, save_format, **kwargs)

    def get_config(self) -> dict[str, Any]:
        arguments = ("name", "features", "lookup", "interests", "hidden_units", "activation")
        return serialized(
            {
                **{name: getattr(self, name) for name in (*arguments, "retrieval_task", "calibrator")},
                "cross_layers": len(self.cross),
                "popularity": self.popularity is not None,
                "id_dropout": self.id_dropout.rate,
                "embeddings_regularizer": self._regularizer,
            }
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Ranker:
        return cls(**deserialized(config))
