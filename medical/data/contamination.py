"""Whether what is tested on was learnt from: `crossband medical data contamination`.

Pre-trained networks have seen the training parts of public sets, LVM-Med for instance those of
Kvasir, BUID, MMWHS and BraTS; its lists are `lvm-med-training-data/*/file_list.txt`. Files are
compared by name, by their bytes and by what they show, as far as both sides have them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossband.medical.config import ContaminationConfig
from crossband.medical.data.fingerprints import (
    BITS,
    Fingerprint,
    file_fingerprint,
    near_pairs,
)
from crossband.medical.data.name_sources import Source, find_sources, is_generic, tells_set
from crossband.medical.data.overview import Progress
from crossband.medical.data.pairs import split_word
from crossband.medical.data.records import counted
from crossband.medical.privacy import Names
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import (
    EXIT_FAILED,
    EXIT_PARTIAL,
    CheckpointError,
    ConfigError,
    DataError,
)
from crossband.shared.files import file_digest, write_text

# Strong evidence first; the last kind alone proves nothing.
KINDS = ("same bytes", "nearly equal", "same name", "same name, weak")
_SHOWN = 5  # pairs of each kind on the terminal


@dataclass(frozen=True)
class Pair:
    """Something tested that was perhaps learnt from.

    Attributes:
        tested: What is tested on.
        against: The first of what it equals in that set.
        kind: One of `KINDS`.
        bits: Bits of 256 in which fingerprints differ, of nearly equal pictures.
        more: Further ones of the set that it equals in the same way.
    """

    tested: Source
    against: Source
    kind: str
    bits: int | None = None
    more: int = 0


@dataclass
class Comparison:
    """What was compared, and found.

    Attributes:
        tested: What is tested on.
        against: What was learnt from.
        pairs: In order of `KINDS`.
        unreadable: File and reason of what could not be looked at.
        flat: Pictures that show too little to be told from others.
        notes: What else a user should know, a sentence each.
    """

    tested: list[Source]
    against: list[Source]
    pairs: list[Pair] = field(default_factory=list)
    unreadable: list[tuple[Path, DataError]] = field(default_factory=list)
    flat: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Number of tested things with strong evidence."""
        return len({pair.tested for pair in self.pairs if pair.kind != KINDS[-1]})

    def counts(self) -> list[dict[str, Any]]:
        """Return of each set with pairs how many tested things are in it, by kind."""
        sets = sorted({pair.against.set for pair in self.pairs})
        return [
            {"set": name}
            | {
                kind: len({p.tested for p in self.pairs if (p.against.set, p.kind) == (name, kind)})
                for kind in KINDS
            }
            for name in sets
        ]


def run(config: ContaminationConfig) -> int | None:
    """Print what of the tested things is in the lists or folders of what was learnt from.

    Returns:
        1 if names, bytes or pictures say that something was learnt from; else 3 if files cannot be
        read; else None. Names that many sets have are listed and do not count.
    """
    if config.out and Path(config.out).suffix.lower() != ".csv":
        raise ConfigError(f"--out {config.out}: name a table that ends in .csv.")
    found = compare(
        config.tested,
        config.against,
        near=config.near,
        distance=config.distance,
        silent=config.quiet or config.json,
    )
    names = Names(config.keep_ids)
    if config.out:
        write_text(config.out, _table(found.pairs, names))
    facts = _facts(found, names)
    if config.json:
        print_json(facts)
    else:
        _print(found, facts, names)
        if config.out:
            print(f"pairs: {config.out}")
    if found.seen:
        return EXIT_FAILED
    return EXIT_PARTIAL if found.unreadable else None


def compare(
    tested: Sequence[str],
    against: Sequence[str],
    *,
    near: bool = True,
    distance: int = 6,
    silent: bool = True,
) -> Comparison:
    """Compare what is tested on with what was learnt from.

    Args:
        tested: Lists of file names, images, volumes, or folders; of lists with splits the test part
            is taken.
        against: The same; of lists with splits all but the test part is taken.
        near: Compare pictures too, of volumes their middle slices.
        distance: Bits of 256 in which the fingerprints of nearly equal pictures may differ.
        silent: Tell no progress.

    Raises:
        ConfigError: a side that is missing, or a distance that cannot be.
        DataError: something that is not there, or holds no names and no images.
    """
    if not tested or not against:
        missing = "what is tested on" if not tested else "what was learnt from (--against)"
        raise ConfigError(f"There is nothing to compare: give {missing}, as lists or folders.")
    if not 0 <= distance < BITS // 4:
        raise ConfigError(f"--distance {distance}: give 0 to {BITS // 4 - 1} of {BITS} bits.")
    notes: list[str] = []
    found = Comparison(
        find_sources(tested, wanted="test", notes=notes),
        find_sources(against, wanted="train", notes=notes),
        notes=notes,
    )
    files = tuple(_files(side) for side in (found.tested, found.against))
    pairs = _same_names(found.tested, found.against)
    if all(files):
        pairs += _same_bytes(*files)
        if near:
            equal = {(pair.tested, pair.against.set) for pair in pairs if pair.kind == KINDS[0]}
            pairs += _near(found, files, distance, silent, equal)
    else:
        found.notes.append("names alone were compared: give files on both sides to compare those")
    found.pairs = sorted(pairs, key=lambda pair: KINDS.index(pair.kind))
    return found


def _files(side: Iterable[Source]) -> list[Source]:
    return [source for source in side if source.path is not None]


