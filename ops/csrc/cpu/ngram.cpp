// n-gram models: reading ARPA files (arpa.h), scoring words (ngram.h), KenLM's binaries (kenlm.h).
#include "../ngram.h"

#include <memory>
#include <string>

#include "../arpa.h"
#include "../fsa_torch.h"
#include "../kenlm.h"

namespace lattica {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ngram_parse_arpa_cpu(const Tensor& text, std::string name) {
  STD_TORCH_CHECK(text.dim() == 1 && text.scalar_type() == ScalarType::Byte && text.is_contiguous(), "text must be contiguous bytes");
  const CpuBackend backend;
  const ArpaResult r = ArpaReader<CpuBackend>(backend, {const_data<char>(text), static_cast<size_t>(text.size(0))}).run();
  STD_TORCH_CHECK(r.error.message.empty(), name, r.error.line > 0 ? ":" + std::to_string(r.error.line) : std::string(), ": ", r.error.message);
  const std::vector<int32_t> numbers{r.order, r.start_state};
  return {to_tensor(r.arc_splits, text),    to_tensor(r.arc_words, text),     floats_to_tensor(r.arc_log_probs, text), to_tensor(r.arc_next, text),
          to_tensor(r.backoff_state, text), floats_to_tensor(r.backoff_log_prob, text), words_to_tensor(r.words, text), to_tensor(numbers, text)};
}

// `words` may name words outside the automaton's vocabulary nowhere, nor `states` states.
void check_query(const Tensor& states, const Tensor& words, int64_t num_states, int64_t num_words) {
  check_ints(states, "states");
  check_ints(words, "words");
  STD_TORCH_CHECK(states.size(0) == words.size(0), "states and words must have one length, got ", states.size(0), " and ", words.size(0));
  const int32_t *s = const_data<int32_t>(states), *w = const_data<int32_t>(words);
  for (int64_t i = 0; i < states.size(0); ++i)
    STD_TORCH_CHECK(s[i] >= 0 && s[i] < num_states && w[i] >= 0 && w[i] < num_words, "query ", i, ": state ", s[i], " and word ", w[i],
                    " must lie in [0, ", num_states, ") and [0, ", num_words, ")");
}

std::tuple<Tensor, Tensor> ngram_score_cpu(const Tensor& arc_splits, const Tensor& arc_words, const Tensor& arc_log_probs, const Tensor& arc_next,
                                           const Tensor& backoff_state, const Tensor& backoff_log_prob, const Tensor& states, const Tensor& words) {
  const NgramView lm{const_data<int32_t>(arc_splits),    const_data<int32_t>(arc_words),   const_data<int32_t>(arc_next),
                     const_data<int32_t>(backoff_state), const_data<float>(arc_log_probs), const_data<float>(backoff_log_prob)};
  STD_TORCH_CHECK(arc_splits.size(0) >= 2 && backoff_state.size(0) == arc_splits.size(0) - 1, "the automaton has no states");
  check_query(states, words, backoff_state.size(0), lm.arc_splits[1]);
  const int64_t n = states.size(0);
  Tensor log_probs = empty_like_shape(states, {n}, ScalarType::Float), next = new_ints(states, {n});
  const int32_t *s = const_data<int32_t>(states), *w = const_data<int32_t>(words);
  float* p = data<float>(log_probs);
  int32_t* to = data<int32_t>(next);
  CpuBackend{}.for_each(n, [&](int64_t i) { p[i] = lm.score(s[i], w[i], &to[i]); });
  return {log_probs, next};
}

std::tuple<Tensor, Tensor> ngram_kenlm_open_cpu(const Tensor& like, std::string library, std::string path) {
  std::string error;
  const std::shared_ptr<KenLm> lm = KenLm::open(library, path, &error);
  STD_TORCH_CHECK(lm != nullptr, path, ": ", error);
  const auto open = std::make_shared<OpenKenLm>(lm);
  const int64_t handle = Registry<OpenKenLm>::global().add(open);
  const std::vector<int32_t> numbers{static_cast<int32_t>(handle), lm->order(), open->states.start_state(),
                                     static_cast<int32_t>(lm->end_word())};
  return {to_tensor(numbers, like), words_to_tensor(lm->words(), like)};
}

std::tuple<Tensor, Tensor> ngram_kenlm_score_cpu(const Tensor& states, const Tensor& words, int64_t handle) {
  const auto entry = Registry<OpenKenLm>::global().find(handle);
  STD_TORCH_CHECK(entry != nullptr, "no KenLM model is open under the handle ", handle);
  const std::lock_guard<std::mutex> lock(entry->mutex);
  check_query(states, words, entry->states.size(), static_cast<int64_t>(entry->lm->words().size()));
  const int64_t n = states.size(0);
  Tensor log_probs = empty_like_shape(states, {n}, ScalarType::Float), next = new_ints(states, {n});
  const int32_t *s = const_data<int32_t>(states), *w = const_data<int32_t>(words);
  for (int64_t i = 0; i < n; ++i) data<float>(log_probs)[i] = entry->states.score(s[i], w[i], &data<int32_t>(next)[i]);
  return {log_probs, next};
}

void ngram_kenlm_close_cpu(const Tensor&, int64_t handle) { Registry<OpenKenLm>::global().remove(handle); }

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("ngram_parse_arpa", TORCH_BOX(&ngram_parse_arpa_cpu));
  m.impl("ngram_score", TORCH_BOX(&ngram_score_cpu));
  m.impl("ngram_kenlm_open", TORCH_BOX(&ngram_kenlm_open_cpu));
  m.impl("ngram_kenlm_score", TORCH_BOX(&ngram_kenlm_score_cpu));
  m.impl("ngram_kenlm_close", TORCH_BOX(&ngram_kenlm_close_cpu));
}

}  // namespace
}  // namespace lattica
