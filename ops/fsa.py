"""Fsa: one automaton or a vector of them as plain tensors, with named attributes on the arcs that follow every
operation.

`arcs3` (A, 3) int32 holds source, destination and label of every arc, ordered by source; `scores` (A,) float32 (or
float64) the log-weights, where gradients flow; a RaggedShape says which arcs leave which state of which FSA. State 0
starts, the last state is final and is entered by arcs with label -1 only. States are numbered within their FSA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ops import fsa_properties
from ops.fsa_arcs import RaggedArcs
from ops.fsa_tensor import arcs_from_tensor, to_tensor
from ops.fsa_text import Dot, fsa_to_dot, fsa_to_str, guess_num_aux, parse
from ops.ragged import RaggedShape, RaggedTensor
from ops.ragged.functions import cat as ragged_cat
from ops.ragged.shape import counts_to_splits, ids_to_splits
from ops.scores import ScoreMethods

_FIELDS = {"_shape", "_arcs3", "_scores", "_tensor_attr", "_non_tensor_attr", "_cache", "_properties"}


class Fsa(ScoreMethods):
    """One FSA (shape (num_states, None)) or an FsaVec (shape (num_fsas, None, None)).

    Any attribute can be set. A tensor with one entry an arc, or a RaggedTensor with one row an arc, becomes an arc
    attribute and follows the arcs through operations (`<name>_filler` is its value for arcs without one, 0 by default);
    anything else is kept by the FSA and passed on as it is. `aux_labels` make it a transducer.
    """

    _arcs3: Tensor

    def __init__(
        self,
        tensor: Tensor | RaggedArcs | Fsa,
        aux_labels: Tensor | RaggedTensor | None = None,
        properties: int | None = None,
    ):
        """From k2's tensors: (A, 4) int32 [src, dest, label, float bits of the score], or 1-D for an FsaVec (see
        to_tensor).
        """
        if isinstance(tensor, RaggedArcs):
            tensor = tensor._fsa
        if isinstance(tensor, Fsa):
            self._set(tensor._shape, tensor.arcs3, tensor.scores)
        else:
            self._set(*arcs_from_tensor(tensor))
        if aux_labels is not None:
            self.aux_labels = aux_labels

    @staticmethod
    def from_arcs(shape: RaggedShape, arcs3: Tensor, scores: Tensor) -> Fsa:
        """From a shape (2 or 3 axes) with arcs3 (A, 3) int32 and scores (A,)."""
        ans = Fsa.__new__(Fsa)
        ans._set(shape, arcs3, scores)
        return ans

    def _set(self, shape: RaggedShape, arcs3: Tensor, scores: Tensor) -> None:
        if shape.num_axes not in (2, 3):
            raise ValueError(f"an Fsa has 2 axes and an FsaVec 3, got a shape of {shape.num_axes}")
        num_arcs = arcs3.shape[0]
        if arcs3.dtype != torch.int32 or arcs3.shape != (num_arcs, 3) or scores.shape != (num_arcs,):
            raise ValueError(
                f"an Fsa is made of int32 arcs (A, 3) and scores (A,), got {arcs3.dtype} {tuple(arcs3.shape)} "
                f"and {tuple(scores.shape)}"
            )
        if shape.numel() != num_arcs:
            raise ValueError(f"the shape has {shape.numel()} arcs, arcs has {num_arcs}")
        fields: dict[str, Any] = {
            "_shape": shape,
            "_arcs3": arcs3.contiguous(),
            "_tensor_attr": {},
            "_non_tensor_attr": {},
            "_cache": {},
            "_properties": None,
        }
        self.__dict__.update(fields)
        self.scores = scores

    # ---- attributes ----
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
            return
        self._forget(name)
        if isinstance(value, Tensor):
            if value.ndim == 0 or value.shape[0] != self.num_arcs or value.device != self.device:
                raise ValueError(
                    f"attribute {name!r}: a tensor needs one entry for each of the {self.num_arcs} arcs, on "
                    f"{self.device}; got shape {tuple(value.shape)} on {value.device}"
                )
            self._tensor_attr[name] = value
        elif isinstance(value, RaggedTensor):
            if value.dim0 != self.num_arcs or value.device != self.device:
                raise ValueError(
                    f"attribute {name!r}: a ragged tensor needs one row for each of the {self.num_arcs} arcs, on "
                    f"{self.device}; got {value.dim0} rows on {value.device}"
                )
            self._tensor_attr[name] = value
        else:
            self._non_tensor_attr[name] = value

    def __getattr__(self, name: str) -> Any:
        if name not in _FIELDS:  # they are not there yet while an Fsa is unpickled
            if name in self._tensor_attr:
                return self._tensor_attr[name]
            if name in self._non_tensor_attr:
                return self._non_tensor_attr[name]
        raise AttributeError(f"this Fsa has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            raise AttributeError(f"this Fsa has no attribute {name!r}")

    def _forget(self, name: str) -> bool:
        """Drop an attribute; whether there was one."""
        found = [attributes.pop(name, None) for attributes in (self._tensor_attr, self._non_tensor_attr)]
        return any(value is not None for value in found)

    def named_tensor_attr(self, include_scores: bool = True) -> Iterator[tuple[str, Tensor | RaggedTensor]]:
        """Name and value of every arc attribute, the scores first."""
        if include_scores:
            yield "scores", self.scores
        yield from self._tensor_attr.items()

    def named_non_tensor_attr(self) -> Iterator[tuple[str, Any]]:
        yield from self._non_tensor_attr.items()

    def get_filler(self, name: str) -> float:
        """The value of attribute `name` on arcs that come from no arc: `<name>_filler`, 0 by default."""
        return self._non_tensor_attr.get(name + "_filler", 0)

    def rename_tensor_attribute_(self, src_name: str, dest_name: str) -> Fsa:
        value = self.labels.clone() if src_name == "labels" else getattr(self, src_name)
        setattr(self, dest_name, value)
        if src_name != "labels":
            delattr(self, src_name)
        return self

    def convert_attr_to_ragged_(self, name: str, remove_eps: bool = True) -> Fsa:
        """Make an int attribute a ragged one, one entry an arc, none where it is 0 if `remove_eps`."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            splits = torch.arange(self.num_arcs + 1, dtype=torch.int32, device=self.device)
            ragged = RaggedTensor(RaggedShape(splits=[splits]), value)
            setattr(self, name, ragged.remove_values_eq(0) if remove_eps else ragged)
        return self

    @property
    def scores(self) -> Tensor:
        return self._scores

    @scores.setter
    def scores(self, value: Tensor) -> None:
        if not isinstance(value, Tensor) or value.is_complex():
            raise ValueError(f"scores must be a tensor of real numbers, got {type(value).__name__}")
        if value.shape != (self.num_arcs,) or value.device != self.device:
            raise ValueError(
                f"scores must have shape ({self.num_arcs},) on {self.device}, "
                f"got {tuple(value.shape)} on {value.device}"
            )
        self._scores = value if value.dtype in (torch.float32, torch.float64) else value.float()

    @property
    def labels(self) -> Tensor:
        """(A,) int32, a view: writing into it changes the FSA."""
        return self._arcs3[:, 2]

    @labels.setter
    def labels(self, value: Tensor) -> None:
        if value.shape != (self.num_arcs,):
            raise ValueError(f"labels must have shape ({self.num_arcs},), got {tuple(value.shape)}")
        if value.is_floating_point() or (value.dtype == torch.int64 and not torch.equal(value.int().long(), value)):
            raise ValueError(f"labels must be int32 numbers, got {value.dtype}: {value.tolist()[:20]}")
        self._arcs3 = torch.cat([self._arcs3[:, :2], value.to(self._arcs3)[:, None]], dim=1)

    # ---- what it is ----
    @property
    def arcs(self) -> RaggedArcs:
        return RaggedArcs(self)

    @property
    def arcs3(self) -> Tensor:
        return self._arcs3

    @property
    def num_arcs(self) -> int:
        return self._arcs3.shape[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(num_states, None), or (num_fsas, None, None)."""
        return (self._shape.dim0, *[None] * (self._shape.num_axes - 1))

    @property
    def device(self) -> torch.device:
        return self._arcs3.device

    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def grad(self) -> Tensor | None:
        return self.scores.grad

    @property
    def requires_grad(self) -> bool:
        return self.scores.requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self.scores.requires_grad_(flag)

    def requires_grad_(self, requires_grad: bool) -> Fsa:
        self.scores.requires_grad_(requires_grad)
        return self

    def is_vec(self) -> bool:
        return self._shape.num_axes == 3

    def splits(self) -> tuple[Tensor, Tensor]:
        """(fsa_splits, state_splits), a single FSA as a vector of one."""
        if self.is_vec():
            return self._shape.row_splits(1), self._shape.row_splits(2)
        both = torch.tensor([0, self._shape.dim0], dtype=torch.int32, device=self.device)
        return both, self._shape.row_splits(1)

    def as_vec(self) -> Fsa:
        """Self if it is an FsaVec, else a vector of one that shares the tensors."""
        return self if self.is_vec() else self._with_shape(RaggedShape(splits=self.splits()))

    def _with_shape(self, shape: RaggedShape) -> Fsa:
        ans = Fsa.from_arcs(shape, self._arcs3, self.scores)
        ans._tensor_attr.update(self._tensor_attr)
        ans._non_tensor_attr.update(self._non_tensor_attr)
        return ans

    @property
    def properties(self) -> int:
        """The bits of fsa_properties that all FSAs of the vector have; found again when labels are written into."""

        def find() -> int:
            return fsa_properties.intersect(fsa_properties.compute(self._arcs3, *self.splits()))

        self._properties = self._kept("properties", find)
        return self._properties

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """make(), remembered until arcs change."""
        version = id(self._arcs3), -1 if self._arcs3.is_inference() else self._arcs3._version
        if self._cache.get("version") != version:
            self._cache = {"version": version}
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    @property
    def properties_str(self) -> str:
        return fsa_properties.to_str(self.properties)

    # ---- copies ----
    def to(self, device: torch.device | str) -> Fsa:
        if torch.device(device) == self.device:
            return self
        return self._map(lambda x: x.to(device))

    def clone(self) -> Fsa:
        return self._map(lambda x: x.clone())

    def detach(self) -> Fsa:
        return self._map(lambda x: x.detach())

    def _map(self, f: Any) -> Fsa:
        arcs3 = f(self._arcs3)
        ans = Fsa.from_arcs(self._shape.to(arcs3.device), arcs3, f(self.scores))
        ans._tensor_attr.update((name, f(value)) for name, value in self._tensor_attr.items())
        ans._non_tensor_attr.update(self._non_tensor_attr)
        return ans

    def __getitem__(self, i: int) -> Fsa:
        """The i-th FSA of a vector."""
        if not self.is_vec():
            raise ValueError("only an FsaVec can be indexed; this is a single FSA")
        if not -self._shape.dim0 <= i < self._shape.dim0:
            raise IndexError(f"FSA {i} of {self._shape.dim0}")
        i %= self._shape.dim0
        fsa_splits, state_splits = self.splits()
        s0, s1 = fsa_splits[i : i + 2].tolist()
        a0, a1 = state_splits[s0].item(), state_splits[s1].item()
        ans = Fsa.from_arcs(
            RaggedShape(splits=[state_splits[s0 : s1 + 1] - a0]), self._arcs3[a0:a1].clone(), self.scores[a0:a1]
        )
        ans._tensor_attr.update((name, value[a0:a1]) for name, value in self._tensor_attr.items())
        ans._non_tensor_attr.update(self._non_tensor_attr)
        return ans

    def __len__(self) -> int:
        return self._shape.dim0

    def __iter__(self) -> Iterator[Fsa]:
        return (self[i] for i in range(self._shape.dim0))

    # ---- text, dictionaries, pickles ----
    @classmethod
    def from_str(
        cls,
        s: str,
        acceptor: bool | None = None,
        num_aux_labels: int | None = None,
        aux_label_names: Sequence[str] | None = None,
        ragged_label_names: Sequence[str] = (),
        openfst: bool = False,
    ) -> Fsa:
        """Read an FSA from text; the format is explained in fsa_text.

        Args:
          acceptor: True for no aux labels, False for one. Default: what the longest line has room for.
          num_aux_labels: how many int labels follow the label.
          aux_label_names: their names; default aux_labels, aux_labels2, ...
          ragged_label_names: names of labels in brackets that follow those.
          openfst: OpenFst's format: costs, several final states.
        """
        if num_aux_labels is None:
            if aux_label_names is not None:
                num_aux_labels = len(aux_label_names)
            elif acceptor is not None:
                num_aux_labels = 0 if acceptor else 1
            else:
                num_aux_labels = guess_num_aux(s, len(ragged_label_names), openfst)
        if aux_label_names is None:
            aux_label_names = [f"aux_labels{i + 1 if i else ''}" for i in range(num_aux_labels)]
        if len(aux_label_names) != num_aux_labels:
            raise ValueError(
                f"num_aux_labels is {num_aux_labels}, but aux_label_names has {len(aux_label_names)} names"
            )
        parsed = parse(s, num_aux_labels, len(ragged_label_names), openfst)
        arcs3 = torch.tensor(parsed.arcs, dtype=torch.int32).reshape(-1, 3)
        shape = RaggedShape(splits=[ids_to_splits(arcs3[:, 0], parsed.num_states)])
        ans = cls.from_arcs(shape, arcs3, torch.tensor(parsed.scores))
        for name, values in zip(aux_label_names, parsed.aux):
            setattr(ans, name, torch.tensor(values, dtype=torch.int32))
        for name, rows in zip(ragged_label_names, parsed.ragged):
            splits = counts_to_splits(torch.tensor([len(r) for r in rows], dtype=torch.int64))
            flat = torch.tensor([x for r in rows for x in r], dtype=torch.int32)
            setattr(ans, name, RaggedTensor(RaggedShape(splits=[splits]), flat))
        return ans

    @classmethod
    def from_openfst(
        cls,
        s: str,
        acceptor: bool | None = None,
        num_aux_labels: int | None = None,
        aux_label_names: Sequence[str] | None = None,
        ragged_label_names: Sequence[str] = (),
    ) -> Fsa:
        return cls.from_str(s, acceptor, num_aux_labels, aux_label_names, ragged_label_names, openfst=True)

    @classmethod
    def from_fsas(cls, fsas: Sequence[Fsa]) -> Fsa:
        """An FsaVec of the FSAs (or FsaVecs, one after another), with the attributes that all of them have."""
        if not fsas or not all(isinstance(f, Fsa) for f in fsas):
            raise ValueError(f"from_fsas takes a list of one or more FSAs, got {[type(f).__name__ for f in fsas]}")
        if len({f.device for f in fsas}) > 1:
            raise ValueError(f"from_fsas: the FSAs are on different devices: {sorted({str(f.device) for f in fsas})}")
        splits = [f.splits() for f in fsas]
        layers = [counts_to_splits(torch.cat([s[i][1:] - s[i][:-1] for s in splits])) for i in (0, 1)]
        ans = cls.from_arcs(
            RaggedShape(splits=layers), torch.cat([f.arcs3 for f in fsas]), torch.cat([f.scores for f in fsas])
        )
        for name in fsas[0]._tensor_attr:
            if all(name in f._tensor_attr for f in fsas):
                values: list[Any] = [f._tensor_attr[name] for f in fsas]
                if any(isinstance(v, RaggedTensor) for v in values):
                    copies = [f._with_shape(f._shape).convert_attr_to_ragged_(name) for f in fsas]
                    setattr(ans, name, ragged_cat([c._tensor_attr[name] for c in copies]))
                else:
                    setattr(ans, name, torch.cat(values))
        for f in reversed(fsas):
            ans._non_tensor_attr.update(f._non_tensor_attr)
        return ans

    def as_dict(self) -> dict[str, Any]:
        """Tensors and plain values by name; `from_dict` reads it back, `torch.save` keeps it."""
        d: dict[str, Any] = {"arcs": to_tensor(self)}
        if not self.is_vec() and arcs_from_tensor(d["arcs"])[0].dim0 != self._shape.dim0:
            d["num_states"] = self._shape.dim0  # states that the arcs do not tell of
        if self.scores.dtype != torch.float32:
            d["scores"] = self.scores.detach()
        return {**d, **self._tensor_attr, **self._non_tensor_attr}

    @classmethod
    def from_dict(cls, dict_in: dict[str, Any]) -> Fsa:
        if "arcs" not in dict_in:
            raise ValueError(f"from_dict: there are no 'arcs' in it, only {sorted(dict_in)}")
        d = dict(dict_in)
        ans = cls.from_arcs(*arcs_from_tensor(d.pop("arcs"), d.pop("num_states", None)))
        for name, value in d.items():
            setattr(ans, name, value)
        return ans

    def __getstate__(self) -> dict[str, Any]:
        return {
            "shape": self._shape,
            "arcs": self._arcs3,
            "scores": self.scores,
            "tensors": self._tensor_attr,
            "others": self._non_tensor_attr,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(state["shape"], state["arcs"], state["scores"])
        self._tensor_attr.update(state["tensors"])
        self._non_tensor_attr.update(state["others"])

    def _label_attrs(self) -> tuple[list[Tensor], list[RaggedTensor]]:
        named = sorted(self._tensor_attr.items(), key=lambda item: item[0])
        aux = [v for _, v in named if isinstance(v, Tensor) and v.dtype == torch.int32 and v.ndim == 1]
        return aux, [v for _, v in named if isinstance(v, RaggedTensor) and v.dtype == torch.int32 and v.num_axes == 2]

    def __str__(self) -> str:
        """The arcs with all int labels, the properties and every attribute."""
        if self.is_vec():
            text = "k2.FsaVec: \n" + "".join(f"FsaVec[{i}]: {fsa_to_str(f, False, *f._label_attrs())}"
                                             for i, f in enumerate(self))  # fmt: skip
        else:
            text = "k2.Fsa: " + fsa_to_str(self, False, *self._label_attrs())
        text += f'properties_str = "{self.properties_str}".'
        for name, value in [*self._tensor_attr.items(), *self._non_tensor_attr.items()]:
            text += f"\n{name}: {value}"
        return text

    __repr__ = __str__

    def draw(self, filename: str | None, title: str | None = None, zoom: float = 1.0) -> Dot:
        """Draw a single FSA into a .svg, .png, .pdf (with graphviz) or .dot file; None: only return the drawing."""
        dot = fsa_to_dot(self, title or "", zoom)
        if filename is not None:
            dot.save(filename)
        return dot

    # ---- simple changes ----
    def set_scores_stochastic_(self, scores: Tensor) -> None:
        """Set the scores so that the probabilities of the arcs leaving each state sum to one (a log-softmax)."""
        self.scores = RaggedTensor(self._shape, scores).normalize(use_log=True).values

    def invert_(self) -> Fsa:
        """Swap labels and aux_labels in place. For ragged aux_labels use `k2.invert`, which adds states."""
        aux = self._tensor_attr.get("aux_labels")
        if aux is None:
            raise ValueError("invert_: this FSA has no aux_labels, it is an acceptor")
        if isinstance(aux, RaggedTensor):
            raise ValueError("invert_: aux_labels are ragged; use k2.invert, which makes a new FSA")
        old = self.labels.clone()
        self.labels, self.aux_labels = aux, old
        for a, b in (("labels_sym", "aux_labels_sym"), ("symbols", "aux_symbols")):
            pair = self._non_tensor_attr.pop(a, None), self._non_tensor_attr.pop(b, None)
            self._non_tensor_attr.update({k: v for k, v in ((b, pair[0]), (a, pair[1])) if v is not None})
        return self

    def invert(self) -> Fsa:
        return self.clone().invert_()


def to_str(fsa: Fsa, openfst: bool = False) -> str:
    """The text of an FSA with all its int labels, or of each FSA of a vector; `Fsa.from_str` reads it back."""
    if fsa.is_vec():
        return "".join(f"fsa {i}:\n{to_str(f, openfst)}" for i, f in enumerate(fsa))
    return fsa_to_str(fsa, openfst, *fsa._label_attrs())


def to_str_simple(fsa: Fsa, openfst: bool = False) -> str:
    """As to_str with only `aux_labels` of the attributes."""
    if fsa.is_vec():
        return "".join(f"fsa {i}:\n{to_str_simple(f, openfst)}" for i, f in enumerate(fsa))
    aux = fsa._tensor_attr.get("aux_labels")
    return fsa_to_str(
        fsa, openfst, [aux] if isinstance(aux, Tensor) else [], [aux] if isinstance(aux, RaggedTensor) else []
    )


def create_fsa_vec(fsas: Sequence[Fsa]) -> Fsa:
    """k2's name for Fsa.from_fsas."""
    return Fsa.from_fsas(fsas)


def to_dot(fsa: Fsa, title: str | None = None, zoom: float = 1.0) -> Dot:
    return fsa_to_dot(fsa, title or "", zoom)


torch.serialization.add_safe_globals([Fsa])
