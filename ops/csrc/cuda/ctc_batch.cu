// The instance of ctc_batch.h for GPUs, also under the names of the recursions that the CPU has.
#include "../ctc_batch.h"

namespace lattica {
namespace {

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) {
  m.impl("fsa_ctc_read", TORCH_BOX(&Instance<&fsa_ctc_read_batch>::run));
  m.impl("fsa_ctc_read_batch", TORCH_BOX(&Instance<&fsa_ctc_read_batch>::run));
  m.impl("fsa_ctc_loss", TORCH_BOX(&Instance<&fsa_ctc_loss_batch>::run));
  m.impl("fsa_ctc_loss_batch", TORCH_BOX(&Instance<&fsa_ctc_loss_batch>::run));
  m.impl("fsa_ctc_loss_grad", TORCH_BOX(&Instance<&fsa_ctc_loss_grad_batch>::run));
  m.impl("fsa_ctc_loss_grad_batch", TORCH_BOX(&Instance<&fsa_ctc_loss_grad_batch>::run));
  m.impl("fsa_ctc_align", TORCH_BOX(&Instance<&fsa_ctc_align_batch>::run));
  m.impl("fsa_ctc_align_batch", TORCH_BOX(&Instance<&fsa_ctc_align_batch>::run));
}

}  // namespace
}  // namespace lattica
