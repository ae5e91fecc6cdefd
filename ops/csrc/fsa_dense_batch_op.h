// The op around fsa_dense_batch.h: checks, memory that grows as the search needs it, results. One instance for the CPU (what tests
// run), one for CUDA.
#pragma once

#include <algorithm>
#include <vector>

#include "fsa_dense_batch_lattice.h"
#include "fsa_device.h"

namespace lattica {
namespace {  // torch's stable types are hidden symbols

// Memory on the device of `like`, its bytes all `fill` if that is not negative.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Backend& backend, const Tensor& like, int64_t size, int fill = -1)
      : tensor_(empty_like_shape(like, {size * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte)), size_(size) {
    if (fill >= 0 && size > 0) backend.fill(data(), fill, size * static_cast<int64_t>(sizeof(T)));
  }
  Buffer(const Backend& backend, const Tensor& like, const std::vector<T>& values)
      : Buffer(backend, like, static_cast<int64_t>(values.size())) {
    if (size_ > 0) backend.copy(data(), values.data(), size_ * static_cast<int64_t>(sizeof(T)));
  }
  T* data() const { return tensor_ ? static_cast<T*>(tensor_->mutable_data_ptr()) : nullptr; }
  int64_t size() const { return size_; }
  void grow(const Backend& backend, const Tensor& like, int64_t size, int64_t used) {
    Buffer larger(backend, like, size);
    if (used > 0) backend.copy(larger.data(), data(), used * static_cast<int64_t>(sizeof(T)));
    *this = larger;
  }

 private:
  std::optional<Tensor> tensor_;
  int64_t size_ = 0;
};

struct DenseSettings {
  double search_beam, output_beam;
  int64_t min_active, max_active;
  bool allow_partial;
};

class DenseBatch {
 public:
  // segments, a_index, b_index and the first tensor of the history (frame_splits) lie on the CPU.
  DenseBatch(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
             const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index,
             const DenseSettings& settings, const std::vector<Tensor>& history)
      : backend_(backend), like_(arcs), fsas_(device_fsas(fsa_splits, state_splits, arcs)), history_(history) {
    check(scores, log_probs, segments, a_index, b_index, settings);
    check_graphs(log_probs.size(2));
    plan(log_probs, segments, a_index, b_index);
    s_.state_splits = fsas_.state_splits, s_.arcs = fsas_.arcs;
    s_.arc_scores = const_data_of<float>(scores), s_.log_probs = const_data_of<float>(log_probs), s_.num_labels = log_probs.size(2);
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    s_.search_beam = static_cast<float>(settings.search_beam), s_.output_beam = static_cast<float>(settings.output_beam);
    s_.min_active = static_cast<int32_t>(std::min(settings.min_active, kMost));
    s_.max_active = static_cast<int32_t>(std::min(settings.max_active, kMost));
    s_.allow_partial = settings.allow_partial;
    may_rank_ = s_.min_active > 0 || s_.max_active < max_states_;
    // What the set may have to hold, and what of it may stay, at most.
    for (const DenseUtterance& u : utterances_) most_found_ += u.num_states, most_kept_ += std::min(u.num_states, s_.max_active);
  }

  void search() {
    allocate();
    load();
    forward();
    for (int32_t step = num_steps_; step >= 0; --step) {
      if (step < num_steps_) retreat(backend_, s_, step);
      if (std::any_of(utterances_.begin(), utterances_.end(), [&](const DenseUtterance& u) { return u.start + u.duration == step; }))
        end_utterances(backend_, s_, step);
    }
  }

  std::vector<Tensor> lattice(const Tensor& floats, bool want_frame);
  std::vector<Tensor> histories(const Tensor& floats);

 private:
  static constexpr int32_t kChunk = 32;  // steps between the host's looks at `control`

  void check(const Tensor& scores, const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index,
             const DenseSettings& settings) const;
  void check_graphs(int64_t num_labels);
  void plan(const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index);
  void allocate();
  void allocate_set(int64_t capacity);
  void allocate_tokens(int64_t capacity, int64_t used);
  void load();
  void forward();
  OrderedTokens order(bool all, int64_t size);

  template <typename T>
  T read(const T* from) const {
    T value;
    read_back(backend_, &value, from, sizeof(T));
    return value;
  }

