// Runs a launch: blocks in turn, threads as fibers, barriers and warp collectives between them.
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>
#include <xmmintrin.h>
#include "runtime.h"

namespace cuda_cpu {

State state;
Running running;
static void* scheduler;
static void (*kernel_call)(void*);
static void* kernel_context;

#if !defined(__x86_64__)
#error "switch_stacks is written for x86-64"
#endif
extern "C" __attribute__((visibility("hidden"))) void cuda_cpu_switch(void** save, void* to);
asm(".text\n.hidden cuda_cpu_switch\n.globl cuda_cpu_switch\ncuda_cpu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void yield() { cuda_cpu_switch(&state.current->stack, scheduler); }

void fault(const char* format, ...) {
  Thread* me = state.current;
  if (!running.failed) {
    va_list values;
    va_start(values, format);
    size_t size = sizeof running.message;
    int n = vsnprintf(running.message, size, format, values);
    va_end(values);
    if (me) {
      n += snprintf(running.message + n, size - n, " [block (%u, %u, %u) thread (%u, %u, %u)]", state.block.x,
                    state.block.y, state.block.z, me->index.x, me->index.y, me->index.z);
    }
    if (running.code) snprintf(running.message + n, size - n, " code=0x%zx", running.code - running.library_low - 1);
  }
  running.failed = true;
  running.inside = false;
  if (me) {
    me->status = Status::done;
    yield();
  }
}

void leave_if_late() {
  if (running.late && !running.failed) fault("the launch takes too long: does a thread wait for another one in a loop?");
}

static void fiber() {
  kernel_call(kernel_context);
  state.current->status = Status::done;
  yield();
  __builtin_unreachable();
}

unsigned sync(int line, unsigned predicate) {
  leave_if_late();
  Thread& me = *state.current;
  me.value = predicate;
  me.status = Status::at_barrier;
  me.line = line;
  yield();
  return me.result;
}

uint64_t collective(unsigned mask, uint64_t value, int source, int line) {
  leave_if_late();
  Thread& me = *state.current;
  Thread* warp = &state.threads[me.warp * 32];
  unsigned lanes = std::min(32u, running.threads - me.warp * 32);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask >> me.lane & 1)) fault("line %d: a warp collective by a lane that is not in its own mask %08x", line, mask);
  me.value = value;
  me.source = source;
  me.mask = mask;
  me.line = line;
  me.status = Status::at_collective;
  auto takes_part = [&](unsigned lane) { return mask >> lane & 1; };
  for (unsigned l = 0; l < lanes; ++l) {
    Thread& other = warp[l];
    if (takes_part(l) && (other.status != Status::at_collective || other.mask != mask || other.line != line)) {
      yield();  // the last one to come does it for all
      return me.result;
    }
  }
  uint64_t ballot = 0;
  for (unsigned l = 0; l < lanes; ++l) ballot |= uint64_t(takes_part(l) && warp[l].value) << l;
  for (unsigned l = 0; l < lanes; ++l) {
    if (!takes_part(l)) continue;
    int from = warp[l].source;
    if (from >= 0 && !takes_part(from)) fault("line %d: a shuffle reads lane %d, which takes no part", line, from);
    warp[l].result = from >= 0 ? warp[from].value : ballot;
    warp[l].status = Status::ready;
  }
  running.warp_epochs[me.warp]++;
  running.counts.collectives++;
  return me.result;
}

const char* mismatch(const char* wanted, const unsigned* sizes, unsigned count, const char* kinds, const unsigned* given,
                     unsigned number) {
  static char message[200];
  if (count != number) {
    snprintf(message, sizeof message, "the kernel takes %u arguments, got %u", count, number);
    return message;
  }
  auto word = [](char kind) { return kind == 'p' ? "pointer" : kind == 'f' ? "floating" : kind == 'i' ? "integer" : "struct"; };
  for (unsigned i = 0; i < count; ++i) {
    if (wanted[i] == kinds[i] && sizes[i] == given[i]) continue;
    snprintf(message, sizeof message, "argument %u must be a %s of %u bits, got a %s of %u", i, word(wanted[i]),
             sizes[i] * 8, word(kinds[i]), given[i] * 8);
    return message;
  }
  return nullptr;
}

