"""Checkpoints: a crash or a full disk while writing one never costs the one before; loading needs nothing but the file.

exp_dir/last.pt      everything; a run started again goes on from it
exp_dir/epoch-N.pt   model and running average after N epochs, the last few kept: what averaging over epochs needs
exp_dir/best.pt      the same, of the best validation so far

Each holds `config` (a plain dict), `tokenizer`, `model`, `average`, `epoch`, `step` and `best`; last.pt also the state
of optimizer and scheduler. All of it is plain values and tensors and loads under `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from toolkit.config import CORPORA, OPTIMIZERS, Config
from toolkit.train import averaging

FORMAT = "lattica checkpoint 1"
# Sections that make a model what it is: with another value there, a checkpoint does not fit.
MODEL_KEYS = ("model.", "tokens.", "features.num_mel_bins", "features.sampling_rate")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used; the message says which, why and what to do."""


# ----------------------------------------------------------------------------------------------------- write and read


def save_checkpoint(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write `contents` to `path`, or leave what is there untouched and raise CheckpointError."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            torch.save({"format": FORMAT, **contents}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free >> 20 if path.parent.exists() else 0
        kept = "the one before it is still there" if path.exists() else "there was none before it"
        raise CheckpointError(
            f"cannot save {path}: {error}. {free} MB are free there; {kept}. Make room or lower "
            "trainer.keep_checkpoints, then start again: the run goes on from its last checkpoint"
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this toolkit onto the CPU."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; there {_list_checkpoints(path.parent)}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this toolkit: {str(error)[:200]}") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = ", ".join(map(str, list(contents)[:5])) if isinstance(contents, dict) else type(contents).__name__
        raise CheckpointError(f"{path} is not a checkpoint of this toolkit: expected format {FORMAT!r}, found {found}")
    return contents


def keep_last_epochs(exp_dir: Path, keep: int) -> None:
    """Delete all epoch checkpoints but the last `keep`."""
    for epoch in sorted(_epochs(exp_dir))[:-keep]:
        epoch_path(exp_dir, epoch).unlink(missing_ok=True)


def epoch_path(exp_dir: str | Path, epoch: int) -> Path:
    return Path(exp_dir) / f"epoch-{epoch}.pt"


def _epochs(exp_dir: Path) -> list[int]:
    matches = (re.fullmatch(r"epoch-(\d+)\.pt", p.name) for p in exp_dir.glob("epoch-*.pt"))
    return [int(m[1]) for m in matches if m]


def _list_checkpoints(folder: Path) -> str:
    if not folder.is_dir():
        return "is no such folder"
    names = sorted(p.name for p in folder.glob("*.pt"))
    return "are " + ", ".join(names) if names else "are no checkpoints at all"


# ------------------------------------------------------------------------------------------------------------- configs


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain dict of a config, with the kind of the sections that come in kinds."""
    kinds = {}
    for group, classes in (("corpus", CORPORA), ("optim", OPTIMIZERS)):
        name = [kind for kind, cls in classes.items() if type(getattr(config, group)) is cls]
        kinds[group] = name[0] if name else ""
    return {"kinds": kinds, **dataclasses.asdict(config)}


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `config_to_dict`."""
    values = dict(values)
    kinds = values.pop("kinds")
    base = OmegaConf.structured(Config)
    for group, classes in (("corpus", CORPORA), ("optim", OPTIMIZERS)):
        if kinds[group]:
            base[group] = OmegaConf.structured(classes[kinds[group]])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(base, values))
    except OmegaConfBaseException as error:
        raise CheckpointError(f"the checkpoint's config does not fit this version of the toolkit: {error}") from error
    assert isinstance(config, Config)
    return config


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old value, new value)} wherever two config dicts differ."""
    before, after = _flatten(old), _flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {k: (before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def check_same_model(
    checkpoint: Mapping[str, Any], config: Config, tokenizer: Any, path: Path, model_keys: tuple[str, ...] = MODEL_KEYS
) -> dict[str, tuple]:
    """Raise CheckpointError naming the keys if `checkpoint` is of another model; return the changes that do no harm."""
    changes = config_changes(checkpoint["config"], config_to_dict(config))
    harmful = {k: v for k, v in changes.items() if k.startswith(model_keys) or k == "kinds.optim"}
    if harmful:
        listed = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in harmful.items())
        raise CheckpointError(
            f"{path} is of another model ({listed}). Set the values back, or choose another name= for a new run"
        )
    there, here = type(tokenizer).from_state_dict(checkpoint["tokenizer"]).tokens, tokenizer.tokens
    if there != here:
        first = next((i for i, (a, b) in enumerate(zip(there, here)) if a != b), min(len(there), len(here)))
        raise CheckpointError(
            f"{path} is of a model with other tokens: {len(there)} there, {len(here)} here, the first difference "
            f"at id {first}. Were the tokens made again? Choose another name= for a new run"
        )
    return changes


# -------------------------------------------------------------------------------------------------------------- models


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """`model.load_state_dict` with an error that a person can read."""
    own = model.state_dict()
    problems = [f"{name} is missing there" for name in own if name not in weights]
    problems += [f"{name} is not in this model" for name in weights if name not in own]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)} there, {tuple(x.shape)} here"
        for name, x in own.items()
        if name in weights and weights[name].shape != x.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} is of another model: " + "; ".join(problems[:5]) + more)
    model.load_state_dict(weights)


def init_weights(model: nn.Module, tokenizer: Any, source: str | Path) -> str:
    """Begin with the weights of another run where name and shape agree (fine-tuning); returns what was taken, for the log.

    With other tokens only the encoder's are taken: the rest counts in token ids, which mean something else there.

    Args:
      source: a checkpoint, or the folder of a run, of which the best checkpoint is taken (or else the last).

    Raises:
      CheckpointError: nothing fits, for instance because the encoder has other sizes.
    """
    path = Path(source)
    if path.is_dir():
        path = path / ("best.pt" if (path / "best.pt").is_file() else "last.pt")
    contents = load_checkpoint(path)
    weights = contents["model"] | (contents["average"]["weights"] if contents["average"]["step"] else {})
    own = model.state_dict()
    same_tokens = type(tokenizer).from_state_dict(contents["tokenizer"]).tokens == tokenizer.tokens
    usable = {name: x for name, x in weights.items() if same_tokens or name.startswith("encoder.")}
    fitting = {name: x for name, x in usable.items() if name in own and own[name].shape == x.shape}
    if not any(name.startswith("encoder.") for name in fitting):
        raise CheckpointError(f"trainer.init_from={source}: no weight of the encoder in {path} fits this model")
    model.load_state_dict(own | fitting)
    new = sorted({name.split(".")[0] for name in own if name not in fitting})
    tokens = "" if same_tokens else "; its tokens are others, so only the encoder was taken"
    return f"{len(fitting)} of {len(own)} tensors from {path}{tokens}; new: {', '.join(new) or 'none'}"


def build_model(config: Config, tokenizer: Any) -> nn.Module:
    """The model of a config: one place, so that training and decoding cannot disagree about it."""
    from toolkit.models.transducer import TransducerModel

    return TransducerModel(
        config.model, config.loss, tokenizer.vocab_size, config.features.num_mel_bins, tokenizer.blank_id
    )


def checkpoint_path(exp_dir: str | Path, checkpoint: str | int = "best") -> Path:
    """The file that "best", "last", an epoch number or a path means. `exp_dir` may itself be a checkpoint."""
    exp_dir = Path(exp_dir)
    if exp_dir.is_file():
        return exp_dir
    name = str(checkpoint)
    if name.isdigit():
        return epoch_path(exp_dir, int(name))
    return exp_dir / f"{name}.pt" if name in ("best", "last") else Path(name)


def select_weights(path: Path, contents: Mapping[str, Any], avg: int, use_averaged_model: bool) -> dict[str, Tensor]:
    """The state dict that `load_model` is asked for; see there."""
    epoch, folder = contents["epoch"], path.parent

    def other_epoch(n: int) -> dict[str, Any]:
        other_path = epoch_path(folder, n)
        if not other_path.is_file():
            raise FileNotFoundError(
                f"averaging {avg} epochs up to {path.name} needs {other_path}; there {_list_checkpoints(folder)} "
                "(trainer.keep_checkpoints says how many epochs are kept)"
            )
        other = load_checkpoint(other_path)
        changed = [k for k in config_changes(other["config"], contents["config"]) if k.startswith(MODEL_KEYS)]
        if changed:
            raise CheckpointError(f"{other_path} and {path} are of different models: {', '.join(changed)}")
        return other

    if avg > max(epoch, 1):
        raise ValueError(f"avg={avg}: expected at most {max(epoch, 1)}, the number of epochs finished in {path}")
    average = contents["average"]
    if not use_averaged_model:
        # A checkpoint from within an epoch takes part beside whole epochs; an epoch's own file is not taken twice.
        mid_epoch = contents.get("batch", 0) > 0
        others = range(epoch - avg + 1 + mid_epoch, epoch + mid_epoch) if avg > 1 else []
        return contents["model"] | averaging.mean([contents["model"], *(other_epoch(n)["model"] for n in others)])
    if average["step"] == 0:
        raise ValueError(f"{path} holds no averaged model yet: use decoding.use_averaged_model=false")
    if avg == 1 or avg == epoch:
        return contents["model"] | average["weights"]
    return contents["model"] | averaging.stretch(average, other_epoch(epoch - avg)["average"])


def load_model(
    exp_dir: str | Path,
    checkpoint: str | int = "best",
    avg: int = 1,
    use_averaged_model: bool = True,
    device: str | torch.device = "cpu",
    task: str = "recognizer",
    build: Callable[[Config, Any], nn.Module] | None = None,
) -> tuple[nn.Module, Any, Config]:
    """The model of a run, ready for decoding, with its tokenizer and config: all from the checkpoint itself.

    Args:
      exp_dir: folder of the run, or a checkpoint file.
      checkpoint: "best" (by validation), "last", the number of an epoch, or a path.
      avg: with 1 the checkpoint as it is; with more, the average of that many epochs up to it.
      use_averaged_model: take the running average kept during training (toolkit/train/averaging.py). With `avg` > 1 it
        is that of the last `avg` epochs alone, for which the checkpoint before them must still be there. If False: the
        weights of the checkpoint, or the mean of the weights of `avg` epoch checkpoints.
      task, build: what kind of model it has to be, and what makes one of a config and a tokenizer (`build_model`).

    Returns:
      (model in eval mode on `device`, tokenizer, config)

    Raises:
      FileNotFoundError: a checkpoint that is needed is not there; says which are.
      CheckpointError: a file is damaged, or does not fit.
    """
    from toolkit.data.tokenizer import Tokenizer

    path = checkpoint_path(exp_dir, checkpoint)
    contents = load_checkpoint(path)
    if contents.get("task", "recognizer") != task:
        raise CheckpointError(f"{path} is of a {contents.get('task', 'recognizer')}: expected one of a {task}")
    config = config_from_dict(contents["config"])
    tokenizer = Tokenizer.from_state_dict(contents["tokenizer"])
    model = (build or build_model)(config, tokenizer)
    load_weights(model, select_weights(path, contents, avg, use_averaged_model), path)
    return model.to(device).eval(), tokenizer, config
