"""Checksums of TFRecords in Beam."""

from __future__ import annotations

import google_crc32c
from apache_beam.io import tfrecordio


def use_google_crc32c() -> None:
    """Has Beam compute the checksums of TFRecords by google-crc32c in this process.

    Without python-snappy it would take crcmod, which needs about a tenth of the time of a component that reads
    impressions. There is no public way to choose; a Beam that has another function keeps its own.
    """
    function = getattr(tfrecordio, "_default_crc32c_fn", None)
    if function is not None:
        function.fn = google_crc32c.value
