#include "addon/stage_object.h"

#include <string>
#include <utility>

#include "addon/convert.h"

namespace glm_relay {

Napi::Function StageObject::define(Napi::Env env) {
  return DefineClass(
      env, "Stage",
      {InstanceMethod("load", &StageObject::load), InstanceMethod("step", &StageObject::step),
       InstanceMethod("close", &StageObject::close), InstanceMethod("progress", &StageObject::progress),
       InstanceMethod("memory", &StageObject::memory), InstanceMethod("loading", &StageObject::loading),
       InstanceMethod("roundings", &StageObject::roundings),
       InstanceMethod("cacheReport", &StageObject::cacheReport),
       InstanceMethod("cacheWritten", &StageObject::cacheWritten),
       InstanceMethod("kernels", &StageObject::kernels)});
}

StageObject::StageObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<StageObject>(info), self_(std::make_shared<StageObject*>(this)) {
  const std::string name = info[1].As<Napi::String>().Utf8Value();
  const KernelTable* kernels = findKernels(name.c_str());
  if (kernels == nullptr) throw Napi::Error::New(info.Env(), "no kernels named " + name);
  const Napi::Function nothing = Napi::Function::New(info.Env(), [](const Napi::CallbackInfo&) {});
  // Node frees results_ with the environment, in no order that is ours: the driver thread has to be over by
  // then.
  const auto ended = [self = self_](Napi::Env) {
    if (*self == nullptr) return;
    (*self)->stage_.reset();
    (*self)->resultsClosed_ = true;
  };
  results_ = Napi::ThreadSafeFunction::New(info.Env(), nothing, "glm-relay stage", 0, 1, ended);
  // An idle stage does not keep the process alive; a pending promise does (begin, settle).
  results_.Unref(info.Env());
  stage_ = std::make_unique<Stage>(toStageConfig(info[0].As<Napi::Object>()), toDeviceChoice(info[3]),
                                   *kernels, toWeightCacheOptions(info[2]));
}

StageObject::~StageObject() {
  *self_ = nullptr;
  stage_.reset();
  if (!resultsClosed_) results_.Release();
  if (reportedBytes_ != 0) reportMemory(Env(), 0);
}

Napi::Value StageObject::load(const Napi::CallbackInfo& info) {
  Pending* pending = begin(info.Env(), [this](Napi::Env env, Pending&) {
    const uint64_t bytes = stage_->weightBytes() + stage_->kvBytes() + stage_->workspaceBytes();
    reportMemory(env, static_cast<int64_t>(bytes));
    return env.Undefined();
  });
  const Napi::Promise promise = pending->deferred.Promise();
  stage_->load([this, pending](const Stage::Error& error) {
    pending->error = error;
    settleLater(pending);
  });
  return promise;
}

Napi::Value StageObject::step(const Napi::CallbackInfo& info) {
  std::shared_ptr<StepInput> input = toStepInput(info[0].As<Napi::Object>());
  Pending* pending = begin(info.Env(), [](Napi::Env env, Pending& self) -> Napi::Value {
    return fromStepOutput(env, std::move(self.output));
  });
  const Napi::Promise promise = pending->deferred.Promise();
  stage_->submit(std::move(input), [this, pending](const Stage::Error& error, StepOutput output) {
    pending->error = error;
    pending->output = std::move(output);
    settleLater(pending);
  });
  return promise;
}

Napi::Value StageObject::close(const Napi::CallbackInfo& info) {
  Pending* pending = begin(info.Env(), [this](Napi::Env env, Pending&) {
    reportMemory(env, 0);
    return env.Undefined();
  });
  const Napi::Promise promise = pending->deferred.Promise();
  stage_->unload([this, pending](const Stage::Error& error) {
    pending->error = error;
    settleLater(pending);
  });
  return promise;
}

Napi::Value StageObject::progress(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), stage_->progress());
}

