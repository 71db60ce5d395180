// What the two halves of the harness share: a launch's options and counts, and the memory that it may touch.
#pragma once
#include "cuda_cpu.h"

namespace cuda_cpu {

// Counts of one launch. Loads and stores in bytes; `unique`: each byte of an argument once. With `profile` also requests
// of warps, with the 32-byte sectors (global) or the turns (shared: one for each word that a bank must give) they take.
// run.py has the same names in the same order.
struct Counts {
  uint64_t global_loaded, global_stored, shared_loaded, shared_stored, atomics, unique_loaded, unique_stored;
  uint64_t load_requests, load_sectors, store_requests, store_sectors;
  uint64_t shared_load_requests, shared_load_turns, shared_store_requests, shared_store_turns;
  uint64_t shared_load_least, shared_store_least;  // turns that there would be without conflicts of banks
  uint64_t load_least, store_least;              // sectors that as many bytes side by side would take
  uint64_t barriers, collectives;
};

// Memory of an argument, a part of it that begins at `low`. granule: bytes that are watched as one. valid: for each byte
// whether it belongs to the argument, null where all do.
struct Region {
  uint64_t low, bytes, granule;
  int64_t argument;
  const uint8_t* valid;
  uint64_t loaded, stored;  // bytes of it, each once, that the launch touched
};
constexpr int64_t STATIC_SHARED = -1, DYNAMIC_SHARED = -2;

enum Order : unsigned { FORWARD, REVERSE };  // a larger number is the seed of a random order

struct Launch {
  unsigned grid[3], block[3];
  unsigned shared, shared_granule, order, profile, seconds;
  char* stacks;  // of cuda_cpu_make_stacks: MOST_THREADS of them, the same for all modules of a process
  uint64_t region_count;
  Region* regions;
  Counts counts;
};

// The launch that runs. epoch and warp_epochs count the barriers of the block and the collectives of its warps.
struct Running {
  unsigned threads, block, epoch, warp_epochs[32];
  bool failed, inside;  // inside: the harness itself runs, which may be interrupted but not left
  volatile bool late;
  uintptr_t code;
  char message[512];
  char* stacks;
  uintptr_t library_low, library_high;
  Counts counts;
};
extern Running running;
constexpr size_t STACK = 256 << 10;

void watch(const Launch& options, uintptr_t static_low, uintptr_t static_high);
void end_of_block();
void unwatch(Launch& options);
void leave_if_late();

}  // namespace cuda_cpu
