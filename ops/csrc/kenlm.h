// KenLM's binaries, read by KenLM's own library: `libkenlm.so`, which `pip install kenlm` leaves beside its Python module.
//
// It is opened at run time, so nothing of KenLM is needed to compile this. The three classes below repeat only the order of
// the virtual functions and of the fields that its binary interface fixes; `KenLm::open` asks for values that are known in
// advance before it believes them.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "registry.h"
#include "text.h"

namespace lattica {
namespace kenlm {

struct Text {  // passed by value, as two words
  const char* data;
  size_t size;
};

class Vocabulary {
 public:
  virtual ~Vocabulary();
  virtual uint32_t index(const Text& word) const = 0;
  uint32_t begin_sentence, end_sentence, not_found;
};

class Model {
 public:
  virtual ~Model();
  virtual float score(const void* state, uint32_t word, void* next) const = 0;  // log10
  size_t state_size;
  const char *begin_sentence, *null_context;  // states
  const Vocabulary* vocabulary;
  unsigned char order;
};

// Called for each word while a model is loaded.
class Enumerate {
 public:
  virtual ~Enumerate() = default;
  virtual void add(uint32_t index, const Text& word) = 0;
};

}  // namespace kenlm

// A loaded model. Reading it is safe from any number of threads.
class KenLm {
 public:
  // Null, and `*error` says why, if the library or the file will not do.
  static std::shared_ptr<KenLm> open(const std::string& library, const std::string& path, std::string* error) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      *error = std::string("KenLM's library cannot be loaded: ") + dlerror();
      return nullptr;
    }
    using Construct = void (*)(void*);
    using Load = kenlm::Model* (*)(const char*, const void*, int);
    const auto construct = reinterpret_cast<Construct>(dlsym(handle, "_ZN2lm5ngram6ConfigC1Ev"));
    const auto load = reinterpret_cast<Load>(dlsym(handle, "_ZN2lm5ngram11LoadVirtualEPKcRKNS0_6ConfigENS0_9ModelTypeE"));
    if (construct == nullptr || load == nullptr) {
      *error = library + " does not export lm::ngram::LoadVirtual: it is not a KenLM that this program knows";
      return nullptr;
    }
    // Far larger than KenLM's Config; its third field is the listener for words, null at first.
    alignas(16) unsigned char config[1024] = {};
    construct(config);
    void* listener;
    std::memcpy(&listener, config + 16, sizeof(listener));
    if (config[0] != 1 || listener != nullptr) {
      *error = library + ": lm::ngram::Config has another layout than this program knows";
      return nullptr;
    }
    auto model = std::shared_ptr<KenLm>(new KenLm);
    Collect collect(&model->words_);
    kenlm::Enumerate* as_base = &collect;
    std::memcpy(config + 16, &as_base, sizeof(as_base));
    try {
      model->model_.reset(load(path.c_str(), config, 0));
    } catch (const std::exception& e) {
      *error = e.what();
      return nullptr;
    }
    if (!model->sound()) {
      *error = library + ": lm::base::Model has another layout than this program knows";
      (void)model->model_.release();  // not what it seems, so its destructor may not be, either
      return nullptr;
    }
    return model;
  }

  size_t state_size() const { return model_->state_size; }
  int32_t order() const { return model_->order; }
  uint32_t end_word() const { return model_->vocabulary->end_sentence; }
  const std::vector<std::string>& words() const { return words_; }
  const char* start() const { return model_->begin_sentence; }
  const char* empty() const { return model_->null_context; }
  // A state holds words, back-off weights (which follow from the words) and, in the last 4 bytes, how many.
  size_t state_length(const char* state) const { return static_cast<unsigned char>(state[state_size() - 4]); }
  float score(const void* state, uint32_t word, void* next) const {  // natural log
    return model_->score(state, word, next) * 2.302585093f;
  }

 private:
  struct Collect : kenlm::Enumerate {
    explicit Collect(std::vector<std::string>* words) : words_(words) {}
    void add(uint32_t index, const kenlm::Text& word) override {
      if (index >= words_->size()) words_->resize(index + 1);
      (*words_)[index].assign(word.data, word.size);
    }
    std::vector<std::string>* words_;
  };

  KenLm() = default;

  bool sound() const {
    if (!model_ || model_->state_size < 12 || model_->state_size > 512 || model_->state_size % 8 != 4) return false;
    if (model_->null_context - model_->begin_sentence != static_cast<ptrdiff_t>(model_->state_size)) return false;
    if (model_->order < 1 || 8 * (size_t{model_->order} - 1) + 4 > model_->state_size || words_.size() < 3) return false;
    const kenlm::Vocabulary& v = *model_->vocabulary;
    if (v.not_found != 0 || v.begin_sentence >= words_.size() || v.end_sentence >= words_.size()) return false;
    return words_[v.begin_sentence] == "<s>" && words_[v.end_sentence] == "</s>" && v.index({"<s>", 3}) == v.begin_sentence &&
           v.index({"</s>", 4}) == v.end_sentence && state_length(model_->null_context) == 0 && state_length(model_->begin_sentence) <= 1;
  }

  std::unique_ptr<kenlm::Model> model_;
  std::vector<std::string> words_;
};

// KenLM's states, which are structures, as numbers. State 0 is the empty context, state 1 the one after <s>.
class KenLmStates {
 public:
  explicit KenLmStates(std::shared_ptr<const KenLm> lm) : lm_(std::move(lm)), size_(lm_->state_size()), next_(size_) {
    table_.reserve(64);
    intern(lm_->empty());
    start_ = intern(lm_->start());
  }
  int32_t start_state() const { return start_; }
  int32_t size() const { return count_; }
  float score(int32_t state, int32_t word, int32_t* next) {
    const float log_prob = lm_->score(at(state), static_cast<uint32_t>(word), next_.data());
    *next = intern(next_.data());
    return log_prob;
  }
  float final(int32_t state) { return lm_->score(at(state), lm_->end_word(), next_.data()); }

 private:
  const char* at(int32_t state) const { return states_.data() + state * size_; }
  int32_t intern(const char* state) {
    const size_t n = lm_->state_length(state);
    const uint64_t hash = hash_bytes({state, n * sizeof(uint32_t)});
    const int32_t found = table_.find(hash, [&](int32_t i) { return lm_->state_length(at(i)) == n && std::memcmp(at(i), state, n * sizeof(uint32_t)) == 0; });
    if (found >= 0) return found;
    states_.insert(states_.end(), state, state + size_);
    table_.insert(hash, count_);
    return count_++;
  }

  std::shared_ptr<const KenLm> lm_;
  size_t size_;
  std::vector<char> next_, states_;
  IndexTable table_;
  int32_t count_ = 0, start_ = 0;
};

// A loaded model with the states that Python has asked for.
struct OpenKenLm {
  explicit OpenKenLm(std::shared_ptr<const KenLm> model) : lm(model), states(model) {}
  std::shared_ptr<const KenLm> lm;
  std::mutex mutex;  // of the states
  KenLmStates states;
};

}  // namespace lattica
