// A recurrent layer forward: all steps of a tile of rows in one launch, or one step of a tile of rows and units.
//
// Constants (tiles_cuda.py says what they are): STORAGE, COMPUTED, INDEX, LENGTH (types), KIND, PROJECTS, STEPWISE, PHASE,
// HELD, CORES, ROWS, THREADS, UNIT_TILE, UNITS_WIDE, HIDDEN_TILE, HIDDEN_WIDE; of the products FIRST_LANES, FIRST_EACH,
// FIRST_SPLIT, FIRST_STRIDE, SECOND_LANES, SECOND_EACH, SECOND_SPLIT, SECOND_STRIDE; places in shared memory in numbers of
// COMPUTED: AT_ROWS, AT_BIAS, AT_STATE, AT_OWN, AT_CELL, AT_BETWEEN, AT_UPDATE, AT_SUMS, AT_WEIGHTS, AT_SECOND; and
// distances of rows there in numbers of FACTOR: STATE_STRIDE, BETWEEN_STRIDE.
//
// Not STEPWISE: a block has all units of its rows and runs the steps begin to end. STEPWISE: it has UNIT_TILE units and
// runs the step `begin`; what goes from step to step lies in the arrays that are called states. A cell with a second
// product (GRU_BEFORE, projection) then takes two launches a step, PHASE 1 and 2; else PHASE is 0.
#include "recurrence/rows.cuh"
#include "recurrence/cells.cuh"

#define FIRST_COLUMNS (FIRST_GATES * UNIT_TILE)
#if KIND == GRU_BEFORE
#define SECOND_COLUMNS UNIT_TILE
#else
#define SECOND_COLUMNS HIDDEN_TILE
#endif
// Numbers of a unit's biases in shared memory: of each gate, and b_hn of GRU_AFTER.
#define BIASES (GATES + (KIND == GRU_AFTER))