  const Backend backend_;
  const Tensor like_;
  const DeviceFsas fsas_;
  const std::vector<Tensor> history_;
  std::vector<int32_t> fsa_splits_;
  std::vector<DenseUtterance> utterances_;
  std::vector<int32_t> frame_splits_;  // of the history
  int64_t num_rows_ = 0, most_found_ = 0, most_kept_ = 0;
  int32_t max_states_ = 0, num_steps_ = 0, first_step_ = 0;  // the search goes on from the latter
  bool may_rank_ = false;
  int64_t num_tokens_ = 0;
  DenseSearch s_{};
  Buffer<DenseUtterance> utterance_buffer_;
  Buffer<DenseProgress> progress_;
  Buffer<DenseControl> control_;
  Buffer<int32_t> steps_, ranks_, bins_, found_, token_ints_;
  Buffer<uint64_t> answers_, set_keys_;
  Buffer<uint32_t> set_values_, token_backward_;
  Buffer<float> token_forward_;
  Buffer<uint64_t> ordered_keys_;
  Buffer<int32_t> ordered_tokens_, row_begin_;
};

inline void check_host_ints(const Tensor& t, const char* name, int64_t dim) {
  STD_TORCH_CHECK(t.dim() == dim && t.scalar_type() == ScalarType::Int && t.is_contiguous() && !t.is_cuda(), name,
                  " must be a contiguous int32 tensor on the CPU with ", dim, " dimensions");
}

inline void DenseBatch::check(const Tensor& scores, const Tensor& log_probs, const Tensor& segments, const Tensor& a_index,
                              const Tensor& b_index, const DenseSettings& settings) const {
  const bool is_cuda = like_.is_cuda();
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == fsas_.num_arcs && scores.scalar_type() == ScalarType::Float &&
                      scores.is_contiguous() && scores.is_cuda() == is_cuda, "scores must be contiguous float32, one for each arc");
  STD_TORCH_CHECK(log_probs.dim() == 3 && log_probs.scalar_type() == ScalarType::Float && log_probs.is_contiguous() &&
                      log_probs.is_cuda() == is_cuda, "log_probs must be contiguous float32 (N, T, C) where the graphs are");
  check_host_ints(segments, "segments", 2);
  check_host_ints(a_index, "a_index", 1);
  check_host_ints(b_index, "b_index", 1);
  STD_TORCH_CHECK(segments.size(1) == 3 && b_index.size(0) == a_index.size(0),
                  "segments must be (S, 3), a_index and b_index of one length");
  STD_TORCH_CHECK(settings.search_beam > 0 && settings.output_beam > 0 && settings.min_active >= 0 && settings.max_active >= 1 &&
                      settings.min_active <= settings.max_active,
                  "beams must be positive and 0 <= min_active_states <= max_active_states");
  if (history_.empty()) return;
  STD_TORCH_CHECK(history_.size() == 4, "history must be frame_splits, token_splits, states and scores");
  check_host_ints(history_[0], "frame_splits", 1);
  for (size_t i = 1; i < 4; ++i)
    STD_TORCH_CHECK(history_[i].dim() == 1 && history_[i].is_contiguous() && history_[i].is_cuda() == is_cuda &&
                        history_[i].scalar_type() == (i < 3 ? ScalarType::Int : ScalarType::Float),
                    "token_splits and states must be contiguous int32, scores float32, where the graphs are");
  STD_TORCH_CHECK(history_[0].size(0) == a_index.size(0) + 1, "frame_splits must have one entry more than there are segments");
  STD_TORCH_CHECK(history_[1].size(0) >= 1 && history_[3].size(0) == history_[2].size(0), "a history needs a score for each state");
}

// *bad becomes num_arcs - a, 0 if all are good, for the first arc a whose label is no column of the scores.
inline void check_labels(const Backend& backend, const DeviceFsas fsas, int64_t num_labels, uint32_t* bad) {
  backend.for_each(fsas.num_arcs, [=] LATTICA_BOTH(int64_t a) {
    const int32_t label = fsas.arcs[a].label;
    if (label < -1 || label >= num_labels) atomic_max(bad, static_cast<uint32_t>(fsas.num_arcs - a));
  });
}

// The numbers in the graphs' tensors, and where each graph begins.
inline void DenseBatch::check_graphs(int64_t num_labels) {
  const Buffer<uint32_t> faults(backend_, like_, 2, 0);
  uint32_t* const bad_arc = faults.data() + 1;
  const DeviceFsas fsas = fsas_;
  check_fsas(backend_, fsas, false, faults.data());
  check_labels(backend_, fsas, num_labels, bad_arc);
  fsa_splits_.resize(fsas_.num_fsas + 1);
  uint32_t found[2];
  read_back(backend_, fsa_splits_.data(), fsas_.fsa_splits, fsa_splits_.size() * sizeof(int32_t));
  read_back(backend_, found, faults.data(), sizeof(found));
  raise_fault(found[0]);
  STD_TORCH_CHECK(found[1] == 0, "intersect_dense: arc ", fsas_.num_arcs - found[1], " of the graphs has label ",
                  found[1] ? read(&fsas_.arcs[fsas_.num_arcs - found[1]]).label : 0, ", but the scores have ", num_labels, " columns");
}

inline void DenseBatch::plan(const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index) {
  const int64_t n = a_index.size(0), N = log_probs.size(0), T = log_probs.size(1), C = log_probs.size(2);
  const int32_t *ai = const_data_of<int32_t>(a_index), *bi = const_data_of<int32_t>(b_index), *seg = const_data_of<int32_t>(segments);
  for (int64_t i = 0; i < segments.size(0); ++i)
    STD_TORCH_CHECK(seg[3 * i] >= 0 && seg[3 * i] < N && seg[3 * i + 1] >= 0 && seg[3 * i + 2] >= 0 &&
                        seg[3 * i + 1] + int64_t{seg[3 * i + 2]} <= T,
                    "segment ", i, " lies outside log_probs of ", N, " x ", T, " frames");
  frame_splits_.assign(n + 1, 0);
  if (!history_.empty()) {
    std::copy_n(const_data_of<int32_t>(history_[0]), n + 1, frame_splits_.begin());
    STD_TORCH_CHECK(frame_splits_[0] == 0 && frame_splits_[n] == history_[1].size(0) - 1 &&
                        std::is_sorted(frame_splits_.begin(), frame_splits_.end()),
                    "frame_splits must rise from 0 to the number of lists in token_splits");
  }
  int64_t rows = 0;
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(ai[i] >= 0 && ai[i] < fsas_.num_fsas && bi[i] >= 0 && bi[i] < segments.size(0), "a_index[", i, "] or b_index[", i,
                    "] is out of range");
    const int32_t* s = seg + 3 * bi[i];
    const int32_t first_state = fsa_splits_[ai[i]], lists = std::max(1, frame_splits_[i + 1] - frame_splits_[i]);
    STD_TORCH_CHECK(lists <= s[2] + 1, "segment ", i, " is shorter than its history");
    utterances_.push_back({(s[0] * T + s[1]) * C, first_state, fsa_splits_[ai[i] + 1] - first_state, lists, s[2],
                           static_cast<int32_t>(rows)});
    rows += int64_t{s[2]} + 1;
    max_states_ = std::max(max_states_, utterances_.back().num_states);
    first_step_ = std::max(first_step_, lists - 1);
  }
  for (DenseUtterance& u : utterances_) {  // all histories end at one step
    u.start = first_step_ + 1 - u.start;
    num_steps_ = std::max(num_steps_, u.start + u.duration);
  }
  num_rows_ = rows;
  STD_TORCH_CHECK(rows < INT32_MAX && n * std::max<int64_t>(fsas_.num_arcs, 1) <= static_cast<int64_t>(kTakenArcs),
                  "intersect_dense: a batch of ", n, " with ", rows, " frames and graphs of ", fsas_.num_arcs, " arcs is too large");
}

