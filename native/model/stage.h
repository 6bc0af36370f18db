// One stage as the addon sees it: everything happens on the stage's own driver thread, in the order
// it was asked for, and ends in a callback on that thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "device/device.h"
#include "model/driver.h"
#include "model/layer_loop.h"

namespace glm_relay {

class Stage {
 public:
  // What went wrong; an empty message: nothing.
  struct Error {
    std::string message;
    bool deviceLost = false;  // DeviceLost
  };
  using Done = std::function<void(const Error& error)>;
  using StepDone = std::function<void(const Error& error, StepOutput output)>;

  // No cache: every matrix is made from the checkpoint. `kernels` compute on the CPU, whatever the device is:
  // they round weights and draw tokens.
  Stage(StageConfig config, DeviceChoice device, const KernelTable& kernels,
        std::optional<WeightCacheOptions> cache);
  // Finishes what was submitted, then frees everything.
  ~Stage();

  // Loads weights and allocates memory; before any step.
  void load(Done done);
  void submit(std::shared_ptr<const StepInput> input, StepDone done);
  // Calls back when the cache has written what this load made, or has given it up.
  void whenCacheWritten(Done done);
  // Frees the memory after the steps submitted so far. What the cache has not written by then it does not
  // write.
  void unload(Done done);

  uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
  // Valid once load() has called back.
  const std::string& kernels() const { return kernelName_; }
  uint64_t weightBytes() const { return weightBytes_; }
  uint64_t kvBytes() const { return kvBytes_; }
  uint64_t workspaceBytes() const { return workspaceBytes_; }
  const std::vector<TensorRounding>& roundings() const { return roundings_; }
  // At any time.
  WeightCacheReport cacheReport() const;
  // Stored bytes read so far, and in all; at any time.
  uint64_t loadedBytes() const { return loadedBytes_.load(std::memory_order_relaxed); }
  uint64_t storedBytes() const { return storedBytes_; }

 private:
  void runStep(const StepInput& input, const StepDone& done);
  void dropCache();

  const StageConfig config_;
  const DeviceChoice device_;
  const KernelTable& kernels_;
  const std::optional<WeightCacheOptions> cacheOptions_;
  const uint64_t storedBytes_;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint64_t> loadedBytes_{0};
  uint64_t weightBytes_ = 0;
  uint64_t kvBytes_ = 0;
  uint64_t workspaceBytes_ = 0;
  std::vector<TensorRounding> roundings_;
  std::string kernelName_;

  // Owned by the driver thread.
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LayerLoop> layers_;
  // Also read by cacheReport.
  mutable std::mutex cacheMutex_;
  std::unique_ptr<WeightCache> cache_;
  WeightCacheReport lastReport_;  // of a cache that is gone

  // Last: its thread uses the members above and ends before they go.
  Driver driver_;
};

}  // namespace glm_relay
