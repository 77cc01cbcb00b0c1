// Work divided among libtorch's threads.
#pragma once
#include <cstdint>
#include <functional>

namespace dlm {

// How many parts `parallel` makes of so many items.
int64_t parts(int64_t items, int64_t grain);

// Calls body(part, begin, end) for each part of `items`, in libtorch's threads.
void parallel(int64_t items, int64_t grain, const std::function<void(int64_t, int64_t, int64_t)>& body);

}  // namespace dlm
