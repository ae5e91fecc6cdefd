"""From a corpus on disk to lhotse cuts: folders in LibriSpeech's layout, or tables of audio path and text.

A part of a corpus is a folder `dir/<part>` (or `dir/LibriSpeech/<part>`) with `*.trans.txt` files beside the audio, or
a table `dir/<part>.tsv`, `.csv` or `.jsonl`. What cannot be used is left out, counted and named, a line per reason.
"""

from __future__ import annotations

import csv
import json
import logging
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from tqdm import tqdm

from toolkit.data.resample import resampled

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl")
# Column names of other people's tables (Common Voice, NeMo, Hugging Face) that mean the same.
_COLUMNS = {
    "audio": ("audio", "path", "audio_path", "audio_filepath", "file", "wav", "filename"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}


@dataclass(frozen=True)
class Utterance:
    id: str
    audio: Path
    text: str
    speaker: str


class LeftOut:
    """What was left out of a corpus and why; `report` says it once, with counts and the first names."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: object) -> None:
        self.names[reason].append(str(name))

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def counts(self) -> dict[str, int]:
        return {reason: len(names) for reason, names in sorted(self.names.items())}

    def report(self, where: str) -> None:
        for reason, names in sorted(self.names.items()):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            logging.warning("%s: left out %d with %s: %s%s", where, len(names), reason, ", ".join(names[:5]), more)


def normalize_text(text: str) -> str:
    """Upper case, no punctuation but the apostrophe, single spaces: the spelling of LibriSpeech's transcripts."""
    text = text.replace("\u2019", "'").upper()
    kept = (" " if c != "'" and unicodedata.category(c)[0] in "PSZC" else c for c in text)
    return " ".join("".join(kept).split())


# ------------------------------------------------------------------------------------------------- finding and reading


def find_part(root: Path, part: str) -> Path | None:
    """The folder or table of `part`, or None."""
    for candidate in (root / part, root / "LibriSpeech" / part):
        if candidate.is_dir():
            return candidate
    for suffix in TABLE_SUFFIXES:
        if (root / (part + suffix)).is_file():
            return root / (part + suffix)
    return None


def existing_parts(root: Path) -> list[str]:
    """Names of what could be a part under `root`, for messages."""
    folders = [p.name for d in (root, root / "LibriSpeech") if d.is_dir() for p in d.iterdir() if p.is_dir()]
    tables = [p.stem for p in root.iterdir() if p.suffix in TABLE_SUFFIXES]
    return sorted({*folders, *tables} - {"LibriSpeech"})


def _read_layout(folder: Path, left_out: LeftOut) -> Iterator[Utterance]:
    audio = {p.with_suffix(""): p for p in sorted(folder.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES}
    seen = set()
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            key = transcripts.parent / name
            seen.add(key)
            if key in audio:
                yield Utterance(name, audio[key], text, name.split("-")[0])
            else:
                left_out.add("a transcript but no audio", key)
    for key in sorted(set(audio) - seen):
        left_out.add("audio but no transcript", audio[key])


def _table_rows(table: Path) -> Iterator[dict[str, str]]:
    with open(table, encoding="utf-8", newline="") as f:
        if table.suffix == ".jsonl":
            rows: Iterable[dict] = [_parse_json(table, i, line) for i, line in enumerate(f) if line.strip()]
        else:
            # TSV has no quoting: a quotation mark is a character there.
            reader = csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE) if table.suffix == ".tsv" else csv.reader(f)
            lines = list(reader)
            known = {name for names in _COLUMNS.values() for name in names}
            header = lines.pop(0) if lines and set(map(str.lower, lines[0])) & known else ["audio", "text", "speaker"]
            rows = [dict(zip(map(str.lower, header), line)) for line in lines if line]
    for i, row in enumerate(rows):
        found = {key: str(next((row[n] for n in names if row.get(n)), "")) for key, names in _COLUMNS.items()}
        if not found["audio"]:
            raise ValueError(f"{table}: row {i + 1} names no audio: expected columns audio, text, speaker, got {row}")
        yield found


def _parse_json(table: Path, i: int, line: str) -> dict:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{table}: line {i + 1} is not a JSON object: {line.strip()[:80]!r}") from e


def _read_table(table: Path, left_out: LeftOut) -> Iterator[Utterance]:
    for row in _table_rows(table):
        audio = table.parent / row["audio"]  # an absolute path stays as it is
        if audio.is_file():
            name = "-".join(Path(row["audio"]).with_suffix("").parts).lstrip("/-")
            yield Utterance(name, audio, row["text"], row["speaker"] or name)
        else:
            left_out.add("a transcript but no audio", audio)


def _to_cut(utterance: Utterance, sampling_rate: int) -> tuple[MonoCut | None, str]:
    """The cut of an utterance and its audio's rate where that is not `sampling_rate`, or None and what is wrong."""
    text = normalize_text(utterance.text)
    if not text:
        return None, "an empty transcript"
    if utterance.audio.stat().st_size == 0:
        return None, "empty audio"
    try:
        recording = Recording.from_file(utterance.audio, recording_id=utterance.id)
    except Exception:  # whatever the audio library of the day throws at a broken file
        return None, "unreadable audio"
    if recording.num_samples == 0:
        return None, "empty audio"
    rate = "" if recording.sampling_rate == sampling_rate else f"{recording.sampling_rate} Hz"
    recording = resampled(recording, sampling_rate)
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        text=text,
        speaker=utterance.speaker,
    )
    channel = recording.channel_ids[0]
    return MonoCut(utterance.id, 0.0, recording.duration, channel, [supervision], recording=recording), rate


