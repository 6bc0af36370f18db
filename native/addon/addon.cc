// The module's exports: the Stage class and what the CPU can run. Node-API only; no mathematics here.
#include <napi.h>

#include "addon/stage_object.h"
#include "kernels/kernels.h"

namespace glm_relay {

// What V8 counts as memory outside its heap: shows that stages report theirs.
static Napi::Value externalBytes(const Napi::CallbackInfo& info) {
  const int64_t bytes = Napi::MemoryManagement::AdjustExternalMemory(info.Env(), 0);
  return Napi::Number::New(info.Env(), static_cast<double>(bytes));
}

static Napi::Object exportAll(Napi::Env env, Napi::Object exports) {
  const KernelNames available = availableKernels();
  Napi::Array names = Napi::Array::New(env, available.count);
  for (int i = 0; i < available.count; i++) names.Set(static_cast<uint32_t>(i), available.names[i]);
  exports.Set("availableKernels", names);
  exports.Set("externalBytes", Napi::Function::New(env, externalBytes));
  exports.Set("Stage", StageObject::define(env));
  return exports;
}

}  // namespace glm_relay

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  return glm_relay::exportAll(env, exports);
}

NODE_API_MODULE(glm_relay, initialize)
