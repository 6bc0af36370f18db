// A Node module with a mistake on purpose, built with the thread sanitizer only: two tasks of one list write
// the same number at the same time. Where that goes unseen, so would a race of the engine.
#include <napi.h>

#include <atomic>

#include "model/thread_pool.h"

namespace glm_relay {

static Napi::Value plantedRace(const Napi::CallbackInfo& info) {
  std::atomic<uint64_t> progress{0};
  std::atomic<int> arrived{0};
  int sum = 0;
  ThreadPool pool(2, progress);
  pool.forEach(2, [&](int64_t, int) {
    // Without an order between the two, which the sanitizer would believe in.
    arrived.fetch_add(1, std::memory_order_relaxed);
    while (arrived.load(std::memory_order_relaxed) < 2) {
    }
    sum++;
  });
  return Napi::Number::New(info.Env(), sum);
}

}  // namespace glm_relay

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  exports.Set("plantedRace", Napi::Function::New(env, glm_relay::plantedRace));
  return exports;
}

NODE_API_MODULE(planted_race, initialize)
