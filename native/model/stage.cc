#include "model/stage.h"

#include <chrono>
#include <exception>
#include <utility>

namespace glm_relay {

namespace {

// Runs `body`; returns what went wrong.
template <class Body>
Stage::Error errorOf(Body body) {
  try {
    body();
    return {};
  } catch (const DeviceLost& error) {
    return {error.what(), true};
  } catch (const std::bad_alloc&) {
    return {"not enough memory"};
  } catch (const std::exception& error) {
    return {error.what()};
  }
}

}  // namespace

Stage::Stage(StageConfig config, DeviceChoice device, const KernelTable& kernels,
             std::optional<WeightCacheOptions> cache)
    : config_(std::move(config)),
      device_(std::move(device)),
      kernels_(kernels),
      cacheOptions_(std::move(cache)),
      storedBytes_(glm_relay::storedBytes(config_)) {}

Stage::~Stage() {
  unload([](const Error&) {});
}

void Stage::load(Done done) {
  driver_.post([this, done] {
    const Error error = errorOf([this] {
      pool_ = std::make_unique<ThreadPool>(config_.threads, progress_, config_.cpus);
      backend_ = createBackend(device_, kernels_, *pool_, progress_);
      kernelName_ = backend_->kernels();
      if (cacheOptions_) {
        const std::lock_guard<std::mutex> lock(cacheMutex_);
        cache_ = std::make_unique<WeightCache>(*cacheOptions_, *pool_);
      }
      layers_ = std::make_unique<LayerLoop>(
          config_, kernels_, *backend_, *pool_, cache_.get(),
          [this](uint64_t bytes) { loadedBytes_.fetch_add(bytes, std::memory_order_relaxed); });
      roundings_ = layers_->roundings();
      weightBytes_ = layers_->weightBytes();
      kvBytes_ = backend_->kvBytes();
      workspaceBytes_ = layers_->workspaceBytes();
    });
    done(error);
  });
}

void Stage::submit(std::shared_ptr<const StepInput> input, StepDone done) {
  driver_.post([this, input, done] { runStep(*input, done); });
}

void Stage::runStep(const StepInput& input, const StepDone& done) {
  StepOutput output;
  const Error error = errorOf([&] {
    const auto begin = std::chrono::steady_clock::now();
    layers_->run(input, output);
    const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - begin;
    output.computeUs = elapsed.count();
  });
  done(error, std::move(output));
}

void Stage::whenCacheWritten(Done done) {
  driver_.post([this, done] {
    if (cache_ == nullptr) return done({});
    // The callback belongs to our driver's thread, like every other.
    cache_->whenWritten([this, done] { driver_.post([done] { done({}); }); });
  });
}

WeightCacheReport Stage::cacheReport() const {
  const std::lock_guard<std::mutex> lock(cacheMutex_);
  return cache_ == nullptr ? lastReport_ : cache_->report();
}

void Stage::dropCache() {
  if (cache_ == nullptr) return;
  cache_->close();
  const std::lock_guard<std::mutex> lock(cacheMutex_);
  lastReport_ = cache_->report();
  cache_.reset();
}

void Stage::unload(Done done) {
  driver_.post([this, done] {
    dropCache();
    layers_.reset();
    backend_.reset();
    pool_.reset();
    done({});
  });
}

}  // namespace glm_relay