// ----- signals: bad addresses, divisions by zero, traps of -fsanitize=undefined, time that has run out ------------

static void on_signal(int number, siginfo_t* facts, void* context) {
  if (number == SIGVTALRM) {
    running.late = true;
    if (!state.current || running.inside) return;  // looked at again where that is left
  }
  running.code = ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] + 1;
  if (!state.current) {  // a fault of the harness: the process dies as it should
    signal(number, SIG_DFL);
    return;
  }
  if (number == SIGVTALRM) leave_if_late();
  if (number == SIGFPE) fault("integer division by zero");
  if (number == SIGILL) fault("trap: an index outside of its array, a shift too far, or a division by zero");
  fault("access to the bad address %p", facts->si_addr);
}

static constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGVTALRM};
static constexpr int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;

// Signals come on a stack of their own, so that a thread whose stack is full can be told.
struct Signals {
  struct sigaction before[SIGNAL_COUNT];
  stack_t stack_before;
  timer_t timer;
  explicit Signals(unsigned seconds) {
    static char stack[64 << 10];
    stack_t mine{};
    mine.ss_sp = stack;
    mine.ss_size = sizeof stack;
    sigaltstack(&mine, &stack_before);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    for (int i = 0; i < SIGNAL_COUNT; ++i) sigaction(SIGNALS[i], &action, &before[i]);
    // Processor time of this thread, so that a busy machine makes nothing fail.
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = gettid();
    itimerspec span{};
    span.it_value.tv_sec = seconds;
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    timer_settime(timer, 0, &span, nullptr);
  }
  ~Signals() {
    timer_delete(timer);
    for (int i = 0; i < SIGNAL_COUNT; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
    stack_before.ss_flags &= ~SS_ONSTACK;
    sigaltstack(&stack_before, nullptr);
  }
};

// ----- this library's memory --------------------------------------------------------------------------------------

// Makes the library's thread-local storage, which is the static shared memory, exist in this thread.
static thread_local char anchor;
struct Library { uintptr_t static_low = 0, static_high = 0; };

static int look_at_library(dl_phdr_info* info, size_t, void* found) {
  auto* library = (Library*)found;
  uintptr_t low = UINTPTR_MAX, high = 0, here = (uintptr_t)&state;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    auto& part = info->dlpi_phdr[i];
    uintptr_t start = info->dlpi_addr + part.p_vaddr;
    if (part.p_type == PT_LOAD) low = std::min(low, start), high = std::max<uintptr_t>(high, start + part.p_memsz);
  }
  if (here < low || here >= high) return 0;
  running.library_low = low;
  running.library_high = high;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_TLS || !info->dlpi_tls_data) continue;
    library->static_low = (uintptr_t)info->dlpi_tls_data;
    library->static_high = library->static_low + part.p_memsz;
  }
  return 1;
}

// ----- a launch ---------------------------------------------------------------------------------------------------

// Every fiber's stack has a page before it that cannot be written.
extern "C" __attribute__((visibility("default"))) char* cuda_cpu_make_stacks() {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char* stacks = (char*)mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
  for (unsigned i = 0; i < MOST_THREADS; ++i) mprotect(stacks + i * STACK, 4096, PROT_NONE);
  return stacks;
}

static void begin_thread(unsigned number) {
  Thread& thread = state.threads[number];
  thread = Thread{};
  dim3 size = state.block_size;
  thread.index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
  thread.number = number;
  thread.warp = number / 32;
  thread.lane = number % 32;
  void** top = (void**)(running.stacks + (number + 1) * STACK - 64);
  *--top = nullptr;
  *--top = (void*)fiber;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack = top;
}

