// Every access of a kernel to memory: whether it stays inside, who else touched the same, and what it costs a warp.
#include <array>
#include <cstdio>
#include <unordered_map>
#include <sys/mman.h>
#include <vector>
#include "runtime.h"

namespace cuda_cpu {

// The last write and the last reads of a granule.
struct Cell {
  uint32_t write_block, write_epoch, write_warp_epoch, read_block, read_epoch, read_warp_epoch;
  uint16_t writer, reader;
  uint8_t atomic, seen;
};
enum Seen : uint8_t { WRITTEN = 1, READ = 2, GAP = 4 };
static constexpr uint16_t SEVERAL = 0xffff;

struct Watched {
  uintptr_t low, high;
  unsigned granule;
  int64_t argument;
  Cell* cells;
  size_t cell_bytes;
  uint64_t loaded, stored;
};
static std::vector<Watched> regions;

// What the lanes of a warp ask for at once.
struct Request {
  uintptr_t address[32];
  uint32_t lanes;
  uint8_t size, shared, write;
};
// By instruction and thread: how often it ran since a barrier or a step.
struct Times {
  uint32_t epoch, steps, count;
};
static std::unordered_map<uintptr_t, std::vector<Times>> times;
// Instruction, warp, barriers, steps, and how often it ran since.
typedef std::array<uint64_t, 5> Asked;
struct Hash {
  size_t operator()(const Asked& asked) const {
    uint64_t found = 0;
    for (uint64_t part : asked) found = (found ^ part) * 0x9E3779B97F4A7C15ull, found ^= found >> 29;
    return found;
  }
};
static std::unordered_map<Asked, Request, Hash> requests;

static void add_region(uintptr_t low, uintptr_t bytes, unsigned granule, int64_t argument, const uint8_t* valid) {
  size_t cells = bytes / granule + 1, size = cells * sizeof(Cell);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  auto* made = (Cell*)mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (valid)
    for (size_t i = 0; i < bytes / granule; ++i) made[i].seen = valid[i * granule] ? 0 : GAP;
  regions.push_back({low, low + bytes, granule, argument, made, size, 0, 0});
}

void watch(const Launch& options, uintptr_t static_low, uintptr_t static_high) {
#ifdef CUDA_CPU_WATCHED
  for (uint64_t i = 0; i < options.region_count; ++i) {
    const Region& r = options.regions[i];
    add_region(r.low, r.bytes, r.granule, r.argument, r.valid);
  }
  if (static_high > static_low)
    add_region(static_low, static_high - static_low, options.shared_granule, STATIC_SHARED, nullptr);
  if (options.shared)
    add_region((uintptr_t)state.dynamic_shared, options.shared, options.shared_granule, DYNAMIC_SHARED, nullptr);
#endif
}

void unwatch(Launch& options) {
  for (size_t i = 0; i < regions.size() && i < options.region_count; ++i) {
    options.regions[i].loaded = regions[i].loaded;
    options.regions[i].stored = regions[i].stored;
  }
  for (Watched& r : regions) munmap(r.cells, r.cell_bytes);
  regions.clear();
  requests.clear();
  times.clear();
}

// Whether a barrier, or a collective of the warp, lies between an access of this block and now.
static bool ordered(uint32_t block, uint32_t epoch, uint32_t warp_epoch, uint16_t thread) {
  const Thread& me = *state.current;
  if (block != running.block) return false;
  if (thread == me.number || epoch < running.epoch) return true;
  return thread != SEVERAL && thread / 32u == me.warp && warp_epoch < running.warp_epochs[me.warp];
}

static const char* word(bool write) { return write ? "store" : "load"; }

struct Name { char text[40]; };
static Name name(const Watched& r) {
  Name found;
  if (r.argument >= 0) snprintf(found.text, sizeof found.text, "argument %lld", (long long)r.argument);
  else snprintf(found.text, sizeof found.text, "%s shared memory", r.argument == STATIC_SHARED ? "static" : "dynamic");
  return found;
}

static void note(Watched& r, uintptr_t address, unsigned bytes, bool write, bool atomic) {
  const Thread& me = *state.current;
  bool shared = r.argument < 0;
  size_t first = address - r.low;
  for (size_t i = first / r.granule; i <= (first + bytes - 1) / r.granule; ++i) {
    Cell& c = r.cells[i];
    if (c.seen & GAP) fault("out-of-bounds %u-byte %s in a gap of the strided %s", bytes, word(write), name(r).text);
    bool wrote = c.seen & WRITTEN && !(shared && c.write_block != running.block);
    if (wrote && !(c.atomic && atomic) && !ordered(c.write_block, c.write_epoch, c.write_warp_epoch, c.writer))
      fault("race: %s of byte %zu of %s, which thread %u of block %u wrote with no barrier between", word(write), first,
            name(r).text, c.writer, c.write_block);
    bool was_read = c.seen & READ && !(shared && c.read_block != running.block);
    if (write && !atomic && was_read && !ordered(c.read_block, c.read_epoch, c.read_warp_epoch, c.reader)) {
      if (c.reader == SEVERAL)
        fault("race: store to byte %zu of %s, which several threads of block %u read with no barrier between", first,
              name(r).text, c.read_block);
      fault("race: store to byte %zu of %s, which thread %u of block %u read with no barrier between", first,
            name(r).text, c.reader, c.read_block);
    }
    if (write) {
      unsigned fresh = (!(c.seen & WRITTEN) && !shared) * r.granule;
      running.counts.unique_stored += fresh;
      r.stored += fresh;
      c.seen |= WRITTEN;
      c.write_block = running.block;
      c.write_epoch = running.epoch;
      c.write_warp_epoch = running.warp_epochs[me.warp];
      c.writer = me.number;
      c.atomic = atomic;
    } else {
      unsigned fresh = (!(c.seen & READ) && !shared) * r.granule;
      running.counts.unique_loaded += fresh;
      r.loaded += fresh;
      bool again = c.seen & READ && c.read_block == running.block && c.read_epoch == running.epoch;
      c.reader = again && c.reader != me.number ? SEVERAL : me.number;
      c.seen |= READ;
      c.read_block = running.block;
      c.read_epoch = running.epoch;
      c.read_warp_epoch = running.warp_epochs[me.warp];
    }
  }
}

static void note_request(const Watched& r, uintptr_t address, unsigned bytes, bool write, uintptr_t code) {
  const Thread& me = *state.current;
  auto& of_code = times[code];
  if (of_code.empty()) of_code.resize(running.threads);
  Times& mine = of_code[me.number];
  if (mine.epoch != running.epoch || mine.steps != me.steps) mine = {running.epoch, me.steps, 0};
  Request& q = requests[{code, me.warp, mine.epoch, mine.steps, mine.count++}];
  bool shared = r.argument < 0;
  // Arrays begin at whole sectors on a GPU.
  q.address[me.lane] = shared ? address : address - r.low + ((uintptr_t)(r.argument + 1) << 40);
  q.lanes |= 1u << me.lane;
  q.size = bytes;
  q.shared = shared;
  q.write = write;
}

static void check(uintptr_t address, unsigned bytes, bool write, bool atomic, uintptr_t code) {
  Counts& counts = running.counts;
  for (size_t i = regions.size(); i-- > 0;) {  // shared memory first
    Watched& r = regions[i];
    if (address < r.low || address >= r.high) continue;
    if (address + bytes > r.high) break;
    bool shared = r.argument < 0;
    (shared ? (write ? counts.shared_stored : counts.shared_loaded)
            : (write ? counts.global_stored : counts.global_loaded)) += bytes;
    counts.atomics += atomic;
    bool whole = bytes <= 16 && !(bytes & (bytes - 1));
    if (whole && address % bytes) fault("misaligned %u-byte %s at byte %zu of %s", bytes, word(write), address - r.low, name(r).text);
    note(r, address, bytes, write, atomic);
    if (state.profile && !atomic) note_request(r, address, bytes, write, code);
    return;
  }
  uintptr_t stacks = (uintptr_t)running.stacks;
  if (address >= stacks && address < stacks + MOST_THREADS * STACK) return;                // local variables
  if (address >= running.library_low && address < running.library_high) return;            // constants, the harness
  const Watched* nearest = nullptr;
  uintptr_t least = 1 << 20;
  for (const Watched& r : regions) {
    uintptr_t distance = address < r.low ? r.low - address : address < r.high ? 0 : address - r.high;
    if (distance < least) least = distance, nearest = &r;
  }
  if (!nearest) fault("%u-byte %s at the wild address %p", bytes, word(write), (void*)address);
  fault("out-of-bounds %u-byte %s: byte %lld of %s (%zu bytes)", bytes, word(write),
        (long long)(address - nearest->low), name(*nearest).text, (size_t)(nearest->high - nearest->low));
}

void touch(uintptr_t address, unsigned bytes, bool write, bool atomic, uintptr_t code) {
#ifdef CUDA_CPU_WATCHED
  if (running.inside || running.failed || !state.current) return;
  if (address - (uintptr_t)&state < sizeof state) return;  // threadIdx and its like
  running.inside = true;
  running.code = code;
  check(address, bytes, write, atomic, code);
  running.inside = false;
  leave_if_late();
  running.code = 0;
#endif
}

// Sectors and turns of a block's requests.
void end_of_block() {
  Counts& counts = running.counts;
  for (auto& entry : requests) {
    const Request& q = entry.second;
    if (!q.shared) {
      std::vector<uintptr_t> sectors;
      for (int lane = 0; lane < 32; ++lane) {
        if (!(q.lanes >> lane & 1)) continue;
        for (uintptr_t s = q.address[lane] / 32; s <= (q.address[lane] + q.size - 1) / 32; ++s) sectors.push_back(s);
      }
      std::sort(sectors.begin(), sectors.end());
      auto count = std::unique(sectors.begin(), sectors.end()) - sectors.begin();
      (q.write ? counts.store_requests : counts.load_requests)++;
      (q.write ? counts.store_sectors : counts.load_sectors) += count;
      uint64_t least = (__builtin_popcount(q.lanes) * q.size + 31) / 32;
      (q.write ? counts.store_least : counts.load_least) += std::min<uint64_t>(least, count);
      continue;
    }
    // So many lanes are served together: 128 bytes of them.
    int together = q.size > 4 ? 128 / q.size : 32;
    uint64_t turns = 0, least = 0;
    for (int first = 0; first < 32; first += together) {
      std::vector<uintptr_t> words[32];
      size_t most = 0;
      for (int lane = first; lane < first + together; ++lane) {
        if (!(q.lanes >> lane & 1)) continue;
        for (uintptr_t w = q.address[lane] / 4; w <= (q.address[lane] + q.size - 1) / 4; ++w) {
          auto& bank = words[w % 32];
          if (std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
        }
      }
      for (auto& bank : words) most = std::max(most, bank.size());
      turns += most;
      least += most > 0;
    }
    (q.write ? counts.shared_store_requests : counts.shared_load_requests)++;
    (q.write ? counts.shared_store_turns : counts.shared_load_turns) += turns;
    (q.write ? counts.shared_store_least : counts.shared_load_least) += least;
  }
  requests.clear();
  times.clear();
}

}  // namespace cuda_cpu

// What -fsanitize=thread calls.
#ifdef CUDA_CPU_WATCHED
#define CUDA_CPU_CODE (uintptr_t)__builtin_return_address(0)
#define CUDA_CPU_HOOKS(n)                                                                                        \
  extern "C" {                                                                                                   \
  void __tsan_read##n(void* p) { cuda_cpu::touch((uintptr_t)p, n, false, false, CUDA_CPU_CODE); }                \
  void __tsan_write##n(void* p) { cuda_cpu::touch((uintptr_t)p, n, true, false, CUDA_CPU_CODE); }                \
  void __tsan_unaligned_read##n(void* p) { cuda_cpu::touch((uintptr_t)p, n, false, false, CUDA_CPU_CODE); }      \
  void __tsan_unaligned_write##n(void* p) { cuda_cpu::touch((uintptr_t)p, n, true, false, CUDA_CPU_CODE); }      \
  }
CUDA_CPU_HOOKS(1)
CUDA_CPU_HOOKS(2)
CUDA_CPU_HOOKS(4)
CUDA_CPU_HOOKS(8)
CUDA_CPU_HOOKS(16)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* p, long n) { cuda_cpu::touch((uintptr_t)p, n, false, false, CUDA_CPU_CODE); }
void __tsan_write_range(void* p, long n) { cuda_cpu::touch((uintptr_t)p, n, true, false, CUDA_CPU_CODE); }
}
#endif
