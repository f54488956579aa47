"""Reads a model's signatures from a server's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.client.answers import Metadata, Signature, TensorSpec
from serving.client.protocol import SignatureDefMap
from serving.client.tensors import dtype_name


def read_metadata(response: Any) -> Metadata:
    """The signatures in a GetModelMetadataResponse that can be called, in order of their names."""
    signatures = SignatureDefMap.FromString(response.metadata["signature_def"].value)
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
        sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
        specs[name] = TensorSpec(dtype_name(info.dtype), None if info.tensor_shape.unknown_rank else sizes)
    return specs
