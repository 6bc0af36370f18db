// The module's exports: the Stage class and what the CPU can run. Node-API only; no mathematics here.
#include <napi.h>

#include <stdexcept>

#include "addon/stage_object.h"
#include "device/cuda_library.h"
#include "kernels/kernels.h"

namespace glm_relay {

// What V8 counts as memory outside its heap: shows that stages report theirs.
static Napi::Value externalBytes(const Napi::CallbackInfo& info) {
  const int64_t bytes = Napi::MemoryManagement::AdjustExternalMemory(info.Env(), 0);
  return Napi::Number::New(info.Env(), static_cast<double>(bytes));
}

// cudaDevices(library): what a CUDA library finds; throws where there is no driver.
static Napi::Value cudaDevices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    const std::vector<CudaDevice> devices = openCudaLibrary(info[0].As<Napi::String>().Utf8Value()).devices();
    Napi::Array array = Napi::Array::New(env, devices.size());
    for (uint32_t i = 0; i < devices.size(); i++) {
      Napi::Object object = Napi::Object::New(env);
      object.Set("name", devices[i].name);
      object.Set("computeCapability",
                 std::to_string(devices[i].major) + "." + std::to_string(devices[i].minor));
      object.Set("bytes", static_cast<double>(devices[i].bytes));
      array.Set(i, object);
    }
    return array;
  } catch (const std::runtime_error& error) {
    throw Napi::Error::New(env, error.what());
  }
}

// cudaFreeBytes(library, index): what is free on a GPU.
static Napi::Value cudaFreeBytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    const CudaLibrary& library = openCudaLibrary(info[0].As<Napi::String>().Utf8Value());
    return Napi::Number::New(env,
                             static_cast<double>(library.freeBytes(info[1].As<Napi::Number>().Int32Value())));
  } catch (const std::runtime_error& error) {
    throw Napi::Error::New(env, error.what());
  }
}

static Napi::Object exportAll(Napi::Env env, Napi::Object exports) {
  const KernelNames available = availableKernels();
  Napi::Array names = Napi::Array::New(env, available.count);
  for (int i = 0; i < available.count; i++) names.Set(static_cast<uint32_t>(i), available.names[i]);
  exports.Set("availableKernels", names);
  exports.Set("cudaDevices", Napi::Function::New(env, cudaDevices));
  exports.Set("cudaFreeBytes", Napi::Function::New(env, cudaFreeBytes));
  exports.Set("externalBytes", Napi::Function::New(env, externalBytes));
  exports.Set("Stage", StageObject::define(env));
  return exports;
}

}  // namespace glm_relay

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  return glm_relay::exportAll(env, exports);
}

NODE_API_MODULE(glm_relay, initialize)