// Lets every thread that can run do so, until all have returned.
static void run_block(const std::vector<unsigned>& order) {
  unsigned count = running.threads;
  for (unsigned live = count; live && !running.failed;) {
    leave_if_late();
    unsigned ran = 0;
    for (unsigned i : order) {
      if (state.threads[i].status != Status::ready) continue;
      state.current = &state.threads[i];
      cuda_cpu_switch(&scheduler, state.current->stack);
      state.current = nullptr;
      ++ran;
      if (running.failed) return;
    }
    unsigned done = 0, waiting = 0;
    int line = -1, collective_line = -1;
    bool mixed = false;
    for (unsigned i = 0; i < count; ++i) {
      Thread& thread = state.threads[i];
      done += thread.status == Status::done;
      if (thread.status == Status::at_collective) collective_line = thread.line;
      if (thread.status != Status::at_barrier) continue;
      ++waiting;
      mixed |= line >= 0 && thread.line != line;
      line = thread.line;
    }
    live = count - done;
    if (waiting && waiting == count && !mixed) {
      uint64_t true_ones = 0;
      for (unsigned i = 0; i < count; ++i) true_ones += state.threads[i].value != 0;
      for (unsigned i = 0; i < count; ++i) {
        state.threads[i].result = true_ones;
        state.threads[i].status = Status::ready;
      }
      running.epoch++;
      running.counts.barriers++;
    } else if (live && !ran) {
      fault("barrier divergence in block (%u, %u, %u): %u threads wait at __syncthreads (%sline %d), "
            "%u at a warp collective (line %d), %u have returned",
            state.block.x, state.block.y, state.block.z, waiting, mixed ? "different lines, one is " : "", line,
            live - waiting, collective_line, done);
    }
  }
}

const char* launch(void (*call)(void*), void* context, Launch* options) {
  running.threads = options->block[0] * options->block[1] * options->block[2];
  running.failed = running.inside = running.late = false;
  running.code = 0;
  running.counts = Counts{};
  state.profile = options->profile;
  running.epoch = 0;
  std::fill(std::begin(running.warp_epochs), std::end(running.warp_epochs), 0);
  state.current = nullptr;
  kernel_call = call;
  kernel_context = context;
  state.grid_size = dim3(options->grid[0], options->grid[1], options->grid[2]);
  state.block_size = dim3(options->block[0], options->block[1], options->block[2]);
  if (running.threads > MOST_THREADS || !running.threads || options->block[2] > 64)
    return "a block must have 1 to 1024 threads, and at most 64 in z";
  if (options->grid[1] > 65535 || options->grid[2] > 65535) return "a grid must have at most 65535 blocks in y and in z";
  running.stacks = options->stacks;

  *(volatile char*)&anchor = 0;
  Library library;
  dl_iterate_phdr(look_at_library, &library);
  // Dynamic shared memory ends at a page that cannot be touched, and begins behind another.
  constexpr size_t page = 4096;
  size_t pages = (options->shared + page - 1) / page * page, taken = (options->shared + 15) / 16 * 16;
  char* map = (char*)mmap(nullptr, pages + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages) mprotect(map + page, pages, PROT_READ | PROT_WRITE);
  state.dynamic_shared = map + page + pages - taken;
  watch(*options, library.static_low, library.static_high);

  {
    Signals signals(options->seconds);
    unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);  // CuPy compiles with -ftz=true
    std::vector<unsigned> order(running.threads);
    for (unsigned i = 0; i < running.threads; ++i) order[i] = options->order == REVERSE ? running.threads - 1 - i : i;
    uint64_t blocks = (uint64_t)options->grid[0] * options->grid[1] * options->grid[2];
    uint64_t random = options->order * 0x9E3779B97F4A7C15ull + 1;
    auto next = [&] {
      random ^= random << 13;
      random ^= random >> 7;
      return random ^= random << 17;
    };
    for (uint64_t turn = 0; turn < blocks && !running.failed; ++turn) {
      uint64_t block = options->order == REVERSE ? blocks - 1 - turn : turn;
      running.block = block;
      state.block = {unsigned(block % options->grid[0]), unsigned(block / options->grid[0] % options->grid[1]),
                     unsigned(block / options->grid[0] / options->grid[1])};
      if (options->order > REVERSE)
        for (unsigned i = running.threads - 1; i; --i) std::swap(order[i], order[next() % (i + 1)]);
      // NaN, so that shared memory that is read before it is written shows in the results.
      memset((void*)library.static_low, 0xff, library.static_high - library.static_low);
      memset(state.dynamic_shared, 0xff, options->shared);
      for (unsigned i = 0; i < running.threads; ++i) begin_thread(i);
      run_block(order);
      end_of_block();
    }
    _mm_setcsr(control);
  }
  munmap(map, pages + 2 * page);
  unwatch(*options);
  options->counts = running.counts;
  return running.failed ? running.message : nullptr;
}

}  // namespace cuda_cpu
