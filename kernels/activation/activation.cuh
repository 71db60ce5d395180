// The activations and their derivatives, in float or double. Which one is a number, so that one compiled kernel does
// for all of them.
//
// gelu: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); silu: Elfwing et al. (2017). The tanh form of gelu is
// computed as x * sigmoid(2u), which is 0.5 * x * (1 + tanh(u)) without its cancellation.
#pragma once

// cuda_codes.py reads these numbers here; 0 is none.
enum Activation { RELU = 1, GELU = 2, SILU = 3, TANH = 4, SIGMOID = 5, GELU_TANH = 6 };

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }
__device__ __forceinline__ double error_function(double x) { return erf(x); }

// 1 / (1 + exp(-x)), without overflow for any x.
template <class T> __device__ __forceinline__ T sigmoid(T x) {
  T e = exponential(x < 0 ? x : -x);
  return (x >= 0 ? (T)1 : e) / (1 + e);
}

// Cumulative distribution of the standard normal.
template <class T> __device__ __forceinline__ T normal_distribution(T x) {
  return (T)0.5 * (1 + error_function(x * (T)0.70710678118654752440));
}

// 2u of the tanh form of gelu, and its derivative.
template <class T> __device__ __forceinline__ T twice_inner(T x) {
  return (x + x * x * x * (T)0.044715) * (T)1.59576912160573071176;
}
template <class T> __device__ __forceinline__ T twice_inner_slope(T x) {
  return (1 + x * x * (T)(3 * 0.044715)) * (T)1.59576912160573071176;
}

// act(x).
template <class T> __device__ __forceinline__ T activate(T x, int activation) {
  switch (activation) {
    case RELU: return x < 0 ? (T)0 : x;
    case GELU: return x * normal_distribution(x);
    case SILU: return x * sigmoid(x);
    case TANH: return hyperbolic_tangent(x);
    case SIGMOID: return sigmoid(x);
    case GELU_TANH: return x * sigmoid(twice_inner(x));
    default: return x;
  }
}

// grad * act'(x); value is act(x) for relu, tanh and sigmoid, else x. relu passes nothing on where it is 0, not even
// NaN.
template <class T> __device__ __forceinline__ T activation_gradient(T grad, T value, int activation) {
  switch (activation) {
    case RELU: return value <= 0 ? (T)0 : grad;
    case TANH: return grad * (1 - value * value);
    case SIGMOID: return grad * (value * (1 - value));
    case GELU: {
      T density = exponential((T)-0.5 * value * value) * (T)0.39894228040143267794;
      return grad * (normal_distribution(value) + value * density);
    }
    case SILU: {
      T s = sigmoid(value);
      return grad * (s * (1 + value * (1 - s)));
    }
    case GELU_TANH: {
      T s = sigmoid(twice_inner(value));
      return grad * (s + value * (s * (1 - s)) * twice_inner_slope(value));
    }
    default: return grad;
  }
}
