"""What every section of the config is built on: immutable, checked on construction, unknown keys refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


class Section:
    """Base of all config sections: validated by `check`, then sealed.

    Not `dataclass(frozen=True)`, because OmegaConf makes frozen dataclasses read-only, and then no yaml can fill them.
    """

    def __post_init__(self) -> None:
        self.check()
        object.__setattr__(self, "_sealed", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {f.name for f in dataclasses.fields(self)}:  # type: ignore[arg-type]
            raise AttributeError(
                f"config: {type(self).__name__} has no key {name!r}"
            )  # e.g. +name=value on a command line
        if getattr(self, "_sealed", False):
            raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} cannot be changed after construction")
        object.__setattr__(self, name, value)

    def check(self) -> None:
        """Raise ValueError naming the key whose value makes no sense."""


def require(ok: bool, key: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"config: {key}={value!r}: expected {expected}")


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, key, value, "one of " + ", ".join(choices))


def numbers(value: Any) -> list[float]:
    """A setting that may be one number or a list of them, as a list."""
    return [float(x) for x in (value if isinstance(value, (list, tuple)) else [value])]


@dataclass
class Schedule(Section):
    """A weight over the run: linear from `initial` to `final` over the first `warmup` (a fraction of the run), then flat.

    Fractions, not steps: a hard-coded number of warm-up steps is silently wrong for a small corpus.
    """

    initial: float = 1.0
    final: float = 1.0
    warmup: float = 0.0

    def check(self) -> None:
        require(0.0 <= self.warmup <= 1.0, "warmup", self.warmup, "a fraction of the run in [0, 1]")

    def __call__(self, progress: float) -> float:
        """The weight at `progress`, the fraction of the run that is done."""
        if progress >= self.warmup:
            return self.final
        return self.initial + (self.final - self.initial) * progress / self.warmup

    @property
    def used(self) -> bool:
        return self.initial != 0.0 or self.final != 0.0