// Sizes: T steps, B rows, D directions (gridDim.z), I inputs, H units, P the size of the hidden state.
// grid: tiles of rows, tiles of units (in PHASE 2 of a projection of states), directions. block: THREADS.
// All arrays belong to the caller. What may be null is so said.
extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrence_forward(
    const COMPUTED* __restrict__ inputs,  // [places of x: time and row in x's order][D][GATES H], w_ih x
    const STORAGE* __restrict__ weights,  // [D][tiles][HIDDEN_WIDE / PACK][FIRST_GATES UNIT_TILE][PACK], w_hh
    const STORAGE* __restrict__ second,  // [D][tiles][UNITS_WIDE / PACK][SECOND_COLUMNS][PACK], w_hn or w_hr; or null
    const STORAGE* __restrict__ b_ih,  // [GATES H], or null
    const STORAGE* __restrict__ b_hh,  // the same
    const STORAGE* __restrict__ b_ih_reverse,  // the same, of the reverse direction
    const STORAGE* __restrict__ b_hh_reverse,
    const STORAGE* __restrict__ h0,  // [D][B][P], or null: zeros
    const STORAGE* __restrict__ c0,  // [D][B][H], or null: zeros
    const LENGTH* __restrict__ lengths,  // [B], or null: every row has all steps
    const long long* __restrict__ order,  // [B], or null; see find_rows
    const COMPUTED* __restrict__ state_before,  // [D][B][HIDDEN_WIDE], zeros past P; STEPWISE from the second step on
    COMPUTED* __restrict__ state_after,  // the same, written; STEPWISE
    COMPUTED* __restrict__ cell_state,  // [D][B][H], read and written by the owner of a unit; STEPWISE
    COMPUTED* __restrict__ between_state,  // [D][B][UNITS_WIDE], zeros past H: what the second product takes; STEPWISE
    COMPUTED* __restrict__ update_state,  // [D][B][H], z of GRU_BEFORE; STEPWISE
    STORAGE* __restrict__ full,  // written: states of all steps, [D P] at each place of strides full_time, full_row; null
    STORAGE* __restrict__ last,  // written: [B][D P], each row's own last step; or null
    STORAGE* __restrict__ h_n,  // written: [D][B][P]
    STORAGE* __restrict__ c_n,  // written: [D][B][H]; null but for the LSTM
    STORAGE* __restrict__ kept,  // written: [D][T][B][KEPT H]; or null
    STORAGE* __restrict__ cells,  // written: [D][T][B][H]; or null
    int begin, int end, int steps, int batch, int units, int hidden,
    INDEX input_time, INDEX input_row,  // in places
    INDEX full_time, INDEX full_row) {
  extern __shared__ __align__(16) unsigned char memory[];
  COMPUTED* shared = reinterpret_cast<COMPUTED*>(memory);
  int* rows = reinterpret_cast<int*>(shared + AT_ROWS);
  int* ends = rows + ROWS;
  COMPUTED* biases = shared + AT_BIAS;  // [BIASES][UNIT_TILE]
  FACTOR* states = reinterpret_cast<FACTOR*>(shared + AT_STATE);  // [FACTOR_ROWS][HIDDEN_WIDE], rows STATE_STRIDE apart
  COMPUTED* h = shared + AT_OWN;  // [ROWS][HIDDEN_TILE], the states that this block makes
  COMPUTED* c = shared + AT_CELL;  // [ROWS][UNIT_TILE]
  FACTOR* between = reinterpret_cast<FACTOR*>(shared + AT_BETWEEN);  // [FACTOR_ROWS][UNITS_WIDE], rows BETWEEN_STRIDE apart
  COMPUTED* update = shared + AT_UPDATE;  // [ROWS][UNIT_TILE]
  COMPUTED* sums = shared + AT_SUMS;
  const int d = blockIdx.z, first_unit = blockIdx.y * UNIT_TILE;
  const bool is_final = end == steps;

  find_rows(lengths, order, batch, steps, rows, ends);
  const STORAGE* input_bias = d ? b_ih_reverse : b_ih;
  const STORAGE* state_bias = d ? b_hh_reverse : b_hh;
  for (int i = threadIdx.x; i < GATES * UNIT_TILE; i += THREADS) {
    const int gate = i / UNIT_TILE, unit = first_unit + i % UNIT_TILE;
    if (unit >= units) continue;
    const COMPUTED of_input = at_or_zero(input_bias, gate * units + unit);
    const COMPUTED of_state = at_or_zero(state_bias, gate * units + unit);
#if KIND == GRU_AFTER
    if (gate == 2) biases[3 * UNIT_TILE + i % UNIT_TILE] = of_state;
    biases[i] = gate == 2 ? of_input : of_input + of_state;
#else
    biases[i] = of_input + of_state;
#endif
  }
  weights = weights_of_block<HIDDEN_WIDE * FIRST_COLUMNS>(weights, shared + AT_WEIGHTS);
#if HAS_SECOND
  second = weights_of_block<UNITS_WIDE * SECOND_COLUMNS>(second, shared + AT_SECOND);
#endif
  __syncthreads();

  // The states before the first step of this launch: those of the block, and all of them for the product.
  each_of_tile<HIDDEN_TILE>(rows, batch, hidden, [&](int i, bool is_there, INDEX row, int p) {
    const bool is_first = begin == 0;
    h[i] = !is_there ? COMPUTED(0) : is_first ? at_or_zero(h0, row * hidden + p) : state_before[row * HIDDEN_WIDE + p];
  });
#if PHASE != 2
  if (begin == 0) {
    for (int i = threadIdx.x; i < FACTOR_ROWS * HIDDEN_WIDE; i += THREADS) {
      const int r = i / HIDDEN_WIDE, row = r < ROWS ? rows[r] : -1, p = i % HIDDEN_WIDE;
      COMPUTED value = 0;
      if (row >= 0 && p < hidden) value = at_or_zero(h0, ((INDEX)d * batch + row) * hidden + p);
      states[r * STATE_STRIDE + p] = narrow<FACTOR>(value);
    }
  } else {
    load_rows<HIDDEN_WIDE, STATE_STRIDE>(state_before + (INDEX)d * batch * HIDDEN_WIDE, rows, states);
  }
#endif
#if KIND == LSTM && PHASE != 2
  load_cells(c, rows, batch, units, begin == 0, c0, cell_state);
#endif
#if PHASE == 2
  load_rows<UNITS_WIDE, BETWEEN_STRIDE>(between_state + (INDEX)d * batch * UNITS_WIDE, rows, between);
#elif HAS_SECOND && PHASE == 0
  clear_rows<BETWEEN_STRIDE>(between);
#endif
  __syncthreads();

  const int most = longest_of(ends), longest = STEPWISE ? steps : most;
  for (int number = begin; number < min(end, longest); ++number) {
    const int t = d ? longest - 1 - number : number;
    if (t >= most) continue;  // no row of the block has the step
    const INDEX step = ((INDEX)d * steps + t) * batch;
#if PHASE != 2
    // The inputs' sums are asked for before the product, which hides the way to memory.
    COMPUTED ahead[ITEMS][GATES];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int item = threadIdx.x + i * THREADS, r = item / UNIT_TILE, unit = first_unit + item % UNIT_TILE;
      if ((ROWS * UNIT_TILE % THREADS == 0 || r < ROWS) && t < ends[r] && unit < units) {
        const INDEX place = (INDEX)t * input_time + (INDEX)rows[r] * input_row;
        const COMPUTED* from = inputs + (place * gridDim.z + d) * (GATES * (INDEX)units) + unit;
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) ahead[i][gate] = from[gate * (INDEX)units];
      }
    }
    multiply<HIDDEN_WIDE, STATE_STRIDE, FIRST_COLUMNS, FIRST_LANES, FIRST_EACH, FIRST_SPLIT, FIRST_STRIDE>(states, weights, sums);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int item = threadIdx.x + i * THREADS, r = item / UNIT_TILE, j = item % UNIT_TILE, unit = first_unit + j;
      if ((ROWS * UNIT_TILE % THREADS && r >= ROWS) || t >= ends[r] || unit >= units) continue;
      const INDEX row = rows[r], unit_at = (step + row) * units + unit;
      COMPUTED total[GATES];
