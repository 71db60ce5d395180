// The recurrent cells of one row and unit, forward and backward, in the type of the sums.
//
// KIND is the cell: 0 rnn with tanh, 1 rnn with relu, 2 lstm, 3 gru whose reset gate multiplies after the product, 4 gru
// whose reset gate multiplies before it. The order of the gates is that of gates.py: i f g o, and r z n.
#pragma once

#define RNN_TANH 0
#define RNN_RELU 1
#define LSTM 2
#define GRU_AFTER 3
#define GRU_BEFORE 4

#if KIND == LSTM
#define GATES 4
#define KEPT 4  // numbers of a unit that backward reads: the gates
#elif KIND == GRU_AFTER
#define GATES 3
#define KEPT 4  // r, z, n and q = w_hn h + b_hn
#elif KIND == GRU_BEFORE
#define GATES 3
#define KEPT 3
#else
#define GATES 1
#define KEPT 0
#endif

// Gates whose sums the first product makes; n of GRU_BEFORE takes a second one.
#if KIND == GRU_BEFORE
#define FIRST_GATES 2
#else
#define FIRST_GATES GATES
#endif

// Whether a step has a second product: n of GRU_BEFORE, or an LSTM's projection.
#define HAS_SECOND (KIND == GRU_BEFORE || PROJECTS)

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double tangent(double x) { return tanh(x); }

// 1 / (1 + e^-x): 0 and 1 at the ends, where e^-x overflows or vanishes.
__device__ __forceinline__ COMPUTED sigmoid(COMPUTED x) { return COMPUTED(1) / (COMPUTED(1) + exponential(-x)); }

// ----- forward: from sums to the new state ----------------------------------------------------------------------------

__device__ __forceinline__ COMPUTED rnn_cell(COMPUTED sum) {
#if KIND == RNN_RELU
  return sum < COMPUTED(0) ? COMPUTED(0) : sum;  // NaN stays
#else
  return tangent(sum);
#endif
}

// gates: the sums, then i, f, g, o. c: the old cell, then the new one. Returns o tanh(c).
__device__ __forceinline__ COMPUTED lstm_cell(COMPUTED (&gates)[4], COMPUTED& c) {
  gates[0] = sigmoid(gates[0]);
  gates[1] = sigmoid(gates[1]);
  gates[2] = tangent(gates[2]);
  gates[3] = sigmoid(gates[3]);
  c = gates[1] * c + gates[0] * gates[2];
  return gates[3] * tangent(c);
}

// gates: whole sums of r and z, the input's sum of n, and q = w_hn h + b_hn; then r, z, n, q. Returns the new state.
__device__ __forceinline__ COMPUTED gru_cell(COMPUTED (&gates)[4], COMPUTED h) {
  gates[0] = sigmoid(gates[0]);
  gates[1] = sigmoid(gates[1]);
  gates[2] = tangent(gates[2] + gates[0] * gates[3]);
  return gates[2] + gates[1] * (h - gates[2]);
}

// ----- backward: from the gradient of the new state to those of the sums ----------------------------------------------

__device__ __forceinline__ COMPUTED rnn_cell_back(COMPUTED dh, COMPUTED h_new) {
#if KIND == RNN_RELU
  return h_new <= COMPUTED(0) ? COMPUTED(0) : dh;  // where the state is 0 nothing passes, not even NaN
#else
  return dh * (COMPUTED(1) - h_new * h_new);
#endif
}

// gates: i, f, g, o; then the gradients of their sums. dc: the gradient that came back from the next step's cell; then
// that of c_old. Returns o tanh(c_new), which the projection met.
__device__ __forceinline__ COMPUTED lstm_cell_back(
    COMPUTED (&gates)[4], COMPUTED dh, COMPUTED& dc, COMPUTED c_new, COMPUTED c_old) {
  const COMPUTED one = 1, i = gates[0], f = gates[1], g = gates[2], o = gates[3], tanh_c = tangent(c_new);
  dc += dh * o * (one - tanh_c * tanh_c);
  gates[0] = dc * g * i * (one - i);
  gates[1] = dc * c_old * f * (one - f);
  gates[2] = dc * i * (one - g * g);
  gates[3] = dh * tanh_c * o * (one - o);
  dc *= f;
  return o * tanh_c;
}

// gates: r, z, n, q; then the gradients of the sums of r, z, of the input's sum of n, and of q. dh: of the new state;
// then the part of the old state's that does not come through the product.
__device__ __forceinline__ void gru_cell_back(COMPUTED (&gates)[4], COMPUTED& dh, COMPUTED h_old) {
  const COMPUTED one = 1, r = gates[0], z = gates[1], n = gates[2], q = gates[3];
  const COMPUTED dn = dh * (one - z) * (one - n * n);
  gates[0] = dn * q * r * (one - r);
  gates[1] = dh * (h_old - n) * z * (one - z);
  gates[2] = dn;
  gates[3] = dn * r;
  dh *= z;
}

// The same with the reset before the product: dz and dn.
__device__ __forceinline__ void gru_new_back(COMPUTED& dh, COMPUTED z, COMPUTED n, COMPUTED h_old, COMPUTED& dz, COMPUTED& dn) {
  const COMPUTED one = 1;
  dz = dh * (h_old - n) * z * (one - z);
  dn = dh * (one - z) * (one - n * n);
  dh *= z;
}

// Then dr, from the gradient of r h_old; dh gets its share.
__device__ __forceinline__ COMPUTED gru_reset_back(COMPUTED& dh, COMPUTED d_reset, COMPUTED r, COMPUTED h_old) {
  dh += d_reset * r;
  return d_reset * h_old * r * (COMPUTED(1) - r);
}