def read_part(source: Path, sampling_rate: int) -> tuple[CutSet, LeftOut]:
    """The cuts of one part, one utterance each, resampled lazily where needed, and what had to be left out.

    Raises ValueError when nothing usable is left.
    """
    left_out = LeftOut()
    utterances = list((_read_layout if source.is_dir() else _read_table)(source, left_out))
    cuts: dict[str, MonoCut] = {}
    rates: Counter[str] = Counter()
    with ThreadPoolExecutor(8) as pool:  # waits for the disk, hardly computes
        results = pool.map(lambda u: _to_cut(u, sampling_rate), utterances)
        progress = tqdm(results, f"reading {source.name}", len(utterances), leave=False, mininterval=1.0)
        for utterance, (cut, note) in zip(utterances, progress):
            if cut is None:
                left_out.add(note, utterance.audio)
            elif cut.id in cuts:
                left_out.add("an id that is there already", utterance.audio)
            else:
                cuts[cut.id] = cut
                rates.update([note] if note else [])
    left_out.report(str(source))
    for rate, count in rates.items():
        logging.info("%s: %d recordings of %s are resampled to %d Hz", source, count, rate, sampling_rate)
    if not cuts:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in left_out.counts().items())
        raise ValueError(
            f"{source}: no usable utterance ({reasons or 'no audio and no transcripts found'}); expected "
            "SPEAKER/CHAPTER/ID.flac with SPEAKER-CHAPTER.trans.txt beside them, or a table of audio path and text"
        )
    return CutSet.from_cuts(cuts.values()), left_out


def split_off(cuts: CutSet, fraction: float, seed: int = 42) -> tuple[CutSet, CutSet, str]:
    """Cut about `fraction` of the audio off `cuts`: (rest, cut off, "speakers" or "utterances").

    Whole speakers where that comes near enough to `fraction`, else single utterances (one speaker, a few large ones).
    """
    seconds: Counter[str] = Counter()
    for cut in cuts:
        seconds[cut.supervisions[0].speaker] += cut.duration
    target = fraction * sum(seconds.values())
    rng = random.Random(seed)
    chosen: set[str] = set()
    speakers = sorted(seconds)
    rng.shuffle(speakers)
    for speaker in speakers:
        if sum(seconds[s] for s in chosen) >= target:
            break
        chosen.add(speaker)
    if len(chosen) < len(speakers) and sum(seconds[s] for s in chosen) <= 3 * target:
        by, is_off = "speakers", {c.id: c.supervisions[0].speaker in chosen for c in cuts}
    else:
        ids = [c.id for c in cuts]
        rng.shuffle(ids)
        count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
        by, is_off = "utterances", {id: i < count for i, id in enumerate(ids)}
    rest, off = (CutSet.from_cuts(c for c in cuts if is_off[c.id] is which) for which in (False, True))
    return rest, off, by


def read_corpus(
    root: Path, parts: dict[str, list[str]], sampling_rate: int, valid_fraction: float = 0.0
) -> tuple[dict[str, CutSet], dict[str, dict[str, int]]]:
    """All parts of a corpus: {part: cuts} and {part: what was left out}.

    `parts` has the lists "train", "valid" and "test"; with `valid_fraction` a valid part that is not there is cut off
    the first train part. Raises FileNotFoundError for a missing folder or part, naming what was found.
    """
    train = parts["train"]
    wanted = list(dict.fromkeys([*train, *parts["valid"], *parts["test"]]))
    if not root.is_dir():
        raise FileNotFoundError(f"corpus.dir={root}: no such folder; expected one with the parts {', '.join(wanted)}")
    sources = {part: find_part(root, part) for part in wanted}
    can_split = [p for p in parts["valid"] if p not in train] if valid_fraction > 0 else []
    missing = [part for part, source in sources.items() if source is None and part not in can_split]
    if missing:
        raise FileNotFoundError(
            f"{root} has no part {', '.join(missing)} (folder or table of {', '.join(TABLE_SUFFIXES)}); "
            f"found: {', '.join(existing_parts(root)) or 'nothing'}. Choose with corpus.train, .valid and .test"
        )
    cuts: dict[str, CutSet] = {}
    left_out: dict[str, dict[str, int]] = {}
    for part, source in sources.items():
        if source is not None:
            cuts[part], bad = read_part(source, sampling_rate)
            left_out[part] = bad.counts()
    for part in [p for p in can_split if sources[p] is None]:
        if len(cuts[train[0]]) < 2:
            raise ValueError(f"{sources[train[0]]}: one utterance only; nothing to cut the missing part {part!r} from")
        cuts[train[0]], cuts[part], by = split_off(cuts[train[0]], valid_fraction)
        logging.info("%s: no part %r; %d utterances are cut off %r by %s", root, part, len(cuts[part]), train[0], by)
    return cuts, left_out