Napi::Value StageObject::memory(const Napi::CallbackInfo& info) {
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("weightBytes", static_cast<double>(stage_->weightBytes()));
  object.Set("kvBytes", static_cast<double>(stage_->kvBytes()));
  object.Set("workspaceBytes", static_cast<double>(stage_->workspaceBytes()));
  return object;
}

Napi::Value StageObject::loading(const Napi::CallbackInfo& info) {
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("loadedBytes", static_cast<double>(stage_->loadedBytes()));
  object.Set("totalBytes", static_cast<double>(stage_->storedBytes()));
  return object;
}

Napi::Value StageObject::roundings(const Napi::CallbackInfo& info) {
  const std::vector<TensorRounding>& roundings = stage_->roundings();
  Napi::Array array = Napi::Array::New(info.Env(), roundings.size());
  for (uint32_t i = 0; i < roundings.size(); i++) {
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("tensor", roundings[i].role);
    object.Set("squaredError", roundings[i].error.squaredError);
    object.Set("squaredWeight", roundings[i].error.squaredWeight);
    array.Set(i, object);
  }
  return array;
}

Napi::Value StageObject::cacheReport(const Napi::CallbackInfo& info) {
  const WeightCacheReport report = stage_->cacheReport();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("hits", report.hits);
  object.Set("misses", report.misses);
  object.Set("mappedBytes", static_cast<double>(report.mappedBytes));
  object.Set("filesWritten", report.filesWritten);
  object.Set("writtenBytes", static_cast<double>(report.writtenBytes));
  Napi::Array warnings = Napi::Array::New(info.Env(), report.warnings.size());
  for (uint32_t i = 0; i < report.warnings.size(); i++) warnings.Set(i, report.warnings[i]);
  object.Set("warnings", warnings);
  return object;
}

Napi::Value StageObject::cacheWritten(const Napi::CallbackInfo& info) {
  Pending* pending = begin(info.Env(), [](Napi::Env env, Pending&) { return env.Undefined(); });
  const Napi::Promise promise = pending->deferred.Promise();
  stage_->whenCacheWritten([this, pending](const Stage::Error& error) {
    pending->error = error;
    settleLater(pending);
  });
  return promise;
}

Napi::Value StageObject::kernels(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), stage_->kernels());
}

StageObject::Pending* StageObject::begin(Napi::Env env,
                                         std::function<Napi::Value(Napi::Env, Pending&)> value) {
  // Until the promise is settled, neither this object nor the process may go.
  Ref();
  if (pendingCount_++ == 0) results_.Ref(env);
  return new Pending{this, Napi::Promise::Deferred::New(env), {}, {}, std::move(value)};
}

// On the driver thread.
void StageObject::settleLater(Pending* pending) {
  if (resultsClosed_) return;
  const napi_status status = results_.BlockingCall(pending, settle);
  if (status == napi_closing) resultsClosed_ = true;
}

void StageObject::settle(Napi::Env env, Napi::Function, Pending* pending) {
  if (env == nullptr) return;  // the environment is being torn down: nobody waits any more
  const std::unique_ptr<Pending> owned(pending);
  StageObject& object = *pending->object;
  const Napi::HandleScope scope(env);
  if (pending->error.message.empty()) {
    pending->deferred.Resolve(pending->value(env, *pending));
  } else {
    const Napi::Error error = Napi::Error::New(env, pending->error.message);
    if (pending->error.deviceLost) error.Set("code", Napi::String::New(env, "DEVICE_LOST"));
    pending->deferred.Reject(error.Value());
  }
  if (--object.pendingCount_ == 0) object.results_.Unref(env);
  object.Unref();
}

// V8 learns how much memory hangs on this object.
void StageObject::reportMemory(Napi::Env env, int64_t bytes) {
  Napi::MemoryManagement::AdjustExternalMemory(env, bytes - reportedBytes_);
  reportedBytes_ = bytes;
}

}  // namespace glm_relay
