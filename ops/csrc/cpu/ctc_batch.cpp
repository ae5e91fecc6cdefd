// The instance of ctc_batch.h that tests run; on the CPU the recursions of ctc.h are the faster ones.
#include "../ctc_batch.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("fsa_ctc_read_batch", TORCH_BOX(&Instance<&fsa_ctc_read_batch>::run));
  m.impl("fsa_ctc_loss_batch", TORCH_BOX(&Instance<&fsa_ctc_loss_batch>::run));
  m.impl("fsa_ctc_loss_grad_batch", TORCH_BOX(&Instance<&fsa_ctc_loss_grad_batch>::run));
  m.impl("fsa_ctc_align_batch", TORCH_BOX(&Instance<&fsa_ctc_align_batch>::run));
}

}  // namespace
}  // namespace lattica
