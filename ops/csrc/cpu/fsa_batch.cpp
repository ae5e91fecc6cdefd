// The instance of fsa_batch.h that tests run; on the CPU the algorithms of fsa_scores.h and fsa_structure.h are the faster ones.
#include "../fsa_batch.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_shortest_path_batch", TORCH_BOX(&Instance<&fsa_shortest_path_batch>::run));
  m.impl("fsa_random_paths_batch", TORCH_BOX(&Instance<&fsa_random_paths_batch>::run));
  m.impl("fsa_connect_batch", TORCH_BOX(&Instance<&fsa_connect_batch>::run));
}

}  // namespace
}  // namespace lattica
