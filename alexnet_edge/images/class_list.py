"""ImageNet's class list: a CSV file with the columns `wnid,index,name`, which gives folders their labels."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from alexnet_edge.errors import DataError

CLASS_LIST_NAME = "classes.csv"
_WNID = re.compile(r"n\d{8}")


def read_class_list(path: Path) -> list[tuple[str, str]]:
    """`(wnid, name)` by output index, from a CSV file with the columns `wnid,index,name`.

    ImageNet has two classes of the same name twice over ("crane", "maillot"): such names get their WordNet id appended.

    Raises:
        DataError: when the file is missing, not such a table, or its indices are not 0, 1, 2, ... each once.
    """
    fix = "give a CSV file with the columns wnid,index,name"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        listed = [(str(row["wnid"]).strip(), int(row["index"]), str(row["name"]).strip()) for row in rows]
    except OSError as error:
        raise DataError(f"the class list cannot be read ({error.strerror})", value=path, fix=fix) from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"the class list is not readable ({reason})", value=path, fix=fix) from error
    for column, position in (("wnid", 0), ("index", 1)):
        twice = [value for value, count in Counter(entry[position] for entry in listed).items() if count > 1]
        if twice:
            raise DataError(
                f"the class list has {column} {twice[0]} more than once", value=path, fix="remove the duplicate"
            )
    listed.sort(key=lambda entry: entry[1])
    if not listed or [entry[1] for entry in listed] != list(range(len(listed))):
        raise DataError("the class list's indices are not 0, 1, 2, ...", value=path, fix="give the whole list")
    counts = Counter(name for _, _, name in listed)
    return [(wnid, name if counts[name] == 1 else f"{name} ({wnid})") for wnid, _, name in listed]


def find_class_list(root: Path, names: Sequence[str]) -> Path | None:
    """The class list in the folder or its parent, where every name is a WordNet id; else None."""
    if not names or not all(_WNID.fullmatch(name) for name in names):
        return None
    return next((path for path in (root / CLASS_LIST_NAME, root.parent / CLASS_LIST_NAME) if path.is_file()), None)
