// What the kernels of attention's backward pass do on a tile of scores, row by row.
#pragma once
#include "attention/scores.cuh"

// What scores are lowered by before the exponential: the log-sum-exp; 0 of a query that sees nothing, and NaN where it is
// +inf, which some forward passes make of a score of +inf: its weights are no numbers.
__device__ __forceinline__ COMPUTED level_of(COMPUTED lse) {
  return is_finite(lse) ? lse : lse == minus_infinity(lse) ? (COMPUTED)0 : lse - lse;
}

// Products of queries and keys in `tile`, of incoming gradients and values in `gradients` become, as STORAGE: in `tile`
// the gradient of the scores before the cap, or, with WEIGHTS, the weights that met the values, and in `gradients` the
// gradient of the scores. lse, delta: (B, H, L). query_at(row): the Query of a row; number_of(row): its place in lse.
// each(round, step, query, key, bits, dx): told of all VECTOR gradients that a thread makes, 0 where not seen.
template <bool WEIGHTS, class QueryAt, class NumberOf, class Each>
__device__ __forceinline__ void gradients_of_scores(
    const Scores& s, COMPUTED* tile, COMPUTED* gradients, const COMPUTED* lse, const COMPUTED* delta, int start,
    const unsigned (&seen)[ROUNDS], QueryAt query_at, NumberOf number_of, Each each) {
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) {
    const int row = row_of_round(n);
    if (!row_exists(row)) continue;
    const Query q = query_at(row);
    COMPUTED level = 0, row_delta = 0;
    if (q.here) {
      level = level_of(lse[number_of(row)]);
      row_delta = delta[number_of(row)];
    }
    COMPUTED p[STEPS][VECTOR], dx[STEPS][VECTOR];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
      const int j = start + key_of_step(k);
      const Numbers product = *reinterpret_cast<const Numbers*>(tile + row * PITCH_SCORES + key_of_step(k));
      const Numbers change = *reinterpret_cast<const Numbers*>(gradients + row * PITCH_SCORES + key_of_step(k));
      unsigned bits = seen[n] >> (k * VECTOR) & ((1u << VECTOR) - 1);
      COMPUTED y[VECTOR], f[VECTOR];
#pragma unroll
      for (int t = 0; t < VECTOR; ++t) {
        y[t] = product.v[t];
        f[t] = 1;
      }
      s.scores(q, j, y, bits);
      if (EXTRAS && s.threshold > 0 && bits != 0) s.factors(q, j, f);
#pragma unroll
      for (int t = 0; t < VECTOR; ++t) {
        const bool sees = bits >> t & 1;
        const COMPUTED weight = sees ? power_of_e(y[t] - level) : (COMPUTED)0;
        COMPUTED d = weight * (change.v[t] * f[t] - row_delta);
        if (EXTRAS && s.cap > 0) d *= 1 - y[t] / s.cap * (y[t] / s.cap);
        dx[k][t] = sees ? d : (COMPUTED)0;
        p[k][t] = sees ? weight * f[t] : (COMPUTED)0;
      }
      each(n, k, q, j, bits, dx[k]);
    }
    if (TENSOR_CORES) __syncwarp();
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
      store_weights(WEIGHTS ? gradients : tile, row, key_of_step(k), dx[k]);
      if (WEIGHTS) store_weights(tile, row, key_of_step(k), p[k]);
    }
  }
}
