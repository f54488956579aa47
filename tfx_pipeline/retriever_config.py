"""The retriever's part of the configuration of a pipeline run."""

from __future__ import annotations

import dataclasses

from keras_eta.validation import check_positive_integers, is_integer, is_number
from tfx_pipeline.options import option

# How many of those found are judged: recall@10, NDCG@10.
JUDGED = 10


@dataclasses.dataclass(frozen=True)
class Retriever:
    """The retriever, `keras_eta.TIGER`: what it knows of items, how it is trained, and when it is blessed.

    Raises:
        ValueError: if an argument is out of its range, or arguments do not go together.
    """

    retriever_dir: str | None = option(
        None,
        "also train, judge and push a retriever (TIGER), whose versions are pushed here (default: there is none)",
        metavar="DIR",
    )
    item_table: str | None = option(
        None,
        "CSV file with a header, or Parquet file, of all items, whether the log has them or not (default: the layout's "
        "own table, as movielens has; else the items and their attributes in the log)",
        metavar="FILE",
    )
    item_text: tuple[str, ...] = option((), "its columns of texts", nargs="+", metavar="COLUMN")
    item_category: tuple[str, ...] = option(
        (),
        "its columns of categories; several are a list in a Parquet file, split at --list_separator in a CSV file",
        nargs="+",
        metavar="COLUMN",
    )
    codebook_size: int = option(256, "codes of each of the three levels of a semantic id", metavar="N")
    retriever_epochs: int = option(
        5,
        "passes over the positives of the training part, at most. --batch_size, --seed and, by the validation loss, "
        "--patience are the retriever's too",
        metavar="N",
    )
    retriever_results: int = option(200, "items that a served request finds", metavar="N")
    unseen_share: float = option(
        0.1,
        "of these, for items that no positive of the training part has, which a trained model finds unlikely for no "
        "other reason; 0: none",
        metavar="SHARE",
    )
    max_recall_drop: float = option(
        0.005, "how far recall@10 may lie below that of the version pushed last", metavar="RECALL"
    )

    def __post_init__(self) -> None:
        for name in ("item_text", "item_category"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        columns = (*self.item_text, *self.item_category)
        if self.retriever_dir is None and (self.item_table is not None or columns):
            raise ValueError(
                "`item_table`, `item_text` and `item_category` must go with `retriever_dir`. "
                f"Received: retriever_dir=None, item_table={self.item_table!r}"
            )
        if (self.item_table is None) == bool(columns) or len(set(columns)) < len(columns):
            raise ValueError(
                "`item_table` must come with columns of `item_text` or `item_category`, none of them twice, and these "
                f"with it. Received: item_table={self.item_table!r}, item_text={self.item_text}, "
                f"item_category={self.item_category}"
            )
        if self.retriever_dir == "":
            raise ValueError("`retriever_dir` must be a directory. Received: retriever_dir=''")
        check_positive_integers(codebook_size=self.codebook_size, retriever_epochs=self.retriever_epochs)
        if not is_integer(self.retriever_results, JUDGED):
            raise ValueError(
                f"`retriever_results` must be an integer of at least {JUDGED}, as recall@{JUDGED} is judged. "
                f"Received: retriever_results={self.retriever_results!r}"
            )
        if not (is_number(self.unseen_share) and 0 <= self.unseen_share <= 1):
            raise ValueError(
                f"`unseen_share` must be a number from 0 to 1. Received: unseen_share={self.unseen_share!r}"
            )
        if not (is_number(self.max_recall_drop) and self.max_recall_drop >= 0):
            raise ValueError(
                f"`max_recall_drop` must be a number of at least 0. Received: max_recall_drop={self.max_recall_drop!r}"
            )
