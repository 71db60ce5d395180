// A recurrent layer backward through time: all steps of a tile of rows in one launch, or one step of a tile of rows and
// units. It leaves the gradients of every step's sums, of which matrix products then make those of the weights and of x.
//
// Constants: as in forward.cu. A step's product takes the sums' gradients of the step that was undone before, FIRST_GATES
// blocks of UNITS_WIDE numbers (of GRU_AFTER: r, z and q), to HIDDEN_TILE states. The second one takes the gradient of
// r h (GRU_BEFORE: dn to units) or of the projected state (to units).
#include "recurrence/rows.cuh"
#include "recurrence/cells.cuh"

#define FIRST_TERMS (FIRST_GATES * UNITS_WIDE)
#if KIND == GRU_BEFORE
#define SECOND_TERMS UNITS_WIDE
#else
#define SECOND_TERMS HIDDEN_WIDE
#endif

// What backward reads of a unit's step.
struct Kept {
  COMPUTED gates[4];  // as many as there are; then the gradients of their sums
  COMPUTED c_new, c_old;  // LSTM
  COMPUTED h_new;  // rnn
};

// Sizes: T steps, B rows, D directions (gridDim.z), H units, P the size of the hidden state; a place is a row's step.
// grid: tiles of rows, tiles of states (in PHASE 2: of units), directions. block: THREADS.
// The launch undoes the steps begin to end, counted from the last one; number T stands for what is left after all.
// All arrays belong to the caller. What may be null is so said; what is said to be written holds zeros past the lengths.
extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrence_backward(
    const STORAGE* __restrict__ weights,  // [D][tiles][FIRST_TERMS / PACK][HIDDEN_TILE][PACK], w_hh transposed
    const STORAGE* __restrict__ second,  // [D][tiles][SECOND_TERMS / PACK][UNIT_TILE][PACK], w_hn or w_hr; or null
    const STORAGE* __restrict__ h0,  // [D][B][P], or null: zeros
    const STORAGE* __restrict__ c0,  // [D][B][H], or null: zeros
    const LENGTH* __restrict__ lengths,  // [B], or null: every row has all steps
    const long long* __restrict__ order,  // [B], or null; see find_rows
    const STORAGE* __restrict__ full,  // states of all steps, [D P] at each place of strides full_time, full_row
    const STORAGE* __restrict__ kept,  // [D][T][B][KEPT H]; null for an rnn
    const STORAGE* __restrict__ cells,  // [D][T][B][H]; null but for the LSTM
    const STORAGE* __restrict__ grad_output,  // strides grad_time, grad_row, grad_one; or null
    const STORAGE* __restrict__ grad_h,  // [D][B][P], or null
    const STORAGE* __restrict__ grad_c,  // [D][B][H], or null
    const COMPUTED* __restrict__ sums_before,  // [D][B][FIRST_TERMS], zeros past H; STEPWISE from the second launch on
    COMPUTED* __restrict__ sums_after,  // the same, written; STEPWISE
    COMPUTED* __restrict__ state_gradient,  // [D][B][P], read and written by the owner of a state; STEPWISE
    COMPUTED* __restrict__ cell_gradient,  // [D][B][H], read and written by the owner of a unit; STEPWISE
    COMPUTED* __restrict__ between_state,  // [D][B][SECOND_TERMS], zeros at the end: what the second takes; STEPWISE
    STORAGE* __restrict__ grad_sums,  // written: [places of x][D][GATES H], of the input's sums
    STORAGE* __restrict__ grad_new,  // written: [places of x][D][H], of w_hn h + b_hn; GRU_AFTER
    STORAGE* __restrict__ old_states,  // written: [places of x][D P], the states before each step; or null
    STORAGE* __restrict__ met,  // written: [places of x][D][H], what the second product took forward; or null
    STORAGE* __restrict__ arrived,  // written: [places of x][D][P], gradients of the projected states; or null
    STORAGE* __restrict__ grad_h0,  // written: [D][B][P]
    STORAGE* __restrict__ grad_c0,  // written: [D][B][H]; null but for the LSTM
    int begin, int end, int steps, int batch, int units, int hidden, bool only_last,
    INDEX place_time, INDEX place_row,  // in places, in x's order
    INDEX full_time, INDEX full_row, INDEX grad_time, INDEX grad_row, INDEX grad_one) {
  extern __shared__ __align__(16) unsigned char memory[];
  COMPUTED* shared = reinterpret_cast<COMPUTED*>(memory);
  int* rows = reinterpret_cast<int*>(shared + AT_ROWS);
  int* ends = rows + ROWS;
  FACTOR* ds = reinterpret_cast<FACTOR*>(shared + AT_STATE);  // [FACTOR_ROWS][FIRST_TERMS], rows STATE_STRIDE apart
  COMPUTED* carried = shared + AT_CARRIED;  // [ROWS][HIDDEN_TILE], gradients of states beside what the product gives
  COMPUTED* dc = shared + AT_CELL;  // [ROWS][UNIT_TILE]
  FACTOR* between = reinterpret_cast<FACTOR*>(shared + AT_BETWEEN);  // [FACTOR_ROWS][SECOND_TERMS], rows BETWEEN_STRIDE apart
  COMPUTED* sums = shared + AT_SUMS;
  const int d = blockIdx.z;

  find_rows(lengths, order, batch, steps, rows, ends);
  weights = weights_of_block<FIRST_TERMS * HIDDEN_TILE>(weights, shared + AT_WEIGHTS);
#if HAS_SECOND
  second = weights_of_block<SECOND_TERMS * UNIT_TILE>(second, shared + AT_SECOND);
#endif
  __syncthreads();

  // What earlier launches left.
  each_of_tile<HIDDEN_TILE>(rows, batch, hidden, [&](int i, bool is_there, INDEX row, int p) {
    const INDEX at = row * hidden + p;
    COMPUTED value = 0;
    if (is_there) value = begin == 0 && PHASE != 2 ? at_or_zero(grad_h, at) : !STEPWISE ? 0 : state_gradient[at];
    carried[i] = value;
  });
#if KIND == LSTM && !(PROJECTS && PHASE == 1)
  load_cells(dc, rows, batch, units, begin == 0, grad_c, cell_gradient);
#endif
#if PHASE == 2
  load_rows<SECOND_TERMS, BETWEEN_STRIDE>(between_state + (INDEX)d * batch * SECOND_TERMS, rows, between);
#else
  if (begin == 0) clear_rows<STATE_STRIDE>(ds);
  else load_rows<FIRST_TERMS, STATE_STRIDE>(sums_before + (INDEX)d * batch * FIRST_TERMS, rows, ds);
#if HAS_SECOND && PHASE == 0
  clear_rows<BETWEEN_STRIDE>(between);
#endif
#endif
  __syncthreads();

  const int most = longest_of(ends), longest = STEPWISE ? steps : most;
  for (int number = begin; number < min(end, longest + 1); ++number) {
    const int t = d ? number : longest - 1 - number, undone = d ? t - 1 : t + 1, before = d ? t + 1 : t - 1;
    const INDEX step = ((INDEX)d * steps + t) * batch;
    const bool is_step = number < longest;

    // What was kept of the step, of a place's unit.
    auto old_state = [&](int r, INDEX row, int p) {
      const bool is_first = d ? before >= ends[r] : before < 0;
      if (is_first) return at_or_zero(h0, ((INDEX)d * batch + row) * hidden + p);
      return widen(full[before * full_time + row * full_row + d * (INDEX)hidden + p]);
    };
    auto kept_of = [&](int r, INDEX row, int unit) {
      Kept found;
#pragma unroll
      for (int gate = 0; gate < KEPT; ++gate)
        found.gates[gate] = widen(kept[((step + row) * KEPT + gate) * (INDEX)units + unit]);
#if KIND == LSTM
      const bool is_first = d ? before >= ends[r] : before < 0;
      const INDEX at = (step + row) * units + unit;
      found.c_new = widen(cells[at]);
      if (is_first) found.c_old = at_or_zero(c0, ((INDEX)d * batch + row) * units + unit);
      else found.c_old = widen(cells[at + (before - t) * (INDEX)batch * units]);
#elif KIND == RNN_TANH || KIND == RNN_RELU
      found.h_new = widen(full[t * full_time + row * full_row + d * (INDEX)hidden + unit]);
#endif
      return found;
    };
    // The numbers of an item: row of the block, place in the tile, state or unit; false where it is not there.
    auto is_item = [&](int item, int tile, int size, int& r, int& j, int& unit) {
      r = item / tile, j = item % tile, unit = (int)blockIdx.y * tile + j;
      return (ROWS * tile % THREADS == 0 || r < ROWS) && unit < size && rows[r] >= 0;
    };

    // Gradients for the next products: of a sum, gate by gate UNITS_WIDE apart, and between the two products.
    auto put_sum = [&](int r, INDEX row, int at, COMPUTED value) {
      if (STEPWISE) sums_after[((INDEX)d * batch + row) * FIRST_TERMS + at] = value;
      else ds[r * STATE_STRIDE + at] = narrow<FACTOR>(value);
    };
    auto put_between = [&](int r, INDEX row, int at, COMPUTED value) {
      if (STEPWISE) between_state[((INDEX)d * batch + row) * SECOND_TERMS + at] = value;
      else between[r * BETWEEN_STRIDE + at] = narrow<FACTOR>(value);
    };

    // Asked for before the product, which hides the way to memory. A GRU's new gate needs it behind both products.
    COMPUTED h_old[HIDDEN_ITEMS];
    Kept was[ITEMS];
#if PHASE != 2
    COMPUTED arriving[HIDDEN_ITEMS];
#pragma unroll
    for (int i = 0; i < HIDDEN_ITEMS; ++i) {
      int r, j, p;
      if (!is_item(threadIdx.x + i * THREADS, HIDDEN_TILE, hidden, r, j, p) || !is_step || t >= ends[r]) continue;
      const INDEX row = rows[r];
      h_old[i] = old_state(r, row, p);
      arriving[i] = 0;
      if (grad_output && (!only_last || t + 1 == ends[r]))
        arriving[i] = widen(grad_output[t * grad_time + row * grad_row + (d * (INDEX)hidden + p) * grad_one]);
#if !PROJECTS
      was[i] = kept_of(r, row, p);
#endif
    }
    // The gradient of each state: what is carried, what the product brings, what comes in at this step.
    if (number > 0 && undone < most) {
      multiply<FIRST_TERMS, STATE_STRIDE, HIDDEN_TILE, FIRST_LANES, FIRST_EACH, FIRST_SPLIT, FIRST_STRIDE>(ds, weights, sums);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < HIDDEN_ITEMS; ++i) {
      const int item = threadIdx.x + i * THREADS;
      int r, j, p;
      if (!is_item(item, HIDDEN_TILE, hidden, r, j, p)) continue;
      const INDEX row = rows[r], place = (INDEX)t * place_time + row * place_row;
      COMPUTED dh = carried[item];
      if (number > 0 && undone < ends[r]) dh += sum_of<HIDDEN_TILE, FIRST_SPLIT, FIRST_STRIDE>(sums, r, j);
      if (!is_step) {
        grad_h0[((INDEX)d * batch + row) * hidden + p] = narrow<STORAGE>(dh);
        continue;
      }
      if (t >= ends[r]) {
        carried[item] = dh;
        continue;
      }
      dh += arriving[i];
      if (old_states) old_states[(place * gridDim.z + d) * hidden + p] = narrow<STORAGE>(h_old[i]);
#if PROJECTS
      carried[item] = 0;
      put_between(r, row, p, dh);
      if (arrived) arrived[(place * gridDim.z + d) * hidden + p] = narrow<STORAGE>(dh);
#else
      STORAGE* to = grad_sums + (place * gridDim.z + d) * (GATES * (INDEX)units) + p;
#if KIND == GRU_BEFORE
      COMPUTED dz, dn;
      gru_new_back(dh, was[i].gates[1], was[i].gates[2], h_old[i], dz, dn);
      carried[item] = dh;
      put_between(r, row, p, dn);
      put_sum(r, row, UNITS_WIDE + p, dz);
      to[units] = narrow<STORAGE>(dz);
      to[2 * (INDEX)units] = narrow<STORAGE>(dn);
#else
#if KIND == LSTM
      COMPUTED cell = dc[item];
      lstm_cell_back(was[i].gates, dh, cell, was[i].c_new, was[i].c_old);
      dc[item] = cell;
      carried[item] = 0;
#elif KIND == GRU_AFTER
      gru_cell_back(was[i].gates, dh, h_old[i]);
      carried[item] = dh;
      grad_new[(place * gridDim.z + d) * units + p] = narrow<STORAGE>(was[i].gates[3]);
#else
      was[i].gates[0] = rnn_cell_back(dh, was[i].h_new);
      carried[item] = 0;
#endif
#pragma unroll
      for (int gate = 0; gate < GATES; ++gate) {
        to[gate * (INDEX)units] = narrow<STORAGE>(was[i].gates[gate]);
        // The recurrent product's n of GRU_AFTER is q.
        put_sum(r, row, gate * UNITS_WIDE + p, was[i].gates[KIND == GRU_AFTER && gate == 2 ? 3 : gate]);
      }
#endif
#endif
    }
    __syncthreads();
#endif
#if HAS_SECOND && PHASE != 1
    if (!is_step || t >= most) continue;
#if PROJECTS || PHASE == 2
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      int r, j, unit;
      if (!is_item(threadIdx.x + i * THREADS, UNIT_TILE, units, r, j, unit) || t >= ends[r]) continue;
      was[i] = kept_of(r, rows[r], unit);
#if !PROJECTS
      h_old[i] = old_state(r, rows[r], unit);
#endif
    }
#endif
    multiply<SECOND_TERMS, BETWEEN_STRIDE, UNIT_TILE, SECOND_LANES, SECOND_EACH, SECOND_SPLIT, SECOND_STRIDE>(between, second, sums);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int item = threadIdx.x + i * THREADS;
      int r, j, unit;
      if (!is_item(item, UNIT_TILE, units, r, j, unit) || t >= ends[r]) continue;
      const INDEX row = rows[r], place = (INDEX)t * place_time + row * place_row;
      const COMPUTED gradient = sum_of<UNIT_TILE, SECOND_SPLIT, SECOND_STRIDE>(sums, r, j);
      STORAGE* to = grad_sums + (place * gridDim.z + d) * (GATES * (INDEX)units) + unit;
#if KIND == GRU_BEFORE
      const COMPUTED reset = was[i].gates[0];
      COMPUTED dh = carried[item];
      const COMPUTED dr = gru_reset_back(dh, gradient, reset, h_old[i]), took = reset * h_old[i];
      carried[item] = dh;
      put_sum(r, row, unit, dr);
      to[0] = narrow<STORAGE>(dr);
#else
      COMPUTED cell = dc[item];
      const COMPUTED took = lstm_cell_back(was[i].gates, gradient, cell, was[i].c_new, was[i].c_old);
      dc[item] = cell;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        to[gate * (INDEX)units] = narrow<STORAGE>(was[i].gates[gate]);
        put_sum(r, row, gate * UNITS_WIDE + unit, was[i].gates[gate]);
      }
#endif
      if (met) met[(place * gridDim.z + d) * units + unit] = narrow<STORAGE>(took);
    }
    __syncthreads();
#endif
  }

  // What goes on to the next launch, and the gradients of the first cells.
#if STEPWISE && (PHASE != 2 || KIND == GRU_BEFORE)
  if (end <= steps) {
    each_of_tile<HIDDEN_TILE>(rows, batch, hidden, [&](int i, bool is_there, INDEX row, int p) {
      if (is_there) state_gradient[row * hidden + p] = carried[i];
    });
  }
#endif
#if KIND == LSTM && !(PROJECTS && PHASE == 1)
  store_cells(dc, rows, batch, units, end == steps + (PHASE != 2), grad_c0, cell_gradient);
#endif
}
