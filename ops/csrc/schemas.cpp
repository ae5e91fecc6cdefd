// The schema of every op of the namespace `lattica`, one a statement. ops/build.py reads this file, too, when there is no
// compiler and ops/reference serves, so keep each schema in string literals of one `m.def(...)`.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lattica, m) {
  // The transducer recursion and its occupations: see ops/mutual_information.py.
  m.def("mutual_information(Tensor px, Tensor py, Tensor? boundary, bool want_grad) -> "
        "(Tensor scores, Tensor px_grad, Tensor py_grad)");

  // The bands of symbol positions that the pruned loss keeps: see ops/rnnt_prune.py.
  m.def("rnnt_prune_ranges(Tensor px_grad, Tensor py_grad, Tensor boundary, int s_range) -> Tensor");
}
