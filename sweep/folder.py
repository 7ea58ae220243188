"""Where a sweep may be made: asked before anything is written."""

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem


def check_folder(sweep: Store) -> None:
    """Refuse a folder in which a new sweep would lie among a person's own files.

    Raises:
        InputError: It is a file, lies in a file, or holds what is no part of a sweep.
    """
    if sweep.exists():
        return
    folder = sweep.folder
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        what, mend = f"{file} is a file", "Name a folder; it is made if it is not there."
        raise InputError([Problem("--store", what, mend)])
    if strangers := sweep.strangers():
        raise InputError(
            [
                Problem(
                    "--store",
                    f"{folder} is no sweep and not empty: it holds {', '.join(strangers[:3])}"
                    + (f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""),
                    "Name a folder that is empty or not there yet, or that of a sweep.",
                )
            ]
        )