inline void DenseBatch::allocate() {
  const int64_t n = static_cast<int64_t>(utterances_.size());
  utterance_buffer_ = Buffer<DenseUtterance>(backend_, like_, utterances_);
  progress_ = Buffer<DenseProgress>(backend_, like_, n, 0);
  DenseControl control{};
  control.failed_step = -1;
  control_ = Buffer<DenseControl>(backend_, like_, std::vector<DenseControl>{control});
  steps_ = Buffer<int32_t>(backend_, like_, 3 * (int64_t{num_steps_} + 2), 0);
  ranks_ = Buffer<int32_t>(backend_, like_, n, 0);
  answers_ = Buffer<uint64_t>(backend_, like_, n, 0);
  bins_ = Buffer<int32_t>(backend_, like_, may_rank_ ? n * kSelectBins : 0, 0);
  s_.utterances = utterance_buffer_.data(), s_.num_utterances = static_cast<int32_t>(n);
  s_.progress = progress_.data(), s_.control = control_.data();
  s_.step_begin = steps_.data(), s_.step_tokens = s_.step_begin + num_steps_ + 2, s_.step_arcs = s_.step_tokens + num_steps_ + 2;
  s_.ranks = {ranks_.data(), answers_.data(), bins_.data()};
  s_.state_bits = 8;
  while (s_.state_bits < 32 && max_states_ > int64_t{1} << s_.state_bits) s_.state_bits += 8;
}

