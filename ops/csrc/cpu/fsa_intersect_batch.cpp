// The instance of fsa_intersect_batch.h that tests run; on the CPU fsa_intersect.h is faster, and knows epsilons.
#include "../fsa_intersect_batch.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_intersect_states", TORCH_BOX(&Instance<&fsa_intersect_states>::run));
  m.impl("fsa_intersect_arcs", TORCH_BOX(&Instance<&fsa_intersect_arcs>::run));
}

}  // namespace
}  // namespace lattica
