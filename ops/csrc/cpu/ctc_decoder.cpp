// The CTC decoder's ops: a decoder and its streams are objects that Python knows by number; the search is in ctc_decoder.h.
#include "../ctc_decoder.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <memory>
#include <mutex>
#include <numeric>
#include <string>

#include "../fsa_torch.h"
#include "../registry.h"

namespace lattica {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct CtcDecoder {
  CtcOptions options;
  TrieView trie{};
  HotwordView hot;
  NgramShared ngram{};
  KenLmShared kenlm;
  enum { kNone, kNgram, kKenLm, kTable } kind = kNone;
  std::vector<float> most;     // of each word, its highest score in the n-gram model
  std::vector<Tensor> tensors;  // what the views look at
};

// Emissions where they lie.
struct Rows {
  const char* start;
  int64_t frame_bytes, token_bytes;
  ScalarType dtype;

  template <typename T>
  void copy(const char* row, int32_t n, float* out) const {
    if (token_bytes == static_cast<int64_t>(sizeof(T))) {
      const T* in = reinterpret_cast<const T*>(row);
      for (int32_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
    } else {
      for (int32_t i = 0; i < n; ++i) out[i] = static_cast<float>(*reinterpret_cast<const T*>(row + i * token_bytes));
    }
  }
  // False if a number is nan or +inf.
  bool read(int64_t t, int32_t n, float* out) const {
    const char* row = start + t * frame_bytes;
    if (dtype == ScalarType::Float) copy<float>(row, n, out);
    else if (dtype == ScalarType::Half) copy<torch::headeronly::Half>(row, n, out);
    else copy<torch::headeronly::BFloat16>(row, n, out);
    int bad = 0;
    for (int32_t i = 0; i < n; ++i) bad |= !(out[i] < kInf);
    return !bad;
  }
};

Rows rows_of(const Tensor& emissions, int64_t n, int32_t num_tokens) {
  const int64_t dim = emissions.dim();
  const ScalarType dtype = emissions.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "emissions must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(emissions.size(dim - 1) == num_tokens, "emissions have ", emissions.size(dim - 1), " tokens, the decoder's list has ", num_tokens);
  const int64_t bytes = dtype == ScalarType::Float ? 4 : 2;
  return {const_data<char>(emissions) + (dim == 3 ? n * emissions.stride(0) * bytes : 0), emissions.stride(dim - 2) * bytes, emissions.stride(dim - 1) * bytes, dtype};
}

class Stream {
 public:
  virtual ~Stream() = default;
  virtual void begin() = 0;
  // Read frames from t on. Returns the first one not read: `end`, or one whose questions wait; ~t for a bad frame t.
  virtual int64_t read(const Rows& rows, int64_t t, int64_t end) = 0;
  virtual bool end() = 0;
  virtual std::vector<CtcResult> results(int32_t nbest, std::vector<CtcEvent>* events) const = 0;
  virtual TableLm* questions() = 0;
  virtual int32_t frames() const = 0;
};

template <typename Lm>
class StreamOf : public Stream {
 public:
  StreamOf(std::shared_ptr<const CtcDecoder> decoder, Lm lm)
      : decoder_(decoder), search_(decoder->options, decoder->trie, decoder->hot, std::move(lm)) {}
  void begin() override { search_.begin(); }
  int64_t read(const Rows& rows, int64_t t, int64_t end) override {
    for (; t < end; ++t) {
      if (!rows.read(t, decoder_->options.num_tokens, search_.frame_buffer())) return ~t;
      if (!search_.step()) return t;
    }
    return end;
  }
  bool end() override { return search_.end(); }
  std::vector<CtcResult> results(int32_t nbest, std::vector<CtcEvent>* events) const override { return search_.results(nbest, events); }
  TableLm* questions() override {
    if constexpr (std::is_same_v<Lm, TableLm>) return &search_.lm();
    return nullptr;
  }
  int32_t frames() const override { return search_.frames(); }

