// The choice of kernels, and libtorch's threads for them.
#include "parallel.hpp"

#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <vector>

#include "kernels.hpp"

namespace dlm {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#endif
namespace plain {
extern const Kernels table;
}

namespace {

// The levels that the processor has, the best first.
const std::vector<const Kernels*>& levels() {
  static const std::vector<const Kernels*> all = [] {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(&avx512::table);
    }
    if (has_avx2) found.push_back(&avx2::table);
#endif
    found.push_back(&plain::table);
    return found;
  }();
  return all;
}

std::atomic<size_t> chosen{0};

}  // namespace

const Kernels& kernels() { return *levels()[chosen.load(std::memory_order_relaxed)]; }

namespace {

struct Work {
  const std::function<void(int64_t, int64_t, int64_t)>& body;
  int64_t items, parts;
  std::atomic<int64_t> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr failure;
};

void work(void* data) {
  auto& work = *static_cast<Work*>(data);
  for (int64_t part = work.next++; part < work.parts; part = work.next++) {
    // What leaves a thread of OpenMP would end the program.
    try {
      work.body(part, work.items * part / work.parts, work.items * (part + 1) / work.parts);
    } catch (...) {
      if (!work.failed.test_and_set()) work.failure = std::current_exception();
    }
  }
}

}  // namespace

int64_t parts(int64_t items, int64_t grain) {
  if (at::in_parallel_region()) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), items / std::max<int64_t>(1, grain)));
}

void parallel(int64_t items, int64_t grain, const std::function<void(int64_t, int64_t, int64_t)>& body) {
  // `at::parallel_for` is inline OpenMP: it would need the very libgomp that libtorch brought along at link time. It is loaded
  // already, so it is asked for at run time. Without it, one thread does all the work.
  using Run = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Run run = reinterpret_cast<Run>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  Work all{body, items, parts(items, grain), {0}, ATOMIC_FLAG_INIT, nullptr};
  if (all.parts == 1 || !run) {
    work(&all);
  } else {
    run(work, &all, static_cast<unsigned>(all.parts), 0);
  }
  if (all.failure) std::rethrow_exception(all.failure);
}

}  // namespace dlm

// For tests: the whole process computes on the level of that number from now on, 0 the best; false where there is none.
extern "C" bool dlm_use_kernels(size_t level) {
  if (level >= dlm::levels().size()) return false;
  dlm::chosen.store(level, std::memory_order_relaxed);
  return true;
}
