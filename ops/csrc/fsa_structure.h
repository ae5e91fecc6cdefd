// connect, keep and top_sort: keep the useful states, those of some arcs; order states so that arcs go up. Properties. One FSA a call.
#pragma once

#include "fsa.h"

namespace lattica {

// States on a path from start to final (both marked beforehand), in their old order; nothing at all if there is no such path.
inline void connect(const FsaView& fsa, const char* from_start, const char* to_final, Renumbering* out) {
  std::fill(out->order, out->order + fsa.num_states, -1);
  if (fsa.num_states == 0 || !to_final[0]) return;
  for (int32_t s = 0; s < fsa.num_states; ++s)
    if (from_start[s] & to_final[s]) out->append(s);
}

// All states, or those that arcs of the mask touch, the start and the final state, in their old order.
inline void keep(const FsaView& fsa, const bool* arc_mask, bool all_states, Renumbering* out) {
  if (fsa.num_states == 0) return;
  int32_t* const order = out->order;
  std::fill(order, order + fsa.num_states, all_states ? 0 : -1);
  order[0] = order[fsa.final_state()] = 0;
  for (int32_t a = fsa.first_arc(); a < fsa.first_arc() + fsa.num_arcs(); ++a)
    if (arc_mask[a]) order[fsa.arcs[a].src] = order[fsa.arcs[a].dest] = 0;
  for (int32_t s = 0; s < fsa.num_states; ++s)
    if (order[s] == 0) out->append(s);
}

// Kahn's algorithm on the states reached from the start, first come first served, self-loops left out of account. The final state
// comes last, reached or not.
inline void top_sort(const FsaView& fsa, Renumbering* out) {
  if (fsa.num_states == 0) return;
  std::vector<char> seen(fsa.num_states);
  mark_accessible(fsa, seen.data());
  std::vector<int32_t> waiting(fsa.num_states, 0);
  int32_t reached = 0;
  for (int32_t s = 0; s < fsa.num_states; ++s) {
    if (!seen[s]) continue;
    ++reached;
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a)
      if (fsa.arcs[a].dest != s) ++waiting[fsa.arcs[a].dest];
  }
  const int32_t final_state = fsa.final_state();
  const bool cyclic_start = waiting[0] > 0;
  std::fill(out->order, out->order + fsa.num_states, -1);
  out->append(0);
  for (int32_t i = 0; i < out->count && !cyclic_start; ++i)
    for (int32_t s = out->states[i], a = fsa.begin(s); a < fsa.end(s); ++a) {
      const int32_t d = fsa.arcs[a].dest;
      if (d != s && --waiting[d] == 0 && d != final_state) out->append(d);
    }
  if (final_state != 0) out->append(final_state);
  if (cyclic_start || out->count != reached + (seen[final_state] ? 0 : 1)) out->error = "top_sort: the FSA has a cycle (self-loops aside)";
}

// The bits of ops/fsa_properties.py. The arcs need not be valid: it is what this finds out.
inline int32_t properties(const FsaView& fsa) {
  const int32_t n = fsa.num_states;
  bool valid = n != 1, up = true, up_or_loop = true, sorted = true, deterministic = true, no_epsilon = true, left = true;
  std::vector<char> entered(n, 0);
  for (int32_t s = 0; s < n; ++s) {
    left &= s == n - 1 || fsa.end(s) > fsa.begin(s);
    for (int32_t a = fsa.begin(s); a < fsa.end(s); ++a) {
      const Arc& arc = fsa.arcs[a];
      const bool inside = arc.dest >= 0 && arc.dest < n;
      valid &= inside && arc.src == s && s != n - 1 && arc.label >= -1 && (arc.label == -1) == (arc.dest == n - 1);
      up &= arc.dest > arc.src;
      up_or_loop &= arc.dest >= arc.src;
      no_epsilon &= arc.label != 0;
      if (inside) entered[arc.dest] = 1;
      if (a == fsa.begin(s)) continue;
      const int32_t before = fsa.arcs[a - 1].label;
      sorted &= !label_less(arc.label, before);
      deterministic &= label_less(before, arc.label);
    }
  }
  bool accessible = true;
  for (int32_t s = 1; s < n; ++s) accessible &= entered[s] != 0;
  return valid * 0x01 | (n > 0) * 0x02 | up_or_loop * 0x04 | up * 0x08 | sorted * 0x10 | deterministic * 0x20 |
         no_epsilon * 0x40 | accessible * 0x80 | left * 0x100;
}

}  // namespace lattica
