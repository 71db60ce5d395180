// Random numbers by counting, Philox4x32-10: the same words as kernels/random.py gives (Salmon et al., 2011).
#pragma once

// The four words of a block. seed: 64 bits, the key. block: the low half of the counter. stream: its high half.
__device__ __forceinline__ void philox_block(
    unsigned long long seed, unsigned long long block, unsigned long long stream, unsigned (&words)[4]) {
  unsigned c0 = (unsigned)block, c1 = (unsigned)(block >> 32), c2 = (unsigned)stream, c3 = (unsigned)(stream >> 32);
  unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long first = (unsigned long long)c0 * 0xD2511F53u;
    const unsigned long long second = (unsigned long long)c2 * 0xCD9E8D57u;
    c0 = (unsigned)(second >> 32) ^ c1 ^ k0;
    c1 = (unsigned)second;
    c2 = (unsigned)(first >> 32) ^ c3 ^ k1;
    c3 = (unsigned)first;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

__device__ __forceinline__ unsigned philox_word(const unsigned (&words)[4], unsigned n) {
  return n < 2 ? (n == 0 ? words[0] : words[1]) : (n == 2 ? words[2] : words[3]);
}
