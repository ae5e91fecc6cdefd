// The instance of fsa_dense_batch.h that tests run; on the CPU an utterance a thread (fsa_dense.h) is faster.
#include "../fsa_dense_batch_op.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_intersect_dense_batch", TORCH_BOX(&Instance<&fsa_intersect_dense_batch>::run));
  m.impl("fsa_intersect_dense_batch_online", TORCH_BOX(&Instance<&fsa_intersect_dense_batch_online>::run));
}

}  // namespace
}  // namespace lattica
