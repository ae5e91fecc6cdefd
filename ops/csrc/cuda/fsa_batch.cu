// The instance of fsa_batch.h for GPUs, also under the names of the CPU's own algorithms.
#include "../fsa_batch.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) {
  m.impl("fsa_shortest_path", TORCH_BOX(&Instance<&fsa_shortest_path_batch>::run));
  m.impl("fsa_shortest_path_batch", TORCH_BOX(&Instance<&fsa_shortest_path_batch>::run));
  m.impl("fsa_random_paths", TORCH_BOX(&Instance<&fsa_random_paths_batch>::run));
  m.impl("fsa_random_paths_batch", TORCH_BOX(&Instance<&fsa_random_paths_batch>::run));
  m.impl("fsa_connect", TORCH_BOX(&Instance<&fsa_connect_batch>::run));
  m.impl("fsa_connect_batch", TORCH_BOX(&Instance<&fsa_connect_batch>::run));
}

}  // namespace
}  // namespace lattica