inline void DenseBatch::allocate_set(int64_t capacity) {
  int64_t size = 64;
  while (size < capacity) size *= 2;
  STD_TORCH_CHECK(size <= int64_t{1} << 31, "intersect_dense: too many states are active at once: use smaller beams");
  set_keys_ = {}, set_values_ = {}, found_ = {};  // free before new memory is asked for
  set_keys_ = Buffer<uint64_t>(backend_, like_, size, 0xff);
  set_values_ = Buffer<uint32_t>(backend_, like_, size, 0);
  found_ = Buffer<int32_t>(backend_, like_, size / 2);
  s_.set = {set_keys_.data(), size}, s_.values = set_values_.data(), s_.found = found_.data(), s_.max_found = size / 2;
}

inline void DenseBatch::allocate_tokens(int64_t capacity, int64_t used) {
  capacity = std::min<int64_t>(capacity, INT32_MAX);
  Buffer<int32_t> ints(backend_, like_, 3 * capacity);
  for (int i = 0; i < 3 && used > 0; ++i)
    backend_.copy(ints.data() + i * capacity, token_ints_.data() + i * s_.token_capacity, used * static_cast<int64_t>(sizeof(int32_t)));
  token_ints_ = ints;
  token_forward_.grow(backend_, like_, capacity, used);
  token_backward_.grow(backend_, like_, capacity, used);
  s_.tokens = {ints.data(), ints.data() + capacity, ints.data() + 2 * capacity, token_forward_.data(), token_backward_.data()};
  s_.token_capacity = capacity;
}

// The tokens that the search goes on from.
inline void DenseBatch::load() {
  const int64_t n = s_.num_utterances;
  const Buffer<int32_t> frame_splits(backend_, like_, frame_splits_);
  DenseHistory history{frame_splits.data(), frame_splits.data(), nullptr, nullptr, 0, 0};
  int64_t most = n;
  if (!history_.empty()) {
    history = {frame_splits.data(), const_data_of<int32_t>(history_[1]), const_data_of<int32_t>(history_[2]),
               const_data_of<float>(history_[3]), history_[1].size(0) - 1, history_[2].size(0)};
    const Buffer<uint32_t> fault(backend_, like_, 1, 0);
    check_history(backend_, s_, history, fault.data());
    const uint32_t bad = read(fault.data());
    STD_TORCH_CHECK(bad == 0, "the history of segment ", int64_t{bad} - 1,
                    " is not one of its graph: it must begin with one token, and each token must be in a state of the graph");
  }
  const Buffer<uint64_t> taken(backend_, like_, first_step_ + 1, 0), places(backend_, like_, history.num_tokens + n);
  count_history(backend_, s_, history, first_step_ + 1, taken.data(), places.data());
  exclusive_scan(backend_, like_, s_.step_tokens, s_.step_begin, first_step_ + 1);
  if (history.num_tokens > 0) {
    std::vector<int32_t> sizes(first_step_ + 1);
    read_back(backend_, sizes.data(), s_.step_tokens, sizes.size() * sizeof(int32_t));
    most = *std::max_element(sizes.begin(), sizes.end());
  }
  const int64_t guess = std::min(most_found_, n * 8192);
  allocate_set(2 * std::max(most, guess));
  num_tokens_ = read(s_.step_begin + first_step_ + 1);
  allocate_tokens(num_tokens_, 0);
  load_history(backend_, s_, history, places.data());
}

