// A block a stream, one launch a frame; the algorithm is in rnnt_decode_batch.h.
#include "../rnnt_decode_batch_op.h"
#include "launch.h"

namespace lattica {
namespace {

Tensor decode_rnnt_batch_scratch_cuda(const Tensor& like, int64_t streams, int64_t vocab_size, int64_t max_contexts, int64_t max_states,
                                      int64_t candidates, int64_t most_words) {
  const DeviceOf device(like);
  Tensor memory = rnnt_batch_scratch(CudaBackend{device.stream}, like, streams, {vocab_size, max_contexts, max_states, candidates}, most_words);
  check_launch("decode_rnnt_batch_scratch");
  return memory;
}

Tensors9 decode_rnnt_batch_advance_cuda(const std::vector<Tensor>& graphs, const std::vector<Tensor>& states, const Tensor& rows,
                                        const Tensor& log_probs, const Tensor& scratch, int64_t n, int64_t num_context_ids, double beam,
                                        int64_t max_states, int64_t max_contexts, bool final_frame, int64_t candidates,
                                        int64_t arc_capacity, int64_t most_graph_states, int64_t block_size) {
  STD_TORCH_CHECK(log_probs.dim() == 2, "decode_rnnt_batch_advance: log_probs must be (rows, V)");
  const DeviceOf device(log_probs);
  const RnntSearch search{log_probs.size(1), num_context_ids, beam, max_states, max_contexts, final_frame};
  Tensors9 out = rnnt_batch_advance_op(CudaBackend{device.stream}, graphs, states, rows, log_probs, scratch, n, search, candidates,
                                       arc_capacity, most_graph_states, block_size);
  check_launch("decode_rnnt_batch_advance");
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CUDA, m) {
  m.impl("decode_rnnt_batch_scratch", TORCH_BOX(&decode_rnnt_batch_scratch_cuda));
  m.impl("decode_rnnt_batch_advance", TORCH_BOX(&decode_rnnt_batch_advance_cuda));
}

}  // namespace
}  // namespace lattica
