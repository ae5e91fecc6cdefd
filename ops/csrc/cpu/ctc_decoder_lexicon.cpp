// The lexicon of a CTC decoder: reading its text, finding its words in a vocabulary, building the trie.
#include "../ctc_decoder_lexicon.h"

#include "../fsa_torch.h"

namespace lattica {
namespace {

std::string_view as_text(const Tensor& bytes, const char* name) {
  STD_TORCH_CHECK(bytes.dim() == 1 && bytes.scalar_type() == ScalarType::Byte && bytes.is_contiguous(), name, " must be contiguous bytes");
  return {const_data<char>(bytes), static_cast<size_t>(bytes.size(0))};
}

// Words with a line end after each.
std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

Tensors5 ctc_decoder_read_lexicon_cpu(const Tensor& text, const Tensor& tokens, std::string name) {
  const LexiconText lexicon = read_lexicon(as_text(text, "text"), split_lines(as_text(tokens, "tokens")));
  STD_TORCH_CHECK(lexicon.error.message.empty(), name, ":", lexicon.error.line, ": ", lexicon.error.message);
  return {words_to_tensor(lexicon.words, text), to_tensor(lexicon.tokens, text), to_tensor(lexicon.splits, text),
          to_tensor(lexicon.word_of, text), to_tensor(lexicon.lines, text)};
}

// The number of each word in the vocabulary; -1: not there.
Tensor ctc_decoder_match_words_cpu(const Tensor& words, const Tensor& vocabulary) {
  const std::vector<std::string_view> wanted = split_lines(as_text(words, "words")), known = split_lines(as_text(vocabulary, "vocabulary"));
  Vocabulary table;
  table.reserve(known.size());
  for (std::string_view word : known) table.add(word);
  Tensor ids = new_ints(words, {static_cast<int64_t>(wanted.size())});
  int32_t* out = data<int32_t>(ids);
  CpuBackend{}.for_each(static_cast<int64_t>(wanted.size()), [&](int64_t i) { out[i] = table.find(wanted[i]); });
  return ids;
}

std::tuple<Tensor, Tensor> ctc_decoder_build_trie_cpu(const Tensor& tokens, const Tensor& splits, const Tensor& words, const Tensor& scores, std::string smearing) {
  check_ints(tokens, "tokens");
  check_splits(splits, "splits", tokens.size(0));
  check_ints(words, "words");
  const int64_t n = words.size(0);
  STD_TORCH_CHECK(splits.size(0) == n + 1 && scores.dim() == 1 && scores.size(0) == n && scores.scalar_type() == ScalarType::Float && scores.is_contiguous(),
                  "splits must hold one number more than words, scores as many float32");
  STD_TORCH_CHECK(smearing == "none" || smearing == "max" || smearing == "logadd", "smearing must be none, max or logadd, got ", smearing);
  TrieBuilder builder(const_data<int32_t>(tokens), const_data<int32_t>(splits), const_data<int32_t>(words), const_data<float>(scores), static_cast<int32_t>(n));
  const int64_t count = builder.sort();
  Tensor nodes = new_ints(tokens, {count, 8});
  builder.run(smearing == "max" ? Smearing::kMax : smearing == "none" ? Smearing::kNone : Smearing::kLogAdd, static_cast<TrieNode*>(nodes.mutable_data_ptr()), count);
  return {nodes, to_tensor(builder.words, tokens)};
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("ctc_decoder_read_lexicon", TORCH_BOX(&ctc_decoder_read_lexicon_cpu));
  m.impl("ctc_decoder_match_words", TORCH_BOX(&ctc_decoder_match_words_cpu));
  m.impl("ctc_decoder_build_trie", TORCH_BOX(&ctc_decoder_build_trie_cpu));
}

}  // namespace
}  // namespace lattica