def _same_names(tested: list[Source], against: list[Source]) -> list[Pair]:
    """Return a pair of every tested name and every set that has it."""
    known: dict[str, dict[str, list[Source]]] = {}
    for source in against:
        known.setdefault(source.key, {}).setdefault(source.set, []).append(source)
    pairs = []
    for source in tested:
        for others in known.get(source.key, {}).values():
            alike = [other for other in others if _same_place(source, other)]
            weak = is_generic(source.key) and not alike
            kept = alike or others
            pairs.append(Pair(source, kept[0], KINDS[3 if weak else 2], more=len(kept) - 1))
    return pairs


def _same_place(source: Source, other: Source) -> bool:
    """Whether two names are of one set and not of different splits of it, by their folders."""
    splits = [
        {split for part in each.name.split("/")[:-1] if (split := split_word(part))}
        for each in (source, other)
    ]
    return bool(_place(source) & _place(other)) and (splits[0] == splits[1] or not all(splits))


def _place(source: Source) -> set[str]:
    """Return what tells where a name comes from: its set, and the nearest folder of its own."""
    folders = reversed(source.name.split("/")[:-1])
    nearest = next((part for part in folders if tells_set(part)), "")
    return {part.casefold() for part in (nearest, source.set) if part and tells_set(part)}


def _same_bytes(tested: list[Source], against: list[Source]) -> list[Pair]:
    """Return pairs of equal files; those of a size that one side alone has are not read."""
    both = set(map(_size, tested)) & set(map(_size, against)) - {None}
    known: dict[tuple[str, str], list[Source]] = {}
    for source in against:
        if _size(source) in both and (digest := _digest(source)):
            known.setdefault((digest, source.set), []).append(source)
    sets = {name for _, name in known}
    pairs = []
    for source in tested:
        if _size(source) in both and (digest := _digest(source)):
            for name in sets:
                if others := known.get((digest, name)):
                    pairs.append(Pair(source, others[0], KINDS[0], more=len(others) - 1))
    return pairs


def _near(
    found: Comparison,
    files: tuple[list[Source], ...],
    distance: int,
    silent: bool,
    equal: set[tuple[Source, str]],
) -> list[Pair]:
    """Return pairs of pictures that are nearly equal and not the same file."""
    progress = Progress(sum(map(len, files)), silent)
    looked: list[tuple[list[Source], list[Fingerprint]]] = []
    for side in files:
        sources, prints = [], []
        for source in side:
            progress.step()
            try:
                made = file_fingerprint(source.path)  # type: ignore[arg-type]
            except DataError as error:
                found.unreadable.append((source.path, error))  # type: ignore[arg-type]
                continue
            if made is None:
                found.flat += 1
            else:
                sources.append(source)
                prints.append(made)
        looked.append((sources, prints))
    (tested, first), (against, second) = looked
    best: dict[tuple[Source, str], Pair] = {}
    for i, j, bits in near_pairs(first, second, distance):
        source, other = tested[i], against[j]
        if (source, other.set) in equal:
            continue
        before = best.get((source, other.set))
        more = before.more + 1 if before else 0
        if before and before.bits is not None and before.bits <= bits:
            other, bits = before.against, before.bits
        best[source, other.set] = Pair(source, other, KINDS[1], bits, more)
    return list(best.values())


def _size(source: Source) -> int | None:
    try:
        return source.path.stat().st_size if source.path else None
    except OSError:
        return None


def _digest(source: Source) -> str | None:
    try:
        return file_digest(source.path) if source.path else None
    except CheckpointError:  # told when its picture is read
        return None


def _facts(found: Comparison, names: Names) -> dict[str, Any]:
    sets = Counter(source.set for source in found.against)
    return {
        "tested": len(found.tested),
        "against": dict(sorted(sets.items())),
        "seen": found.seen,
        "sets": found.counts(),
        "pairs": [_row(pair, names) for pair in found.pairs],
        "flat": found.flat,
        "unreadable": [names.error(error, path) for path, error in found.unreadable],
        "notes": found.notes,
    }


def _row(pair: Pair, names: Names) -> dict[str, Any]:
    return {
        "kind": pair.kind,
        "tested": pair.tested.shown(names),
        "set": pair.against.set,
        "against": pair.against.shown(names),
        "bits": pair.bits,
        "more": pair.more,
    }


def _table(pairs: list[Pair], names: Names) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("kind", "tested", "set", "against", "bits", "more"))
    writer.writeheader()
    writer.writerows(_row(pair, names) for pair in pairs)
    return text.getvalue()


def _print(found: Comparison, facts: dict[str, Any], names: Names) -> None:
    sets = counted(len(facts["against"]), "set")
    print(f"{len(found.tested)} tested, against {len(found.against)} of {sets}")
    if facts["sets"]:
        print(format_table(("set", *KINDS), [tuple(row.values()) for row in facts["sets"]]))
    for kind in KINDS:
        rows = [row for row in facts["pairs"] if row["kind"] == kind]
        if rows:
            print(f"{kind}: {len(rows)}")
        for row in rows[:_SHOWN]:
            bits = f", {row['bits']} bits of {BITS} differ" if row["bits"] is not None else ""
            more = f", and {row['more']} more there" if row["more"] else ""
            print(f"  {row['tested']} = {row['against']} of {row['set']}{bits}{more}")
        if len(rows) > _SHOWN:
            print(f"  and {len(rows) - _SHOWN} more (--out and --json list all)")
    if found.flat:
        print(f"note: {counted(found.flat, 'picture')} with next to nothing in it not compared")
    for note in found.notes:
        print(f"note: {note}")
    for reason in facts["unreadable"][:_SHOWN]:
        print(f"left out: {reason}")
    if len(facts["unreadable"]) > _SHOWN:
        print(f"left out: {len(facts['unreadable']) - _SHOWN} more (--json lists all)")
    if found.seen:
        print(f"{found.seen} of {len(found.tested)} were learnt from: scores on them are too good")
    else:
        print("nothing of it was found in what was learnt from")
