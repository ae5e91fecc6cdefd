// The instance of fsa_dense_batch.h for GPUs.
#include "../fsa_dense_batch_op.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) {
  m.impl("fsa_intersect_dense_batch", TORCH_BOX(&Instance<&fsa_intersect_dense_batch>::run));
  m.impl("fsa_intersect_dense_batch_online", TORCH_BOX(&Instance<&fsa_intersect_dense_batch_online>::run));
}

}  // namespace
}  // namespace lattica