inline void DenseBatch::forward() {
  int64_t room = std::min(most_kept_, int64_t{s_.num_utterances} * 1024);  // guess of the tokens of a step
  std::vector<int32_t> begins(kChunk + 1);
  for (int32_t step = first_step_; step < num_steps_;) {
    const int32_t end = std::min(num_steps_, step + kChunk);
    const int64_t needed = num_tokens_ + (end - step) * room;
    if (needed > s_.token_capacity) allocate_tokens(std::max(needed, s_.token_capacity * 3 / 2), num_tokens_);
    for (int32_t i = step; i < end; ++i) advance(backend_, s_, i, may_rank_);
    DenseControl control = read(s_.control);
    const int32_t done = control.failure == kFits ? end : control.failed_step;
    read_back(backend_, begins.data(), s_.step_begin + step + 1, (done - step + 1) * sizeof(int32_t));
    int64_t largest = 0;
    for (int32_t i = 0; i < done - step; ++i) largest = std::max<int64_t>(largest, begins[i + 1] - begins[i]);
    num_tokens_ = begins[done - step];
    step = done;
    if (control.failure == kFits) {
      room = std::min(most_kept_, largest + largest / 4 + 1024);
      continue;
    }
    STD_TORCH_CHECK(control.failure != kTooManyArcs,
                    "intersect_dense: more than 2^31 - 1 arcs leave the active states of a frame: use smaller beams or batches");
    STD_TORCH_CHECK(s_.token_capacity < INT32_MAX, "intersect_dense: more than 2^31 - 1 active states: use smaller beams or batches");
    if (control.failure == kTokensFull) room = std::min(most_kept_, std::max(2 * room, 2 * largest));
    const int64_t larger = control.failure == kSetFull ? std::min(4 * s_.set.capacity, 2 * most_found_) : 0;
    allocate_set(std::max(s_.set.capacity, larger));
    progress_ = Buffer<DenseProgress>(backend_, like_, s_.num_utterances, 0);
    s_.progress = progress_.data();
    control = {}, control.failed_step = -1;
    backend_.copy(s_.control, &control, sizeof(control));
  }
}

// The tokens on good paths, of which there are `size`, or all.
inline OrderedTokens DenseBatch::order(bool all, int64_t size) {
  const Buffer<uint64_t> keys(backend_, like_, size), taken(backend_, like_, 1, 0);
  const Buffer<int32_t> tokens(backend_, like_, size);
  list_tokens(backend_, s_, num_steps_, num_tokens_, all, taken.data(), keys.data(), tokens.data());
  ordered_keys_ = Buffer<uint64_t>(backend_, like_, size);
  ordered_tokens_ = Buffer<int32_t>(backend_, like_, size);
  row_begin_ = Buffer<int32_t>(backend_, like_, num_rows_ + 1);
  int bits = s_.state_bits;
  while (bits < 64 && num_rows_ > int64_t{1} << (bits - s_.state_bits)) ++bits;
  sort_pairs(backend_, like_, keys.data(), ordered_keys_.data(), tokens.data(), ordered_tokens_.data(), size, bits);
  find_rows(backend_, s_.state_bits, ordered_keys_.data(), size, num_rows_, row_begin_.data());
  return {size, ordered_keys_.data(), ordered_tokens_.data(), row_begin_.data()};
}

// fsa_splits, state_splits, arcs, map_a, frame, scores.
inline std::vector<Tensor> DenseBatch::lattice(const Tensor& floats, bool want_frame) {
  const int64_t n = s_.num_utterances;
  const Tensor fsa_splits = empty_like_shape(like_, {n + 1}, ScalarType::Int);
  const Buffer<uint64_t> counters(backend_, like_, 2, 0);
  const Buffer<int32_t> counts(backend_, like_, n, 0), states(backend_, like_, n), kept_splits(backend_, like_, n + 1);
  count_kept(backend_, s_, num_steps_, num_tokens_, counters.data(), counts.data(), states.data());
  exclusive_scan(backend_, like_, counts.data(), kept_splits.data(), n);
  exclusive_scan(backend_, like_, states.data(), data_of<int32_t>(fsa_splits), n);
  const uint64_t taken = read(counters.data());
  const int64_t num_kept = static_cast<int64_t>(taken >> kArcBits), num_pieces = static_cast<int64_t>(taken & kTakenArcs);
  STD_TORCH_CHECK(read(&s_.control->twice) == 0, "a state comes twice at one frame of a history");
  STD_TORCH_CHECK(num_kept + n < INT32_MAX && num_pieces < INT32_MAX, "intersect_dense: the lattice has more than 2^31 - 1 states "
                  "or too many arcs to look at: use smaller beams");
  const int64_t num_states = n > 0 ? read(const_data_of<int32_t>(fsa_splits) + n) : 0;

  DenseLattice lattice{s_, order(false, num_kept), kept_splits.data(), const_data_of<int32_t>(fsa_splits), nullptr};
  const Buffer<int32_t> piece_counts(backend_, like_, num_kept), piece_splits(backend_, like_, num_kept + 1);
  count_pieces(backend_, lattice, piece_counts.data());
  exclusive_scan(backend_, like_, piece_counts.data(), piece_splits.data(), num_kept);
  lattice.piece_splits = piece_splits.data();
  const Buffer<int32_t> links(backend_, like_, num_pieces), link_splits(backend_, like_, num_pieces + 1);
  count_links(backend_, lattice, num_pieces, links.data(), counters.data() + 1);
  exclusive_scan(backend_, like_, links.data(), link_splits.data(), num_pieces);
  const int64_t num_arcs = static_cast<int64_t>(read(counters.data() + 1));
  STD_TORCH_CHECK(num_arcs < INT32_MAX, "intersect_dense: the lattice has ", num_states, " states and ", num_arcs,
                  " arcs, more than 2^31 - 1: use smaller beams");

  const Tensor state_splits = empty_like_shape(like_, {num_states + 1}, ScalarType::Int);
  const Tensor arcs = empty_like_shape(like_, {num_arcs, 3}, ScalarType::Int), map = empty_like_shape(like_, {num_arcs}, ScalarType::Int);
  const Tensor frame = empty_like_shape(like_, {want_frame ? num_arcs : 0}, ScalarType::Int);
  const Tensor scores = empty_like_shape(floats, {num_arcs});
  write_lattice(backend_, lattice, num_pieces, link_splits.data(),
                {data_of<int32_t>(state_splits), data_of<Arc>(arcs), data_of<int32_t>(map),
                 want_frame ? data_of<int32_t>(frame) : nullptr, data_of<float>(scores)});
  return {fsa_splits, state_splits, arcs, map, frame, scores};
}

