// The schema of every op of the namespace `lattica`, one a statement. ops/build reads this file, too, when there is no
// compiler and ops/reference serves, so keep each schema in string literals of one `m.def(...)`.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lattica, m) {
  // The transducer recursion and its occupations: see ops/mutual_information.py.
  m.def("mutual_information(Tensor px, Tensor py, Tensor? boundary, bool want_grad) -> "
        "(Tensor scores, Tensor px_grad, Tensor py_grad)");

  // The bands of symbol positions that the pruned loss keeps: see ops/rnnt_prune.py.
  m.def("rnnt_prune_ranges(Tensor px_grad, Tensor py_grad, Tensor boundary, int s_range) -> Tensor");

  // Log-probabilities of the joiner-free transducer: see ops/rnnt_additive.py.
  m.def("rnnt_additive_log_probs(Tensor am, Tensor lm, Tensor? log_unigram, Tensor symbols, Tensor? boundary, int blank, "
        "float lm_only_scale, float am_only_scale, str rnnt_type) -> "
        "(Tensor px, Tensor py, Tensor am_max, Tensor lm_max, Tensor lm_sum, Tensor products)");
  m.def("rnnt_additive_log_probs_backward(Tensor px_grad, Tensor py_grad, Tensor am, Tensor lm, Tensor? log_unigram, "
        "Tensor symbols, Tensor? boundary, Tensor am_max, Tensor lm_max, Tensor lm_sum, Tensor products, int blank, "
        "float lm_only_scale, float am_only_scale, str rnnt_type) -> (Tensor am_grad, Tensor lm_grad, Tensor unigram_grad)");

  // Depthwise convolution over time, channels last: see ops/depthwise_conv1d.py.
  m.def("depthwise_conv1d(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def("depthwise_conv1d_backward(Tensor grad, Tensor x, Tensor weight) -> "
        "(Tensor x_grad, Tensor weight_grad, Tensor bias_grad)");

  // x · sigmoid(x - 1) with dropout, and its derivative: see ops/double_swish.py.
  m.def("double_swish(Tensor x, Tensor? bytes, int drop) -> (Tensor y, Tensor derivative)");

  // The steps of a tile of the fused loss between its matrix products: see ops/rnnt_loss_fused.py.
  m.def("joiner_hidden(Tensor am, Tensor lm, Tensor am_rows, Tensor lm_rows, str activation, Tensor(a!) hidden) -> ()");
  m.def("joiner_hidden_grad(Tensor am, Tensor lm, Tensor am_rows, Tensor lm_rows, str activation, Tensor hidden, "
        "Tensor hidden_grad, Tensor(a!) am_grad, Tensor(b!) lm_grad) -> ()");
  m.def("joiner_log_probs(Tensor logits, Tensor symbols, int blank, bool hat) -> "
        "(Tensor symbol, Tensor blank, Tensor normalizer)");
  m.def("joiner_logits_grad(Tensor logits, Tensor? logits_rows, Tensor normalizer, Tensor symbols, int blank, bool hat, "
        "Tensor symbol_grad, Tensor blank_grad, Tensor(a!) grad) -> ()");

  // Swoosh activations: see ops/swoosh.py.
  m.def("swoosh(Tensor x, str kind, bool want_deriv) -> (Tensor y, Tensor deriv)");

  // Self-attention with relative positions: see ops/relative_attention.py.
  m.def("relative_attention(Tensor x, Tensor cos, Tensor sin, Tensor lens, int num_heads) -> (Tensor out, Tensor weights)");
  m.def("relative_attention_backward(Tensor grad, Tensor x, Tensor weights, Tensor cos, Tensor sin, Tensor lens, "
        "int num_heads) -> Tensor");

  // The optimizer's step: see ops/scaled_adam.py.
  m.def("scaled_adam(Tensor(a!) param, Tensor grad, Tensor(b!) momentum, Tensor(c!) second, float grad_factor, float beta1, "
        "float beta2, float rate, float eps, float scale_step) -> ()");

  // FSAs: fsa_splits and state_splits say where states and arcs begin, arcs is int32 (A, 3), scores float64. Algorithms return
  // (fsa_splits, state_splits, arcs, arc map), where an arc map is one tensor, two (one for each input), or lists
  // (map_splits, map). See ops/scores.py.
  m.def("fsa_state_scores(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool forward, "
        "bool log_semiring, bool want_shares) -> (Tensor, Tensor, Tensor)");
  m.def("fsa_state_scores_grad(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool forward, "
        "bool log_semiring, Tensor state_scores, Tensor best, Tensor shares, Tensor state_grad) -> Tensor");
  // The same for all FSAs at once, level by level: what runs on CUDA. fsa_levels gives all states by levels and, on the CPU, where
  // each level begins; `entering` lists the arcs into each state, in their order. See csrc/fsa_levels.h.
  m.def("fsa_levels(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> (Tensor, Tensor)");
  m.def("fsa_state_scores_by_level(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor order, Tensor level_splits, "
        "Tensor entering_splits, Tensor entering, Tensor scores, bool forward, bool log_semiring, bool want_shares) -> "
        "(Tensor, Tensor, Tensor)");
  m.def("fsa_state_scores_by_level_grad(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor order, Tensor level_splits, "
        "Tensor entering_splits, Tensor entering, Tensor scores, bool forward, bool log_semiring, Tensor state_scores, "
        "Tensor best, Tensor shares, Tensor state_grad) -> Tensor");
  m.def("fsa_arc_post(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor forward, Tensor backward) -> Tensor");
  m.def("fsa_arc_post_grad(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor forward, Tensor post_grad) -> "
        "(Tensor arc_grad, Tensor forward_grad, Tensor backward_grad)");
  m.def("fsa_shortest_path(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor best) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_random_paths(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor shares, Tensor path_splits, int seed) -> "
        "(Tensor, Tensor)");
  // See ops/fsa_properties.py, ops/topologies.py, ops/algorithms.py and ops/rewrite.py.
  m.def("fsa_properties(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> Tensor");
  m.def("fsa_ctc_graph(Tensor row_splits, Tensor symbols, bool modified) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_connect(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_keep(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor arc_mask, bool all_states) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_top_sort(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_arc_sort(Tensor state_splits, Tensor arcs) -> Tensor");
  m.def("fsa_intersect(Tensor a_fsa_splits, Tensor a_state_splits, Tensor a_arcs, Tensor a_labels, Tensor b_fsa_splits, "
        "Tensor b_state_splits, Tensor b_arcs, Tensor a_index, Tensor b_index, bool epsilons) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  // fsa_intersect without epsilons for a whole batch, in two steps: what runs on CUDA. See csrc/fsa_intersect_batch.h.
  m.def("fsa_intersect_states(Tensor a_fsa_splits, Tensor a_state_splits, Tensor a_arcs, Tensor a_labels, Tensor a_order, "
        "Tensor b_fsa_splits, Tensor b_state_splits, Tensor b_arcs, Tensor b_labels, Tensor b_order, "
        "Tensor a_index, Tensor b_index, Tensor offsets) -> Tensor");
  m.def("fsa_intersect_arcs(Tensor a_fsa_splits, Tensor a_state_splits, Tensor a_arcs, Tensor a_labels, Tensor a_order, "
        "Tensor b_fsa_splits, Tensor b_state_splits, Tensor b_arcs, Tensor b_labels, Tensor b_order, "
        "Tensor a_index, Tensor b_index, Tensor offsets, Tensor keys) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_remove_epsilon(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool all_paths) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_determinize(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, int max_states) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_minimize(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor aux, float delta) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_potentials(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, bool log_semiring, "
        "float tolerance, int max_sweeps) -> Tensor");
  // Values of arcs by an arc map: see ops/fsa_pick.py.
  m.def("fsa_pick(Tensor src, Tensor map, float filler) -> Tensor");
  m.def("fsa_pick_sum(Tensor src, Tensor map_splits, Tensor map) -> Tensor");
  m.def("fsa_pick_lists(Tensor src, Tensor map_splits, Tensor map, float filler) -> (Tensor, Tensor)");
  // The same for all FSAs of a batch at once: what fsa_shortest_path and so on are on CUDA. See csrc/fsa_batch.h.
  m.def("fsa_shortest_path_batch(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor best) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_random_paths_batch(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor shares, Tensor path_splits, int seed) "
        "-> (Tensor, Tensor)");
  m.def("fsa_connect_batch(Tensor fsa_splits, Tensor state_splits, Tensor arcs) -> (Tensor, Tensor, Tensor, Tensor)");
  // See ops/dense.py.
  m.def("fsa_intersect_dense(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor log_probs, "
        "Tensor segments, Tensor a_index, Tensor b_index, float search_beam, float output_beam, int min_active, "
        "int max_active, bool allow_partial, bool want_frame) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The same going on from tokens (states and scores) of frames seen before, as lists [segment][frame][token].
  m.def("fsa_intersect_dense_online(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor log_probs, "
        "Tensor segments, Tensor a_index, Tensor b_index, float search_beam, float output_beam, int min_active, "
        "int max_active, bool allow_partial, Tensor frame_splits, Tensor token_splits, Tensor token_states, "
        "Tensor token_scores) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // Both frame by frame for a whole batch, as GPUs do; segments, a_index, b_index and frame_splits lie on the CPU.
  m.def("fsa_intersect_dense_batch(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, Tensor log_probs, "
        "Tensor segments, Tensor a_index, Tensor b_index, float search_beam, float output_beam, int min_active, "
        "int max_active, bool allow_partial, bool want_frame) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("fsa_intersect_dense_batch_online(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor scores, "
        "Tensor log_probs, Tensor segments, Tensor a_index, Tensor b_index, float search_beam, float output_beam, "
        "int min_active, int max_active, bool allow_partial, Tensor frame_splits, Tensor token_splits, Tensor token_states, "
        "Tensor token_scores) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // CTC on the graphs of label sequences, and alignments: see ops/ctc_loss.py and ops/forced_align.py.
  m.def("fsa_ctc_read(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor? aux) -> (Tensor, Tensor, Tensor)");
  m.def("fsa_ctc_loss(Tensor log_probs, Tensor segments, Tensor token_splits, Tensor tokens, Tensor skips, "
        "float delay_penalty, bool want_grad) -> (Tensor total, Tensor occupations)");
  m.def("fsa_ctc_loss_grad(Tensor occupations, Tensor total_grad, Tensor segments, Tensor token_splits, Tensor tokens, "
        "int N, int T, int C) -> Tensor");
  m.def("fsa_ctc_align(Tensor log_probs, Tensor segments, Tensor token_splits, Tensor tokens, Tensor skips, int blank) -> "
        "Tensor");
  // The same for a whole batch: what fsa_ctc_read and so on are on CUDA. See csrc/ctc_batch.h.
  m.def("fsa_ctc_read_batch(Tensor fsa_splits, Tensor state_splits, Tensor arcs, Tensor? aux) -> (Tensor, Tensor, Tensor)");
  m.def("fsa_ctc_loss_batch(Tensor log_probs, Tensor segments, Tensor token_splits, Tensor tokens, Tensor skips, "
        "float delay_penalty, bool want_grad) -> (Tensor total, Tensor occupations)");
  m.def("fsa_ctc_loss_grad_batch(Tensor occupations, Tensor total_grad, Tensor segments, Tensor token_splits, Tensor tokens, "
        "int N, int T, int C) -> Tensor");
  m.def("fsa_ctc_align_batch(Tensor log_probs, Tensor segments, Tensor token_splits, Tensor tokens, Tensor skips, int blank) -> "
        "Tensor");
  // See ops/nbest.py.
  m.def("fsa_edit_distance(Tensor ref_splits, Tensor refs, Tensor hyp_splits, Tensor hyps, Tensor hyp_to_ref) -> Tensor");

  // n-gram models: an automaton is six tensors (ops/ngram.py); KenLM's binaries are a handle.
  m.def("ngram_parse_arpa(Tensor text, str name) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("ngram_score(Tensor arc_splits, Tensor arc_words, Tensor arc_log_probs, Tensor arc_next, Tensor backoff_state, "
        "Tensor backoff_log_prob, Tensor states, Tensor words) -> (Tensor, Tensor)");
  m.def("ngram_kenlm_open(Tensor like, str library, str path) -> (Tensor, Tensor)");
  m.def("ngram_kenlm_score(Tensor states, Tensor words, int handle) -> (Tensor, Tensor)");
  m.def("ngram_kenlm_close(Tensor like, int handle) -> ()");

  // Beam search of transducers on graphs, a frame a call; frames of the lattice are what advance returned, without contexts and
  // scores, one after another: see ops/rnnt_decode.py.
  m.def("decode_rnnt_advance(Tensor[] graph_splits, Tensor[] graph_arcs, Tensor[] graph_scores, Tensor graph_of_stream, "
        "Tensor stream_splits, Tensor context_splits, Tensor contexts, Tensor graph_states, Tensor scores, Tensor log_probs, "
        "int num_context_ids, float beam, int max_states, int max_contexts, bool final_frame) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("decode_rnnt_lattice(Tensor[] graph_splits, Tensor[] graph_arcs, Tensor[] graph_scores, Tensor graph_of_stream, "
        "Tensor[] frames, Tensor rows_before, Tensor history_splits, Tensor history, bool allow_partial, bool final_frame) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // The same frame in arrays of fixed size, without a question from the host: see ops/rnnt_decode_batch.py.
  m.def("decode_rnnt_batch_scratch(Tensor like, int streams, int vocab_size, int max_contexts, int max_states, int candidates, "
        "int most_words) -> Tensor");
  m.def("decode_rnnt_batch_advance(Tensor[] graphs, Tensor[] states, Tensor rows, Tensor log_probs, Tensor(a!) scratch, int n, "
        "int num_context_ids, float beam, int max_states, int max_contexts, bool final_frame, int candidates, int arc_capacity, "
        "int most_graph_states, int block_size) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // The CTC decoder (ops/ctc_decoder.py). Decoders and streams are numbers; results are scores, where each utterance's
  // hypotheses and each hypothesis's events begin, the events (token, frame, last frame, word) and their highest emissions.
  m.def("ctc_decoder_read_lexicon(Tensor text, Tensor tokens, str name) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("ctc_decoder_match_words(Tensor words, Tensor vocabulary) -> Tensor");
  m.def("ctc_decoder_build_trie(Tensor tokens, Tensor splits, Tensor words, Tensor scores, str smearing) -> (Tensor, Tensor)");
  m.def("ctc_decoder_new(Tensor options, Tensor[] trie, Tensor[] lm, Tensor[] hot, int kenlm, bool table, int num_words) -> Tensor");
  m.def("ctc_decoder_decode(Tensor emissions, Tensor lengths, int decoder, int nbest) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("ctc_decoder_close(Tensor like, int decoder) -> ()");
  m.def("ctc_decoder_stream(Tensor like, int decoder, int start_state) -> Tensor");
  m.def("ctc_decoder_stream_read(Tensor emissions, int stream, int decoder, int from_frame, int to_frame) -> Tensor");
  m.def("ctc_decoder_stream_end(Tensor like, int stream) -> Tensor");
  m.def("ctc_decoder_stream_results(Tensor like, int stream, int nbest) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("ctc_decoder_stream_questions(Tensor like, int stream) -> (Tensor, Tensor)");
  m.def("ctc_decoder_stream_answer(Tensor scores, Tensor states, int stream) -> ()");
  m.def("ctc_decoder_stream_close(Tensor like, int stream) -> ()");
}
