"""The transducer recursion against its reference twin and against a sum over all paths."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import ops
from ops import build, reference


def lattice(
    N: int,
    S: int,
    T: int,
    modified: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    random_bounds: bool = True,
):
    g = torch.Generator().manual_seed(seed)
    px = torch.randn(N, S, T + (not modified), generator=g, dtype=dtype) * 3
    py = torch.randn(N, S + 1, T, generator=g, dtype=dtype) * 3
    if not random_bounds:
        return px, py, None
    s = torch.randint(0, S + 1, (N, 2), generator=g).sort(1).values
    t = torch.randint(0, T + 1, (N, 2), generator=g).sort(1).values
    boundary = torch.stack([s[:, 0], t[:, 0], s[:, 1], t[:, 1]], 1)
    boundary[0] = torch.tensor([0, 0, S, T])
    return px, py, boundary


def all_paths(px: torch.Tensor, py: torch.Tensor) -> list[float]:
    """Score of each path through one utterance's lattice."""
    S, T = px.shape[0], py.shape[1]
    step = 0 if px.shape[1] == T + 1 else 1

    def extend(s: int, t: int, score: float) -> list[float]:
        found = [score] if (s, t) == (S, T) else []
        if t < T:
            found += extend(s, t + 1, score + py[s, t].item())
        if s < S and t + step <= T:
            found += extend(s + 1, t + step, score + px[s, t].item())
        return found

    return extend(0, 0, 0.0)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize(("S", "T"), [(0, 0), (0, 3), (1, 1), (2, 4), (4, 4), (3, 1), (2, 0)])
def test_sum_over_all_paths(S: int, T: int, modified: bool, device: torch.device) -> None:
    px, py, _ = lattice(2, S, T, modified, random_bounds=False)
    scores = ops.mutual_information_recursion(px.to(device), py.to(device)).cpu()
    for n in range(2):
        paths = all_paths(px[n], py[n])
        expected = torch.tensor(paths, dtype=torch.float64).logsumexp(0) if paths else torch.tensor(-math.inf)
        assert scores[n].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize(("S", "T"), [(5, 9), (17, 40), (40, 17), (33, 33), (1, 50)])
