// The instance of fsa_levels.h for GPUs.
#include "../fsa_levels.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) {
  m.impl("fsa_levels", TORCH_BOX(&Instance<&fsa_levels>::run));
  m.impl("fsa_state_scores_by_level", TORCH_BOX(&Instance<&fsa_state_scores_by_level>::run));
  m.impl("fsa_state_scores_by_level_grad", TORCH_BOX(&Instance<&fsa_state_scores_by_level_grad>::run));
}

}  // namespace
}  // namespace lattica
