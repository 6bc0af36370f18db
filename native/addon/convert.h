// JavaScript objects <-> plain structs, field by field in the order of ../index.ts. The door has
// validated everything, so a missing field is our own mistake and throws a plain TypeError.
#pragma once

#include <napi.h>

#include <memory>
#include <optional>

#include "cache/weight_cache.h"
#include "device/device.h"
#include "model/plan.h"

namespace glm_relay {

// Null: no cache.
std::optional<WeightCacheOptions> toWeightCacheOptions(const Napi::Value& value);
// Null: the CPU.
DeviceChoice toDeviceChoice(const Napi::Value& value);
StageConfig toStageConfig(const Napi::Object& config);
// Copies all arrays, so the caller may reuse them at once.
std::shared_ptr<StepInput> toStepInput(const Napi::Object& input);
Napi::Object fromStepOutput(Napi::Env env, StepOutput output);

}  // namespace glm_relay
