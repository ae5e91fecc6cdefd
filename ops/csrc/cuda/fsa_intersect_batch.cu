// The instance of fsa_intersect_batch.h for GPUs.
#include "../fsa_intersect_batch.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) {
  m.impl("fsa_intersect_states", TORCH_BOX(&Instance<&fsa_intersect_states>::run));
  m.impl("fsa_intersect_arcs", TORCH_BOX(&Instance<&fsa_intersect_arcs>::run));
}

}  // namespace
}  // namespace lattica
