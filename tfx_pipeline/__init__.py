"""From raw interaction logs to a validated model that TF Serving picks up, on TFX components."""

# First of all imports: it makes tf.keras the Keras that TFX needs.
import keras_eta as keras_eta