// frame_splits (on the CPU), token_splits, states and scores: all tokens, as lists [utterance][frame][token].
inline std::vector<Tensor> DenseBatch::histories(const Tensor& floats) {
  std::vector<int32_t> frame_splits;
  for (const DenseUtterance& u : utterances_) frame_splits.push_back(u.first_row);
  frame_splits.push_back(static_cast<int32_t>(num_rows_));
  const OrderedTokens all = order(true, num_tokens_);
  const Tensor token_splits = empty_like_shape(like_, {num_rows_ + 1}, ScalarType::Int);
  const Tensor states = empty_like_shape(like_, {num_tokens_}, ScalarType::Int), scores = empty_like_shape(floats, {num_tokens_});
  backend_.copy(token_splits.mutable_data_ptr(), all.row_begin, (num_rows_ + 1) * static_cast<int64_t>(sizeof(int32_t)));
  write_history(backend_, s_, all, data_of<int32_t>(states), data_of<float>(scores));
  return {on_host(like_, frame_splits.data(), static_cast<int64_t>(frame_splits.size())), token_splits, states, scores};
}

using Tensors6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Tensors10 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Tensors6 fsa_intersect_dense_batch(const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs,
                                          const Tensor& scores, const Tensor& log_probs, const Tensor& segments, const Tensor& a_index,
                                          const Tensor& b_index, double search_beam, double output_beam, int64_t min_active,
                                          int64_t max_active, bool allow_partial, bool want_frame) {
  DenseBatch batch(backend, fsa_splits, state_splits, arcs, scores, log_probs, segments, a_index, b_index,
                   {search_beam, output_beam, min_active, max_active, allow_partial}, {});
  batch.search();
  const std::vector<Tensor> x = batch.lattice(scores, want_frame);
  return {x[0], x[1], x[2], x[3], x[4], x[5]};
}

inline Tensors10 fsa_intersect_dense_batch_online(
    const Backend& backend, const Tensor& fsa_splits, const Tensor& state_splits, const Tensor& arcs, const Tensor& scores,
    const Tensor& log_probs, const Tensor& segments, const Tensor& a_index, const Tensor& b_index, double search_beam,
    double output_beam, int64_t min_active, int64_t max_active, bool allow_partial, const Tensor& frame_splits,
    const Tensor& token_splits, const Tensor& token_states, const Tensor& token_scores) {
  DenseBatch batch(backend, fsa_splits, state_splits, arcs, scores, log_probs, segments, a_index, b_index,
                   {search_beam, output_beam, min_active, max_active, allow_partial},
                   {frame_splits, token_splits, token_states, token_scores});
  batch.search();
  const std::vector<Tensor> x = batch.lattice(scores, true), h = batch.histories(scores);
  return {x[0], x[1], x[2], x[3], x[4], x[5], h[0], h[1], h[2], h[3]};
}

}  // namespace
}  // namespace lattica
