"""Reads a model's signatures from a server's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.client.answers import Metadata, Signature, TensorSpec


def read_metadata(response: get_model_metadata_pb2.GetModelMetadataResponse) -> Metadata:
    """The signatures that can be called, in order of their names."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return Metadata(
        response.model_spec.version.value,
        {
            name: Signature(_specs(signature.inputs), _specs(signature.outputs))
            for name, signature in sorted(signatures.signature_def.items())
            # The SavedModel's initialiser, which is no signature to call.
            if name != "__saved_model_init_op"
        },
    )


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, info in sorted(infos.items()):
        shape = tf.TensorShape(info.tensor_shape)
        specs[name] = TensorSpec(tf.as_dtype(info.dtype).name, None if shape.rank is None else tuple(shape.as_list()))
    return specs
