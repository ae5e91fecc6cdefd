"""The embedded corpus: espeak-ng voices reading sentences of a small grammar, written in LibriSpeech's own layout.

    LibriSpeech/SPEAKERS.TXT
    LibriSpeech/train/1001/1/1001-1-0000.flac     16 kHz mono
    LibriSpeech/train/1001/1/1001-1.trans.txt

Voices are an accent, a voice variant, pitch, liveliness, speed and length of the vocal tract. The variants of dev and
test (`UNSEEN_MALE`, `UNSEEN_FEMALE`) never speak in train, though all accents do; sentences are disjoint as well
(synthetic_text.py). Same settings, same audio: each speaker is made in a process of its own, because espeak-ng's state
lingers between sentences.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toolkit.config import SyntheticCorpus
from toolkit.data.synthetic_text import make_sentence

SAMPLING_RATE = 16000
ACCENTS = (
    "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc",
)  # fmt: skip
# None with "breath": espeak-ng seeds that noise with the time, and no two runs would give the same audio.
MALE, FEMALE = ("", "+m1", "+m2", "+m3", "+m4", "+m7", "+m8", "+john"), ("+f1", "+steph", "+Annie", "+belinda")
UNSEEN_MALE, UNSEEN_FEMALE = ("+m6", "+paul"), ("+f4", "+linda")
FIRST_SPEAKER = {"train": 1001, "dev": 2001, "test": 3001}
SECONDS_PER_SPEAKER = {"train": 36.0, "dev": 20.0, "test": 20.0}
UTTERANCES_PER_CHAPTER = 50

# espeak-ng's C interface (speak_lib.h)
_SYNCHRONOUS = 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARS_UTF8 = 1


@dataclass(frozen=True)
class Voice:
    """One speaker: how espeak-ng is set, and what is done to its output."""

    speaker: int
    accent: str
    variant: str
    pitch: int  # 0..99, the middle of the variant's own range is 50
    liveliness: int  # range of the pitch, 0..99
    words_per_minute: int
    tract: float  # > 1: spoken by a smaller person; scales all formants

    @property
    def sex(self) -> str:
        return "F" if self.variant in FEMALE + UNSEEN_FEMALE else "M"


def make_voices(part: str, minutes: float, seed: int) -> list[Voice]:
    """The speakers of a part: as many different voices as its size can bear, at most one per accent and variant."""
    rng = random.Random(f"{seed} voices")
    pairs = [(a, v) for a in ACCENTS for v in (MALE + FEMALE if part == "train" else UNSEEN_MALE + UNSEEN_FEMALE)]
    rng.shuffle(pairs)
    # dev and test take every other voice of one shuffled list, so that no voice is in both.
    pairs = pairs if part == "train" else pairs[FIRST_SPEAKER[part] // 1000 % 2 :: 2]
    count = min(len(pairs), max(2, round(60 * minutes / SECONDS_PER_SPEAKER[part])))
    rng = random.Random(f"{seed} {part} manners")
    return [
        Voice(
            speaker=FIRST_SPEAKER[part] + i,
            accent=accent,
            variant=variant,
            pitch=rng.randint(30, 70),
            liveliness=rng.randint(30, 70),
            words_per_minute=rng.randint(150, 190),
            tract=rng.uniform(0.95, 1.05),
        )
        for i, (accent, variant) in enumerate(pairs[:count])
    ]


class Espeak:
    """espeak-ng from the wheel `espeakng-loader`, through ctypes. One per process: the library's state is global."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as e:
            raise RuntimeError("the synthetic corpus needs espeak-ng: pip install espeakng-loader") from e
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sampling_rate = self._lib.espeak_Initialize(
            _SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0
        )
        if self.sampling_rate <= 0:
            raise RuntimeError(f"espeak-ng does not start: no data in {espeakng_loader.get_data_path()}")
        self._chunks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._collect)  # kept, or Python would free what the library still calls
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    def set_voice(self, voice: Voice) -> None:
        name = voice.accent + voice.variant
        if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {name!r}")
        for parameter, value in ((_RATE, voice.words_per_minute), (_PITCH, voice.pitch), (_RANGE, voice.liveliness)):
            self._lib.espeak_SetParameter(parameter, value, 0)

    def say(self, text: str) -> np.ndarray:
        """`text` as float32 samples at `sampling_rate`, in [-1, 1]."""
        self._chunks.clear()
        data = text.lower().encode()
        if self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _CHARS_UTF8, None, None) != 0 or not self._chunks:
            raise RuntimeError(f"espeak-ng made no audio of {text!r}")
        return np.concatenate(self._chunks)


