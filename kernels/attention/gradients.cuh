// What the kernels of attention's backward pass do on a tile of scores, row by row.
#pragma once
#include "attention/scores.cuh"
#include "attention/tile_rows.cuh"

// What scores are lowered by before the exponential: the log-sum-exp; 0 of a query that sees nothing, and NaN where it is
// +inf, which some forward passes make of a score of +inf: its weights are no numbers.
__device__ __forceinline__ COMPUTED level_of(COMPUTED lse) {
  return is_finite(lse) ? lse : lse == minus_infinity(lse) ? (COMPUTED)0 : lse - lse;
}

// The weight of a score, 1 at most. Where another backend made the log-sum-exp, sums in another order may leave the score
// a unit in the last place above it, which of large scores is a large number. NaN stays NaN.
__device__ __forceinline__ COMPUTED weight_of(COMPUTED score, COMPUTED level) {
  const COMPUTED below = score - level;
  return power_of_e(below > 0 ? (COMPUTED)0 : below);
}

// A block's shared memory.
struct Tiles {
  Padded<PITCH_E> queries, keys;
  Padded<PITCH_V> incoming, values;
  ScoreTile scores, changes;  // products of queries and keys; of incoming gradients and values
  WeightTile weights, gradients;  // what becomes of them, in their places
  int* flags;
  STORAGE* odd_row;
  int* odd;  // two numbers: in which step the rows that sums are made of were not finite

  __device__ __forceinline__ explicit Tiles(unsigned char* shared)
      : queries{numbers(shared + AT_QUERY)}, keys{numbers(shared + AT_KEY)}, incoming{numbers(shared + AT_GRAD)},
        values{numbers(shared + AT_VALUE)}, scores{reinterpret_cast<COMPUTED*>(shared + AT_SCORES)},
        changes{reinterpret_cast<COMPUTED*>(shared + AT_CHANGES)}, weights{numbers(shared + AT_SCORES)},
        gradients{numbers(shared + AT_CHANGES)}, flags(reinterpret_cast<int*>(shared + AT_FLAGS)),
        odd_row(numbers(shared + AT_ODD_ROW)), odd(reinterpret_cast<int*>(shared + AT_ODD)) {}
  __device__ __forceinline__ static STORAGE* numbers(unsigned char* at) { return reinterpret_cast<STORAGE*>(at); }
};

// Rows of an array, for a tile of them, and the distance of their columns.
struct Source {
  Rows rows;
  INDEX step;
};

// The products of a tile of scores into `scores` and `changes`. Not WIDE, all four tiles are there, behind a barrier that
// the caller puts; WIDE, all columns come through them from q, k, g, v, and the caller has put a barrier before.
__device__ __forceinline__ void products_of_tile(
    const Tiles& t, const Source& q, const Source& k, int E, const Source& g, const Source& v, int EV) {
  Product<BLOCK_M, BLOCK_N, true, true> products;
  if constexpr (WIDE) {
    multiply_all_columns<BLOCK_M, BLOCK_N, WIDTH_E>(products, t.queries, q.step, q.rows, t.keys, k.step, k.rows, E);
    products.store(t.scores);
    multiply_all_columns<BLOCK_M, BLOCK_N, WIDTH_V>(
        products, t.incoming, g.step, g.rows, t.values, v.step, v.rows, EV);
    products.store(t.changes);
  } else {
    products.clear();
    products.template multiply<WIDTH_E>(t.queries, t.keys);
    products.store(t.scores);
    products.clear();
    products.template multiply<WIDTH_V>(t.incoming, t.values);
    products.store(t.changes);
  }
}

// Some columns of one of them into its tile. Returns whether this thread met a number that is not finite.
template <int ROWS, int WIDTH, int PITCH>
__device__ __forceinline__ bool load_source(const Padded<PITCH>& tile, const Source& from, const Columns& columns) {
  return load_rows<ROWS, WIDTH>(tile, columns, from.step, from.rows);
}

// Products in `scores` and `changes` become, as STORAGE: in `weights` the gradient of the scores before the cap, or, with
// WEIGHTS, the weights that met the values, and in `gradients` the gradient of the scores. lse, delta: (B, H, L).
// query_at(row): the Query of a row; number_of(row): its place in lse.
// each(round, step, query, key, bits, dx): told of all VECTOR gradients that a thread makes, 0 where not seen.
template <bool WEIGHTS, class QueryAt, class NumberOf, class Each>
__device__ __forceinline__ void gradients_of_scores(
    const Scores& s, const Tiles& tiles, const COMPUTED* lse, const COMPUTED* delta, int start,
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
      const Numbers product = load_scores(tiles.scores, row, key_of_step(k));
      const Numbers change = load_scores(tiles.changes, row, key_of_step(k));
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
        const COMPUTED weight = sees ? weight_of(y[t], level) : (COMPUTED)0;
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
      store_weights(WEIGHTS ? tiles.gradients : tiles.weights, row, key_of_step(k), dx[k]);
      if (WEIGHTS) store_weights(tiles.weights, row, key_of_step(k), p[k]);
    }
  }
}
