// The instance of fsa_levels.h that tests run; on the CPU the recursions of fsa_scores.h are the faster ones.
#include "../fsa_levels.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_levels", TORCH_BOX(&Instance<&fsa_levels>::run));
  m.impl("fsa_state_scores_by_level", TORCH_BOX(&Instance<&fsa_state_scores_by_level>::run));
  m.impl("fsa_state_scores_by_level_grad", TORCH_BOX(&Instance<&fsa_state_scores_by_level_grad>::run));
}

}  // namespace
}  // namespace lattica