def test_equals_reference(S: int, T: int, modified: bool, dtype: torch.dtype, device: torch.device) -> None:
    px, py, boundary = lattice(5, S, T, modified, seed=S, dtype=dtype)
    expected = reference.mutual_information(px.double(), py.double(), boundary, True)
    scores, (px_grad, py_grad) = ops.mutual_information_recursion(
        px.to(device), py.to(device), boundary.to(device), return_grad=True
    )
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert scores.dtype == px_grad.dtype == py_grad.dtype == dtype
    torch.testing.assert_close(scores.cpu().double(), expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(px_grad.cpu().double(), expected[1], rtol=0, atol=tolerance)
    torch.testing.assert_close(py_grad.cpu().double(), expected[2], rtol=0, atol=tolerance)


@pytest.mark.parametrize("modified", [False, True])
def test_gradient_is_return_grad_and_passes_gradcheck(modified: bool, device: torch.device) -> None:
    px, py, boundary = lattice(3, 3, 5, modified, seed=1)
    boundary[:, 3] = torch.maximum(boundary[:, 3], boundary[:, 1] + boundary[:, 2] - boundary[:, 0]).clamp(max=5)
    boundary = boundary[(boundary[:, 3] - boundary[:, 1]) >= (boundary[:, 2] - boundary[:, 0])]  # finite scores only
    px, py = px[: len(boundary)].to(device).requires_grad_(), py[: len(boundary)].to(device).requires_grad_()
    scores, (px_grad, py_grad) = ops.mutual_information_recursion(px, py, boundary, return_grad=True)
    scores.sum().backward()
    torch.testing.assert_close(px.grad, px_grad)
    torch.testing.assert_close(py.grad, py_grad)
    assert not px_grad.requires_grad
    assert torch.autograd.gradcheck(lambda x, y: ops.mutual_information_recursion(x, y, boundary), (px, py))


@pytest.mark.parametrize("modified", [False, True])
def test_opcheck(modified: bool, device: torch.device) -> None:
    build.load()
    px, py, boundary = (x.to(device) for x in lattice(2, 3, 4, modified))
    for want_grad in (True, False):
        args = (px.clone().requires_grad_(want_grad), py.clone().requires_grad_(want_grad), boundary, want_grad)
        torch.library.opcheck(torch.ops.lattica.mutual_information.default, args)


def test_batch_equals_one_by_one_and_any_strides() -> None:
    px, py, boundary = lattice(6, 7, 11, False, dtype=torch.float32)
    together = ops.mutual_information_recursion(px, py, boundary, return_grad=True)
    strided = ops.mutual_information_recursion(
        px.transpose(1, 2).contiguous().transpose(1, 2),
        py.transpose(0, 2).contiguous().transpose(0, 2),
        boundary,
        return_grad=True,
    )
    for n in range(6):
        s0, t0, s1, t1 = boundary[n].tolist()
        alone = ops.mutual_information_recursion(
            px[n : n + 1, s0:s1, t0 : t1 + 1], py[n : n + 1, s0 : s1 + 1, t0:t1], return_grad=True
        )
        assert together[0][n] == alone[0][0] == strided[0][n]
        assert torch.equal(together[1][0][n, s0:s1, t0 : t1 + 1], alone[1][0][0])
        assert torch.equal(together[1][1][n, s0 : s1 + 1, t0:t1], alone[1][1][0])
        assert torch.equal(together[1][0][n], strided[1][0][n])


def test_occupations_of_every_front_sum_to_one() -> None:
    """Exactly one arc of a path crosses from front s + t = d to the next, in float32 and for long utterances, too."""
    px, py, _ = lattice(2, 120, 700, False, dtype=torch.float32, random_bounds=False)
    px[:, :, -1] = -math.inf
    _, (px_grad, py_grad) = ops.mutual_information_recursion(px, py, return_grad=True)
    fronts = torch.zeros(2, 120 + 700)
    s, t = torch.arange(120)[:, None], torch.arange(701)
    d = (s + t).expand(120, 701).reshape(-1).clamp(max=819)
    fronts.index_add_(1, d, px_grad.reshape(2, -1))
    s, t = torch.arange(121)[:, None], torch.arange(700)
    fronts.index_add_(1, (s + t).reshape(-1), py_grad.reshape(2, -1))
    torch.testing.assert_close(fronts, torch.ones_like(fronts), rtol=0, atol=1e-3)


def test_minus_inf_and_nan_stay_where_they_are(device: torch.device) -> None:
    px, py, _ = lattice(4, 2, 3, False, dtype=torch.float32, random_bounds=False)
    px[0], py[1] = -math.inf, -math.inf  # no symbol can be emitted; no blank can
    px[2, 0, 0] = math.nan
    px, py = px.to(device).requires_grad_(), py.to(device).requires_grad_()
    scores = ops.mutual_information_recursion(px, py)
    assert scores[0] == scores[1] == -math.inf
    assert scores[2].isnan()
    assert scores[3].isfinite()
    scores[[0, 1, 3]].sum().backward()
    assert (px.grad[:2] == 0).all() and (py.grad[:2] == 0).all()
    assert px.grad[3].isfinite().all() and px.grad[3].sum() == pytest.approx(2, abs=1e-5)


def test_modified_with_fewer_frames_than_symbols_has_no_path(device: torch.device) -> None:
    px, py, _ = lattice(2, 5, 3, True, random_bounds=False)
    scores, (px_grad, py_grad) = ops.mutual_information_recursion(px.to(device), py.to(device), return_grad=True)
    assert (scores == -math.inf).all() and (px_grad == 0).all() and (py_grad == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    px, py, _ = lattice(2, 4, 6, False, dtype=torch.bfloat16, random_bounds=False)
    scores = ops.mutual_information_recursion(px, py)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, ops.mutual_information_recursion(px.float(), py.float()))


def test_empty_batch() -> None:
    scores, (px_grad, _) = ops.mutual_information_recursion(
        torch.empty(0, 2, 5), torch.empty(0, 3, 4), return_grad=True
    )
    assert scores.shape == (0,) and px_grad.shape == (0, 2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda px, py, b: (px[:, :1], py, b), r"px must be \(N, S, T \+ 1\)"),
        (lambda px, py, b: (px.float(), py, b), "one floating dtype"),
        (lambda px, py, b: (px.long(), py.long(), b), "one floating dtype"),
        (lambda px, py, b: (px, py, b[:, :3]), r"boundary must be int64 of shape \(2, 4\)"),
        (lambda px, py, b: (px, py, b.int()), "boundary must be int64"),
        (lambda px, py, b: (px, py, b + 1), r"boundary\[0\] = "),
        (lambda px, py, b: (px, py, b - 1), r"0 <= s_begin <= s_end"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.mutual_information_recursion(*change(*lattice(2, 3, 4, False)))


def test_joint_recursion_breaks_the_score_down() -> None:
    px, py, boundary = lattice(3, 4, 6, False)
    px[:, :, -1] = -math.inf
    boundary[:] = torch.tensor([[0, 0, 4, 6], [0, 0, 3, 5], [0, 0, 2, 6]])
    px[1, :, 5] = -math.inf
    extra_x, extra_y = torch.randn_like(px), torch.randn_like(py)
    leaves = [x.requires_grad_() for x in (px, extra_x, py, extra_y)]
    parts = ops.joint_mutual_information_recursion(leaves[:2], leaves[2:], boundary)
    total, (px_grad, py_grad) = ops.mutual_information_recursion(px + extra_x, py + extra_y, boundary, return_grad=True)
    torch.testing.assert_close(parts.sum(0), total)
    expected = (px_grad * extra_x.nan_to_num()).sum((1, 2)) + (py_grad * extra_y).sum((1, 2))
    torch.testing.assert_close(parts[1], expected)
    parts[1].sum().backward()
    torch.testing.assert_close(extra_x.grad, px_grad)
    assert not px.grad.any()
    with pytest.raises(ValueError, match="as many tensors"):
        ops.joint_mutual_information_recursion([px], [])


def test_torch_compile() -> None:
    build.load()
    px, py, boundary = lattice(2, 3, 4, False)
    px.requires_grad_()

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.mutual_information_recursion(x * 2, py, boundary).sum()

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(px), f(px))
    torch.testing.assert_close(torch.autograd.grad(compiled(px), px), torch.autograd.grad(f(px), px))


@pytest.fixture(scope="module")
def kernel_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernel's source, each CUDA thread a CPU thread."""
    cxx = shutil.which("g++")
    if cxx is None:
        pytest.skip("no g++")
    library = tmp_path_factory.mktemp("kernel") / "kernel.so"
    source = Path(__file__).with_name("cuda_kernel_on_cpu.cpp")
    subprocess.run(
        [cxx, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-I{build.CSRC}", str(source), "-o", str(library)],
        check=True,
    )
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize(("S", "T"), [(0, 4), (3, 6), (6, 3), (9, 12)])
def test_cuda_kernel_on_cpu_threads(kernel_on_cpu: ctypes.CDLL, S: int, T: int, modified: bool) -> None:
    """The logic of cuda/mutual_information.cuh without a GPU; 4 threads, so that rows are shared and strided."""
    px, py, boundary = lattice(4, S, T, modified, seed=S)
    px, py = px.transpose(1, 2).contiguous().transpose(1, 2), py.contiguous()
    scores, px_grad, py_grad = (
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(px.shape).double(),
        torch.zeros(py.shape).double(),
    )

    def address(x: torch.Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(x.data_ptr())

    strides = (ctypes.c_int64 * 6)(*px.stride(), *py.stride())
    sizes = (ctypes.c_int64 * 4)(4, S, T, modified)
    kernel_on_cpu.run(
        address(px), address(py), strides, address(boundary), sizes, address(scores), address(px_grad), address(py_grad)
    )
    expected = reference.mutual_information(px, py, boundary, True)
    torch.testing.assert_close(scores, expected[0])
    torch.testing.assert_close(px_grad, expected[1])
    torch.testing.assert_close(py_grad, expected[2])
