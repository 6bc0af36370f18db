// One stage as the addon sees it: everything happens on the stage's own driver thread, in the order
// it was asked for, and ends in a callback on that thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "model/driver.h"
#include "model/layer_loop.h"

namespace glm_relay {

class Stage {
 public:
  // An empty error means success.
  using Done = std::function<void(const std::string& error)>;
  using StepDone = std::function<void(const std::string& error, StepOutput output)>;

  Stage(StageConfig config, const KernelTable& kernels);
  // Finishes what was submitted, then frees everything.
  ~Stage();

  // Loads weights and allocates memory; before any step.
  void load(Done done);
  void submit(std::shared_ptr<const StepInput> input, StepDone done);
  // Frees the memory after the steps submitted so far.
  void unload(Done done);

  uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
  const char* kernels() const { return kernels_.name; }
  // Valid once load() has called back.
  uint64_t weightBytes() const { return weightBytes_; }
  uint64_t kvBytes() const { return kvBytes_; }
  uint64_t workspaceBytes() const { return workspaceBytes_; }
  const std::vector<TensorRounding>& roundings() const { return roundings_; }
  // Stored bytes read so far, and in all; at any time.
  uint64_t loadedBytes() const { return loadedBytes_.load(std::memory_order_relaxed); }
  uint64_t storedBytes() const { return storedBytes_; }

 private:
  void runStep(const StepInput& input, const StepDone& done);

  const StageConfig config_;
  const KernelTable& kernels_;
  const uint64_t storedBytes_;
  std::atomic<uint64_t> progress_{0};
  std::atomic<uint64_t> loadedBytes_{0};
  uint64_t weightBytes_ = 0;
  uint64_t kvBytes_ = 0;
  uint64_t workspaceBytes_ = 0;
  std::vector<TensorRounding> roundings_;

  // Owned by the driver thread.
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LayerLoop> layers_;

  // Last: its thread uses the members above and ends before they go.
  Driver driver_;
};

}  // namespace glm_relay