#pragma unroll
      for (int gate = 0; gate < GATES; ++gate) {
        total[gate] = ahead[i][gate] + biases[gate * UNIT_TILE + j];
        if (gate < FIRST_GATES && !(KIND == GRU_AFTER && gate == 2))
          total[gate] += sum_of<FIRST_COLUMNS, FIRST_SPLIT, FIRST_STRIDE>(sums, r, gate * UNIT_TILE + j);
      }
      STORAGE* keep = kept + (step + row) * KEPT * units + unit;
#if KIND == LSTM
      COMPUTED cell = c[item];
      const COMPUTED value = lstm_cell(total, cell);
      c[item] = cell;
      if (kept) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) keep[gate * (INDEX)units] = narrow<STORAGE>(total[gate]);
        cells[unit_at] = narrow<STORAGE>(cell);
      }
#elif KIND == GRU_AFTER
      COMPUTED gates[4] = {total[0], total[1], total[2], 0};
      gates[3] = sum_of<FIRST_COLUMNS, FIRST_SPLIT, FIRST_STRIDE>(sums, r, 2 * UNIT_TILE + j) + biases[3 * UNIT_TILE + j];
      const COMPUTED value = gru_cell(gates, h[item]);
      if (kept) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) keep[gate * (INDEX)units] = narrow<STORAGE>(gates[gate]);
      }
#elif KIND == GRU_BEFORE
      const COMPUTED reset = sigmoid(total[0]), z = sigmoid(total[1]);
      const COMPUTED value = reset * h[item];
      // The sum of n waits for the second product beside z.
      const INDEX state_at = ((INDEX)d * batch + row) * units + unit;
      (STEPWISE ? update_state[state_at] : update[item]) = z;
      if (kept) {
        keep[0] = narrow<STORAGE>(reset);
        keep[units] = narrow<STORAGE>(z);
      }
#else
      const COMPUTED value = rnn_cell(total[0]);
#endif
#if HAS_SECOND
      if (STEPWISE) between_state[((INDEX)d * batch + row) * UNITS_WIDE + unit] = value;
      else between[r * BETWEEN_STRIDE + unit] = narrow<FACTOR>(value);
#else
      h[item] = value;
      if (!STEPWISE) states[r * STATE_STRIDE + unit] = narrow<FACTOR>(value);
      if (full) full[t * full_time + row * full_row + d * (INDEX)hidden + unit] = narrow<STORAGE>(value);
      if (last && t + 1 == ends[r]) last[(row * gridDim.z + d) * hidden + unit] = narrow<STORAGE>(value);
#endif
    }
    __syncthreads();
#endif
#if HAS_SECOND && PHASE != 1
    multiply<UNITS_WIDE, BETWEEN_STRIDE, SECOND_COLUMNS, SECOND_LANES, SECOND_EACH, SECOND_SPLIT, SECOND_STRIDE>(between, second, sums);
    __syncthreads();
#if KIND == GRU_BEFORE
    constexpr int COUNT = ITEMS, TILE = UNIT_TILE;
#else
    constexpr int COUNT = HIDDEN_ITEMS, TILE = HIDDEN_TILE;
#endif
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int item = threadIdx.x + i * THREADS, r = item / TILE, j = item % TILE, p = blockIdx.y * TILE + j;
      if ((ROWS * TILE % THREADS && r >= ROWS) || t >= ends[r] || p >= hidden) continue;
      const INDEX row = rows[r];
      COMPUTED value = sum_of<SECOND_COLUMNS, SECOND_SPLIT, SECOND_STRIDE>(sums, r, j);
#if KIND == GRU_BEFORE
#if PHASE == 2
      const INDEX place = (INDEX)t * input_time + row * input_row;
      const COMPUTED of_input = inputs[((place * gridDim.z + d) * 3 + 2) * (INDEX)units + p];
      const COMPUTED z = update_state[((INDEX)d * batch + row) * units + p];
#else
      const COMPUTED of_input = ahead[i][2], z = update[item];
#endif
      const COMPUTED n = tangent(of_input + biases[2 * UNIT_TILE + j] + value);
      value = n + z * (h[item] - n);
      if (kept) kept[((step + row) * 3 + 2) * (INDEX)units + p] = narrow<STORAGE>(n);
#endif
      h[item] = value;
      if (!STEPWISE) states[r * STATE_STRIDE + p] = narrow<FACTOR>(value);
      if (full) full[t * full_time + row * full_row + d * (INDEX)hidden + p] = narrow<STORAGE>(value);
      if (last && t + 1 == ends[r]) last[(row * gridDim.z + d) * hidden + p] = narrow<STORAGE>(value);
    }
    __syncthreads();
#endif
  }

  // The states after the last step of this launch: of rows that had no step here those from before.
#if KIND == LSTM && PHASE != 2
  store_cells(c, rows, batch, units, is_final, c_n, cell_state);
#endif
#if PHASE != 1
  each_of_tile<HIDDEN_TILE>(rows, batch, hidden, [&](int i, bool is_there, INDEX row, int p) {
    if (!is_there) return;
    if (is_final) h_n[row * hidden + p] = narrow<STORAGE>(h[i]);
    else state_after[row * HIDDEN_WIDE + p] = h[i];
  });
#endif
}
