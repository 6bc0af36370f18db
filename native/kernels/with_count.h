// A number that is known at run time, as one that a template can take.
#pragma once

#include <type_traits>

namespace glm_relay {
namespace {

// Calls run(std::integral_constant<int, count>()); count is 1 to Most.
template <int Most, class Run>
void withCount(int count, Run run) {
  if constexpr (Most > 1) {
    if (count < Most) return withCount<Most - 1>(count, run);
  }
  run(std::integral_constant<int, Most>());
}

}  // namespace
}  // namespace glm_relay
