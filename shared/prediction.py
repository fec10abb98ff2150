"""Working through many inputs: a broken one never stops the others, and all are listed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crossband.shared.cli.output import print_json
from crossband.shared.config import OutputOptions
from crossband.shared.errors import EXIT_PARTIAL, CrossbandError, DataError
from crossband.shared.files import write_text

INDEX = "predictions.jsonl"


def printable(text: str) -> str:
    """Return a text without the lone surrogates that file names of no encoding hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def predict_each(
    jobs: Sequence[Any],
    run: Callable[[Any], dict[str, Any]],
    *,
    name: Callable[[Any], str],
    describe: Callable[[dict[str, Any]], str],
    options: OutputOptions,
    folder: Path | None,
    key: str = "predictions",
) -> int | None:
    """Run every job; list what came of each in `predictions.jsonl`, also after Ctrl-C.

    Args:
        jobs: What to work on.
        run: Does one job; returns its entry of the list. A `DataError` leaves the job out.
        name: Of a job, for messages and the list.
        describe: Turns an entry into the line to print.
        options: Quiet and JSON.
        folder: Where the list goes; None writes none.
        key: Name of the list in the JSON object.

    Returns:
        None, or `EXIT_PARTIAL` if jobs were left out.

    Raises:
        DataError: the only job failed.
        CrossbandError: all of several jobs failed.
    """
    entries: list[dict[str, Any]] = []
    failed = 0
    start = time.monotonic()
    try:
        for done, job in enumerate(jobs, start=1):
            try:
                entries.append(run(job))
            except DataError as error:
                if len(jobs) == 1:
                    raise
                failed += 1
                entries.append({"input": name(job), "error": str(error)})
                place = sys.stderr if options.json else sys.stdout
                print(printable(f"left out {name(job)}: {error}"), file=place, flush=True)
                continue
            if not options.quiet and not options.json:
                left = (time.monotonic() - start) / done * (len(jobs) - done)
                count = f"[{done}/{len(jobs)}, {left:.0f} s left] " if len(jobs) > 1 else ""
                print(printable(count + describe(entries[-1])), flush=True)
    finally:
        if folder is not None and entries:
            lines = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries)
            write_text(folder / INDEX, printable(lines))
    if options.json:
        print_json({key: entries})
    if failed == len(jobs):
        raise CrossbandError(f"None of the {len(jobs)} inputs could be worked on; see above.")
    return EXIT_PARTIAL if failed else None
