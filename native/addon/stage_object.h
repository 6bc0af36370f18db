// A Stage as a JavaScript object. Every call that takes time returns a promise; its result comes from
// the stage's driver thread through a thread-safe function, never through libuv's pool.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

#include "model/stage.h"

namespace glm_relay {

class StageObject : public Napi::ObjectWrap<StageObject> {
 public:
  static Napi::Function define(Napi::Env env);
  // new Stage(config, kernels, cache, device)
  explicit StageObject(const Napi::CallbackInfo& info);
  // Waits for the step that is running; only reached without close() when the process ends.
  ~StageObject() override;

 private:
  // A promise on its way: the driver thread fills in what JavaScript's thread then settles.
  struct Pending {
    StageObject* object;
    Napi::Promise::Deferred deferred;
    Stage::Error error;
    StepOutput output;
    std::function<Napi::Value(Napi::Env, Pending&)> value;
  };

  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);
  Napi::Value progress(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value loading(const Napi::CallbackInfo& info);
  Napi::Value roundings(const Napi::CallbackInfo& info);
  Napi::Value cacheReport(const Napi::CallbackInfo& info);
  Napi::Value cacheWritten(const Napi::CallbackInfo& info);
  Napi::Value kernels(const Napi::CallbackInfo& info);

  Pending* begin(Napi::Env env, std::function<Napi::Value(Napi::Env, Pending&)> value);
  void settleLater(Pending* pending);
  static void settle(Napi::Env env, Napi::Function, Pending* pending);
  void reportMemory(Napi::Env env, int64_t bytes);

  Napi::ThreadSafeFunction results_;
  // Shared with the end of results_, which may come first when the environment goes; null: we are gone.
  const std::shared_ptr<StageObject*> self_;
  bool resultsClosed_ = false;  // results_ takes nothing more
  int pendingCount_ = 0;
  int64_t reportedBytes_ = 0;
  std::unique_ptr<Stage> stage_;
};

}  // namespace glm_relay
