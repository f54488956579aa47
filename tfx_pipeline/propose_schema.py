"""Drafts the schema of a data set from its own impressions, as text proto for a human to check and edit.

    python -m tfx_pipeline.propose_schema --data logs --layout custom --pattern '*.csv' ... --file schema.pbtxt

Columns, types, shapes, and the thresholds on the item id come from the layout. What the data shows stands beside each
column as a comment; small sets of strings and narrow ranges of integers are proposed as the values that are allowed.
Read the file, correct it, and run the pipeline with --schema. A part of the log is enough: put it in a directory of its
own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_eta.quiet import quiet_imports
from tfx_pipeline.layout_flags import add_layout_flags, layout_from_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if the draft was written."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.propose_schema",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="directory of the raw log")
    parser.add_argument("--file", required=True, metavar="FILE", help="where to write the draft; must not exist")
    add_layout_flags(parser)
    flags = parser.parse_args(argv)
    try:
        layout = layout_from_flags(flags)
        # TFX takes several seconds to import: not before the flags are known to be good.
        from tfx_pipeline.schema_draft import write_draft

        write_draft(flags.data, layout, Path(flags.file))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