def resample(x_S: np.ndarray, ratio: float) -> np.ndarray:
    """`x_S` with `ratio` times as many samples, band-limited: the spectrum is cut or zero-padded. Numpy only, since the
    makers of the corpus are many short-lived processes."""
    padded = np.pad(x_S, (0, -len(x_S) % 512))
    spectrum = np.fft.rfft(padded)
    count = round(len(padded) * ratio)
    out = np.zeros(count // 2 + 1, dtype=spectrum.dtype)
    keep = min(len(spectrum), len(out))
    out[:keep] = spectrum[:keep]
    return np.fft.irfft(out, count)[: round(len(x_S) * ratio)] * (count / len(padded))


def room_and_noise(x_S: np.ndarray, snr_db: float, reverb: float, rng: np.random.Generator) -> np.ndarray:
    """`x_S` in a small room: an echo tail with `reverb` times the amplitude of the direct sound, and soft noise."""
    tail = int(rng.uniform(0.1, 0.3) * SAMPLING_RATE)
    echo = rng.standard_normal(tail) * np.exp(-6.9 * np.arange(tail) / tail)
    echo[: SAMPLING_RATE // 200] = 0.0  # the walls are not at the microphone
    echo *= reverb / (np.linalg.norm(echo) + 1e-9)
    n = 1 << (len(x_S) + tail - 1).bit_length()
    wet = x_S + np.fft.irfft(np.fft.rfft(x_S, n) * np.fft.rfft(echo, n), n)[: len(x_S)]
    # Pink-ish noise: falls by 3 dB an octave, as in rooms.
    spectrum = np.fft.rfft(rng.standard_normal(len(wet)))
    noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum))), len(wet))
    level = np.sqrt(np.mean(wet**2) / np.mean(noise**2)) * 10 ** (-(snr_db + rng.uniform(-5, 5)) / 20)
    return wet + level * noise


def make_speaker(out_dir: Path, part: str, voice: Voice, seconds: float, config: SyntheticCorpus) -> float:
    """Write all utterances of one speaker under `out_dir`/<speaker>, at least `seconds` of audio; returns the seconds.

    The folder appears when it is complete; one that is there already is left as it is.
    """
    import soundfile as sf

    final, partial = out_dir / str(voice.speaker), out_dir / f".{voice.speaker}.partial"
    if final.exists():
        return sum(sf.info(p).duration for p in final.rglob("*.flac"))
    shutil.rmtree(partial, ignore_errors=True)
    rng = random.Random(f"{config.seed} {voice.speaker}")
    noise_rng = np.random.default_rng([config.seed, voice.speaker])
    espeak = Espeak()
    espeak.set_voice(voice)
    done, count = 0.0, 0
    while done < seconds:
        chapter = 1 + count // UTTERANCES_PER_CHAPTER
        name = f"{voice.speaker}-{chapter}"
        folder = partial / str(chapter)
        folder.mkdir(parents=True, exist_ok=True)
        text = make_sentence(part, rng)
        x_S = resample(espeak.say(text), SAMPLING_RATE / (espeak.sampling_rate * voice.tract))
        x_S = np.pad(x_S, [int(SAMPLING_RATE * rng.uniform(0.05, 0.25)) for _ in range(2)])
        x_S = room_and_noise(x_S, config.noise_snr_db, config.reverb, noise_rng)
        x_S *= rng.uniform(0.3, 0.9) / np.abs(x_S).max()
        sf.write(folder / f"{name}-{count:04d}.flac", x_S, SAMPLING_RATE, subtype="PCM_16")
        with open(folder / f"{name}.trans.txt", "a") as f:
            f.write(f"{name}-{count:04d} {text}\n")
        done += len(x_S) / SAMPLING_RATE
        count += 1
    os.replace(partial, final)
    return done


def _make_speaker(task: tuple) -> tuple[str, Voice, float]:
    out_dir, part, voice, seconds, config = task
    return part, voice, make_speaker(out_dir, part, voice, seconds, config)


def make_corpus(config: SyntheticCorpus, corpus_dir: Path, num_jobs: int = 2) -> dict[str, dict[str, float]]:
    """Write the corpus to `corpus_dir`/LibriSpeech and return {part: {"speakers": .., "minutes": ..}}.

    Interrupted and called again it goes on with the speakers that are missing.
    """
    root = corpus_dir / "LibriSpeech"
    minutes = {"train": config.train_minutes, "dev": config.dev_minutes, "test": config.test_minutes}
    tasks = []
    for part, size in minutes.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        voices = make_voices(part, size, config.seed)
        tasks += [(root / part, part, voice, 60 * size / len(voices), config) for voice in voices]
    made = []
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    with (
        context.Pool(num_jobs, maxtasksperchild=1) as pool,
        tqdm(tasks, desc="making speech", unit="voice") as bar,
    ):
        for result in pool.imap(_make_speaker, tasks):
            made.append(result)
            bar.update()
    rows = [
        f"{voice.speaker:<5}| {voice.sex} | {part:<16} | {seconds / 60:5.2f} | espeak-ng {voice.accent}{voice.variant}"
        for part, voice, seconds in made
    ]
    (root / "SPEAKERS.TXT").write_text("\n".join([";ID  |SEX| SUBSET           |MINUTES| NAME", *rows]) + "\n")
    counts = {}
    for part in minutes:
        sizes = [seconds for p, _, seconds in made if p == part]
        counts[part] = {"speakers": len(sizes), "minutes": round(sum(sizes) / 60, 2)}
        logging.info("synthetic %s: %d speakers, %.1f minutes", part, len(sizes), sum(sizes) / 60)
    return counts
