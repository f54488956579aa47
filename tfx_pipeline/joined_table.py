"""A table of items, or of users, that comes with a log."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class JoinedTable:
    """A small CSV file with further columns of items, or of users, joined to the interactions by the id.

    Args:
        file: relative to the data directory.
        header: names of its columns, where its first line is data. Empty: the first line names them.
        key: the column with the id.
        columns: those to join.
        separator: between two values of a row.
        encoding: of the file.
        list_separator: between the entries of a value that is a list, as `"Comedy|Drama"` is. A feature without
            `max_values` gets the first entry. Empty: no value is a list.
        text: columns of texts that tell a retriever what an item is.
        categories: columns of categories that do, lists or not.
        extracted: columns for `text` and `categories` that are parts of others: name, column, and a regular expression
            whose first group is the value. Where it is not found there is none.

    Raises:
        ValueError: if a column is not there, or a regular expression is none or has no group.
    """

    file: str
    header: tuple[str, ...]
    key: str
    columns: tuple[str, ...]
    separator: str = ","
    encoding: str = "utf-8"
    list_separator: str = ""
    text: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    extracted: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("header", "columns", "text", "categories"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "extracted", tuple((name, column, part) for name, column, part in self.extracted))
        if self.header:
            self.check_header(self.header)
        parts = [name for name, _, _ in self.extracted]
        missing = [name for name in (*self.text, *self.categories) if name not in (*self.header, *parts)]
        missing += [column for _, column, _ in self.extracted if column not in self.header]
        if missing and self.header:
            raise ValueError(
                f"`text`, `categories` and what they are `extracted` from must be among the table's columns "
                f"{(*self.header, *parts)}. Received: {missing}"
            )
        for name, _, pattern in self.extracted:
            if not _has_group(pattern):
                raise ValueError(
                    f"`extracted` must hold regular expressions with a group. Received: {pattern!r} of {name!r}"
                )

    def check_header(self, header: tuple[str, ...]) -> None:
        """Raises ValueError unless the columns that are read are among those of the file, each once."""
        missing = [name for name in (self.key, *self.columns) if header.count(name) != 1]
        if missing:
            raise ValueError(
                f"`key` and `columns` must be among the columns of the table {self.file}, {header}, once each. "
                f"Received: {missing}"
            )


def _has_group(pattern: str) -> bool:
    """Whether it is a regular expression with a group."""
    try:
        return re.compile(pattern).groups > 0
    except re.error:
        return False
