"""Writes the item embeddings of a served version to a file, for the clusters of a layout.

python -m tfx_pipeline.item_vectors --version_dir build/serving/eta/1 --file item_vectors.npz

Run the pipeline with --clusters and that file afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from keras_eta.datasets import save_item_vectors
from keras_eta.features import Features
from keras_eta.names import scope_name
from keras_eta.quiet import quiet_imports


def write_item_vectors(version_dir: str, file: str) -> int:
    """Writes the embeddings of the items that a version has learned, by `keras_eta.datasets.save_item_vectors`.

    Args:
        version_dir: a version that the pipeline or `keras_eta.export.export_model` wrote, local or remote.
        file: where to write; a local path.

    Returns:
        How many items there are.

    Raises:
        FileNotFoundError: if there is no such version.
        ValueError: if it has no vocabulary, or an id can't be written.
    """
    # Takes seconds: not for --help.
    import tensorflow as tf

    description = os.path.join(version_dir, "assets.extra", "features.json")
    if not tf.io.gfile.exists(description):
        raise FileNotFoundError(f"{version_dir} is no version of a ranker: there is no {description}")
    with tf.io.gfile.GFile(description) as stream:
        features = Features.from_dict(json.load(stream))
    version = tf.saved_model.load(version_dir)
    if not version.vocabularies:
        raise ValueError(f"The ranker of {version_dir} has no vocabulary: it was exported without a lookup.")
    names = [feature.name for feature in features.all_features if feature.is_id]
    item = features.item_id
    table = dict(zip(names, version.vocabularies, strict=True))[item.name]
    # A restored table has a handle, but no methods.
    ids, places = tf.raw_ops.LookupTableExportV2(
        table_handle=table.resource_handle, Tkeys=tf.as_dtype(item.dtype), Tvalues=tf.int64
    )
    shared = f"embeddings/{scope_name(item.name)}/embeddings:0"
    (embeddings,) = (variable for variable in version.model_variables if variable.name == shared)
    # Tables count from 1: row 0 is padding.
    save_item_vectors(file, ids.numpy(), tf.gather(embeddings, 1 + places).numpy())
    return len(ids)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if the file was written."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.item_vectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version_dir", required=True, metavar="DIR", help="a version in a serving directory")
    parser.add_argument("--file", required=True, metavar="FILE", help="where to write, for --clusters")
    flags = parser.parse_args(argv)
    try:
        number = write_item_vectors(flags.version_dir, flags.file)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{flags.file} written: {number:,} items. Run the pipeline with --clusters {flags.file}")
    return 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