 private:
  std::shared_ptr<const CtcDecoder> decoder_;
  CtcSearch<Lm> search_;
};

std::unique_ptr<Stream> make_stream(const std::shared_ptr<const CtcDecoder>& d, int32_t start_state) {
  switch (d->kind) {
    case CtcDecoder::kNgram: return std::make_unique<StreamOf<NgramLm>>(d, NgramLm(d->ngram));
    case CtcDecoder::kKenLm: return std::make_unique<StreamOf<KenLmLm>>(d, KenLmLm(d->kenlm));
    case CtcDecoder::kTable: return std::make_unique<StreamOf<TableLm>>(d, TableLm(start_state));
    default: return std::make_unique<StreamOf<NoLm>>(d, NoLm());
  }
}

// --------------------------------------------------------------------------------------------------------- making decoders

NgramView ngram_view(const std::vector<Tensor>& t) {
  return {const_data<int32_t>(t[0]), const_data<int32_t>(t[1]), const_data<int32_t>(t[3]), const_data<int32_t>(t[4]), const_data<float>(t[2]), const_data<float>(t[5])};
}

void check_trie(const Tensor& nodes, const Tensor& words, const CtcOptions& o, int64_t num_words) {
  check_ints(nodes, "nodes", 2);
  check_ints(words, "words");
  STD_TORCH_CHECK(nodes.size(1) == 8 && nodes.size(0) >= 2, "nodes must be (nodes + 1, 8)");
  const TrieNode* node = static_cast<const TrieNode*>(nodes.const_data_ptr());
  const int32_t n = static_cast<int32_t>(nodes.size(0)) - 1;
  bool sound = node[0].first_child == 1 && node[n].first_child == n && node[0].first_word == 0 && node[n].first_word == words.size(0);
  for (int32_t i = 0; i < n && sound; ++i) {
    const int32_t children = node[i + 1].first_child - node[i].first_child;
    sound = node[i].first_child > i && children >= 0 && node[i + 1].first_word >= node[i].first_word && (i == 0 || (node[i].token >= 0 && node[i].token < o.num_tokens)) &&
            (o.num_tokens > 64 || __builtin_popcountll(node[i].children) == children);
  }
  for (int64_t w = 0; w < words.size(0) && sound; ++w) sound = const_data<int32_t>(words)[w] >= 0 && const_data<int32_t>(words)[w] < num_words;
  STD_TORCH_CHECK(sound, "nodes and words do not make up a trie as ctc_decoder_build_trie makes it");
}

CtcOptions read_options(const Tensor& options) {
  STD_TORCH_CHECK(options.dim() == 1 && options.size(0) == 14 && options.scalar_type() == ScalarType::Double && options.is_contiguous(),
                  "options must be 14 float64");
  const double* v = const_data<double>(options);
  const auto integer = [&](int i) { return static_cast<int32_t>(v[i]); };
  CtcOptions o{};
  o.num_tokens = integer(0), o.blank = integer(1), o.sil = integer(2), o.beam_size = integer(3), o.beam_size_token = integer(4), o.unk_word = integer(5);
  o.log_add = v[6] != 0, o.merge_lm_states = v[7] != 0, o.beam_threshold = v[8], o.lm_weight = v[9], o.word_score = v[10], o.unk_score = v[11];
  o.sil_score = v[12], o.blank_skip = static_cast<float>(v[13]);
  STD_TORCH_CHECK(o.num_tokens >= 1 && o.blank >= 0 && o.blank < o.num_tokens && o.sil >= 0 && o.sil < o.num_tokens && o.beam_size >= 1 && o.beam_size_token >= 1,
                  "the options of the decoder are out of range");
  o.beam_size_token = std::min(o.beam_size_token, o.num_tokens);
  return o;
}

// trie: nodes and words, or nothing. lm: an automaton's six tensors, the words' ids in it, its start state and end word; with
// a KenLM handle, only the ids. hot: an automaton's six tensors, its start state, and the largest gain.
Tensor ctc_decoder_new_cpu(const Tensor& options, std::vector<Tensor> trie, std::vector<Tensor> lm, std::vector<Tensor> hot, int64_t kenlm, bool table, int64_t num_words) {
  auto d = std::make_shared<CtcDecoder>();
  CtcOptions& o = d->options = read_options(options);
  o.lexicon = !trie.empty();
  STD_TORCH_CHECK(trie.size() <= 2 && trie.size() != 1 && (hot.empty() || hot.size() == 8), "trie must be 2 tensors, hot 8, or none");
  if (o.lexicon) {
    check_trie(trie[0], trie[1], o, num_words);
    d->trie = {static_cast<const TrieNode*>(trie[0].const_data_ptr()), const_data<int32_t>(trie[1])};
  }
  STD_TORCH_CHECK(o.unk_word < num_words || !o.lexicon, "unk_word is not a word");
  const auto check_ids = [&](const Tensor& ids, int64_t size) {
    check_ints(ids, "ids");
    STD_TORCH_CHECK(ids.size(0) == num_words, "ids must hold a number for each of ", num_words, " words");
    for (int64_t i = 0; i < num_words; ++i) STD_TORCH_CHECK(const_data<int32_t>(ids)[i] >= 0 && const_data<int32_t>(ids)[i] < size, "ids[", i, "] is not a word of the language model");
  };
  if (table) {
    d->kind = CtcDecoder::kTable;
  } else if (kenlm >= 0) {
    const auto open = Registry<OpenKenLm>::global().find(kenlm);
    STD_TORCH_CHECK(open != nullptr && lm.size() == 1, "no KenLM model is open under the handle ", kenlm);
    check_ids(lm[0], static_cast<int64_t>(open->lm->words().size()));
    d->kind = CtcDecoder::kKenLm;
    d->kenlm = {open->lm, const_data<int32_t>(lm[0])};
  } else if (!lm.empty()) {
    STD_TORCH_CHECK(lm.size() == 8, "lm must be 8 tensors");
    check_ids(lm[6], const_data<int32_t>(lm[0])[1]);
    d->kind = CtcDecoder::kNgram;
    const NgramView view = ngram_view(lm);
    const int32_t *ids = const_data<int32_t>(lm[6]), *ends = const_data<int32_t>(lm[7]);
    std::vector<float> highest(view.arc_splits[1], -kInf);
    bool discounts = true;  // backing off never gains
    for (int64_t s = 0; s < lm[5].size(0); ++s) discounts &= view.backoff_log_prob[s] <= 0;
    for (int64_t a = 0; a < lm[1].size(0); ++a) highest[view.arc_words[a]] = std::max(highest[view.arc_words[a]], view.arc_log_probs[a]);
    for (int64_t w = 0; w < num_words; ++w) d->most.push_back(discounts ? highest[ids[w]] * kLog10E : kInf);
    d->ngram = {view, ids, ends[0], ends[1], d->most.data()};
  }
  double hot_gain = 0;
  if (!hot.empty()) {
    d->hot = {ngram_view(hot), const_data<int32_t>(hot[6])[0], o.sil == o.blank ? -1 : o.sil, true};
    hot_gain = const_data<double>(hot[7])[0];
  }
  const int32_t num_nodes = o.lexicon ? static_cast<int32_t>(trie[0].size(0)) - 1 : 0;
  bound_gains(&o, d->trie, num_nodes, [&](int32_t w) -> double {
    return d->kind == CtcDecoder::kNgram ? d->most[w] : d->kind == CtcDecoder::kNone ? 0 : d->kind == CtcDecoder::kTable ? kInf : 0;
  }, hot_gain);
  for (std::vector<Tensor>* list : {&trie, &lm, &hot})
    for (Tensor& t : *list) d->tensors.push_back(t);
  Tensor handle = empty_like_shape(options, {1}, ScalarType::Long);
  data<int64_t>(handle)[0] = Registry<const CtcDecoder>::global().add(d);
  return handle;
}

std::shared_ptr<const CtcDecoder> decoder_of(int64_t handle) {
  auto d = Registry<const CtcDecoder>::global().find(handle);
  STD_TORCH_CHECK(d != nullptr, "there is no decoder ", handle);
  return d;
}

// --------------------------------------------------------------------------------------------------------------- results

struct Found {
  std::vector<CtcResult> results;
  std::vector<CtcEvent> events;
};

// scores of all hypotheses; where each utterance's begin; where each hypothesis's events begin; the events: token, frame,
// last frame, word; and their highest emissions.
Tensors5 pack(const std::vector<Found>& all, const Tensor& like) {
  std::vector<int32_t> hyp_splits{0}, event_splits{0}, events;
  std::vector<float> peaks;
  std::vector<double> scores;
  for (const Found& found : all) {
    for (const CtcResult& r : found.results) {
      scores.push_back(r.score);
      for (int32_t i = r.first_event; i < r.first_event + r.num_events; ++i) {
        const CtcEvent& e = found.events[i];
        events.insert(events.end(), {e.token, e.frame, e.end, e.word});
        peaks.push_back(e.peak);
      }
      event_splits.push_back(static_cast<int32_t>(peaks.size()));
    }
    hyp_splits.push_back(static_cast<int32_t>(scores.size()));
  }
  Tensor scores_out = empty_like_shape(like, {static_cast<int64_t>(scores.size())}, ScalarType::Double);
  if (!scores.empty()) std::memcpy(data<double>(scores_out), scores.data(), scores.size() * sizeof(double));
  return {scores_out, to_tensor(hyp_splits, like), to_tensor(event_splits, like), to_tensor(events, like), floats_to_tensor(peaks, like)};
}

// What a thread has grown for one utterance serves its next one.
class FreeStreams {
 public:
  std::unique_ptr<Stream> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (streams_.empty()) return nullptr;
    std::unique_ptr<Stream> stream = std::move(streams_.back());
    streams_.pop_back();
    return stream;
  }
  void give(std::unique_ptr<Stream> stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    streams_.push_back(std::move(stream));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Stream>> streams_;
};

Tensors5 ctc_decoder_decode_cpu(const Tensor& emissions, const Tensor& lengths, int64_t handle, int64_t nbest) {
  const auto d = decoder_of(handle);
  STD_TORCH_CHECK(d->kind != CtcDecoder::kTable, "a decoder with a language model in Python is fed frame by frame");
  STD_TORCH_CHECK(emissions.dim() == 3, "emissions must have 3 dimensions (N, T, V), got ", emissions.dim());
  const int64_t N = emissions.size(0), T = emissions.size(1);
  STD_TORCH_CHECK(lengths.dim() == 1 && lengths.size(0) == N && lengths.scalar_type() == ScalarType::Long && lengths.is_contiguous(),
                  "lengths must be ", N, " int64 numbers");
  const int64_t* length = const_data<int64_t>(lengths);
  for (int64_t n = 0; n < N; ++n) STD_TORCH_CHECK(length[n] >= 0 && length[n] <= T, "lengths[", n, "] = ", length[n], " must lie in [0, T = ", T, "]");
  rows_of(emissions, 0, d->options.num_tokens);
  std::vector<int64_t> order(N), bad(N, -1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });  // threads end together
  std::vector<Found> all(N);
  FreeStreams free_streams;
  const int32_t most = static_cast<int32_t>(std::clamp<int64_t>(nbest, 1, d->options.beam_size));
  CpuBackend{}.for_each(N, [&](int64_t i) {
    const int64_t n = order[i];
    std::unique_ptr<Stream> stream = free_streams.take();
    if (stream == nullptr) stream = make_stream(d, 0);
    else stream->begin();
    const int64_t t = stream->read(rows_of(emissions, n, d->options.num_tokens), 0, length[n]);
    if (t < 0) {
      bad[n] = ~t;
      return;
    }
    stream->end();
    all[n].results = stream->results(most, &all[n].events);
    free_streams.give(std::move(stream));
  });
  for (int64_t n = 0; n < N; ++n) STD_TORCH_CHECK(bad[n] < 0, "emissions[", n, ", ", bad[n], "] hold nan or +inf");
  return pack(all, lengths);
}

void ctc_decoder_close_cpu(const Tensor&, int64_t handle) { Registry<const CtcDecoder>::global().remove(handle); }

// --------------------------------------------------------------------------------------------------------------- streams

std::shared_ptr<Stream> stream_of(int64_t handle) {
  auto s = Registry<Stream>::global().find(handle);
  STD_TORCH_CHECK(s != nullptr, "there is no stream ", handle);
  return s;
}

Tensor one_number(const Tensor& like, int64_t value) {
  Tensor out = empty_like_shape(like, {1}, ScalarType::Long);
  data<int64_t>(out)[0] = value;
  return out;
}

Tensor ctc_decoder_stream_cpu(const Tensor& like, int64_t decoder, int64_t start_state) {
  return one_number(like, Registry<Stream>::global().add(make_stream(decoder_of(decoder), static_cast<int32_t>(start_state))));
}

// The first frame not read; see Stream::read.
Tensor ctc_decoder_stream_read_cpu(const Tensor& emissions, int64_t stream, int64_t decoder, int64_t from, int64_t to) {
  STD_TORCH_CHECK(emissions.dim() == 2, "emissions must have 2 dimensions (T, V), got ", emissions.dim());
  STD_TORCH_CHECK(from >= 0 && from <= to && to <= emissions.size(0), "frames ", from, " to ", to, " of ", emissions.size(0));
  const int64_t t = stream_of(stream)->read(rows_of(emissions, 0, decoder_of(decoder)->options.num_tokens), from, to);
  STD_TORCH_CHECK(t >= 0, "emissions[", ~t, "] hold nan or +inf");
  return one_number(emissions, t);
}

Tensor ctc_decoder_stream_end_cpu(const Tensor& like, int64_t stream) { return one_number(like, stream_of(stream)->end()); }

Tensors5 ctc_decoder_stream_results_cpu(const Tensor& like, int64_t stream, int64_t nbest) {
  std::vector<Found> found(1);
  found[0].results = stream_of(stream)->results(static_cast<int32_t>(std::clamp<int64_t>(nbest, 1, INT32_MAX)), &found[0].events);
  return pack(found, like);
}

std::tuple<Tensor, Tensor> ctc_decoder_stream_questions_cpu(const Tensor& like, int64_t stream) {
  const auto s = stream_of(stream);
  const TableLm* lm = s->questions();
  std::vector<int32_t> states, words;
  for (int32_t i = lm ? lm->answered() : 0; lm && i < lm->size(); ++i) states.push_back(lm->state(i)), words.push_back(lm->word(i));
  return {to_tensor(states, like), to_tensor(words, like)};
}

void ctc_decoder_stream_answer_cpu(const Tensor& scores, const Tensor& states, int64_t stream) {
  const auto s = stream_of(stream);
  TableLm* lm = s->questions();
  check_ints(states, "states");
  STD_TORCH_CHECK(lm && scores.dim() == 1 && scores.scalar_type() == ScalarType::Float && scores.is_contiguous() && scores.size(0) == states.size(0) &&
                      states.size(0) == lm->size() - lm->answered(), "every question needs a float32 score and an int32 state");
  for (int64_t i = 0; i < states.size(0); ++i) lm->answer(const_data<float>(scores)[i], const_data<int32_t>(states)[i]);
}

void ctc_decoder_stream_close_cpu(const Tensor&, int64_t stream) { Registry<Stream>::global().remove(stream); }

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("ctc_decoder_new", TORCH_BOX(&ctc_decoder_new_cpu));
  m.impl("ctc_decoder_decode", TORCH_BOX(&ctc_decoder_decode_cpu));
  m.impl("ctc_decoder_close", TORCH_BOX(&ctc_decoder_close_cpu));
  m.impl("ctc_decoder_stream", TORCH_BOX(&ctc_decoder_stream_cpu));
  m.impl("ctc_decoder_stream_read", TORCH_BOX(&ctc_decoder_stream_read_cpu));
  m.impl("ctc_decoder_stream_end", TORCH_BOX(&ctc_decoder_stream_end_cpu));
  m.impl("ctc_decoder_stream_results", TORCH_BOX(&ctc_decoder_stream_results_cpu));
  m.impl("ctc_decoder_stream_questions", TORCH_BOX(&ctc_decoder_stream_questions_cpu));
  m.impl("ctc_decoder_stream_answer", TORCH_BOX(&ctc_decoder_stream_answer_cpu));
  m.impl("ctc_decoder_stream_close", TORCH_BOX(&ctc_decoder_stream_close_cpu));
}

}  // namespace
}  // namespace lattica
