#include "attention_case.h"

#include <algorithm>
#include <cmath>

#include "kernels/half.h"

namespace glm_relay::cuda {

namespace {

constexpr float kEps = 1e-5f;

}  // namespace

AttentionCase::AttentionCase(AttentionShape shape, uint64_t seed)
    : shape_(std::move(shape)), tileBytes_(static_cast<int64_t>(kvTileBytes(shape_.type, shape_.headDim))) {
  Random random(seed);
  const int blockSlots = tilesPerBlock_ * 16;
  int slots = 0;
  int blocks = 1;
  for (const auto& [before, count] : shape_.sequences) {
    firstOfSequence_.push_back(slots);
    tableBegins_.push_back(static_cast<int32_t>(tables_.size()));
    for (int i = 0; i < (before + count + blockSlots - 1) / blockSlots; i++) tables_.push_back(blocks++);
    for (int i = 0; i < count; i++) {
      sequenceOfRow_.push_back(static_cast<int32_t>(firstOfSequence_.size()) - 1);
      slotOfRow_.push_back(before + i);
      lastVisibleOfRow_.push_back(std::max(before + i, shape_.contextLength - 1));
      indexOfRow_.push_back(slots + before + i);
    }
    slots += before + count;
  }
  // Blocks of a sequence lie anywhere.
  for (size_t i = tables_.size(); i > 1; i--)
    std::swap(tables_[i - 1], tables_[random.below(static_cast<int>(i))]);

  const int heads = shape_.headCount + 2 * shape_.kvHeadCount;
  qkv_ = random.values(static_cast<size_t>(slots) * heads * shape_.headDim, 2.0f);
  if (shape_.growingKeys) {
    const int64_t keys = static_cast<int64_t>(shape_.kvHeadCount) * shape_.headDim;
    for (int i = 0; i < slots; i++) {
      float* begin = qkv_.data() + i * heads * static_cast<int64_t>(shape_.headDim) + columns();
      for (int64_t j = 0; j < keys; j++) begin[j] *= 0.25f + static_cast<float>(i) / 32.0f;
    }
  }
  for (int i = 0; i < slots * shape_.ropeDim / 2; i++) {
    const double angle = random.unit() * 3.0;
    rotations_.push_back(static_cast<float>(std::cos(angle)));
    rotations_.push_back(static_cast<float>(std::sin(angle)));
  }
  queryNorm_ = random.values(shape_.headDim, 2.0f);
  keyNorm_ = random.values(shape_.headDim, 2.0f);
  // Whatever is not written holds what memory holds when it is new: NaN, by emulation.
  const size_t cacheBytes = static_cast<size_t>(blocks) * tilesPerBlock_ * shape_.kvHeadCount * tileBytes_;
  keys_ = std::make_unique<OnDevice<uint8_t>>(cacheBytes);
  valuesOnDevice_ = std::make_unique<OnDevice<uint8_t>>(cacheBytes);
  tablesOnDevice_ = std::make_unique<OnDevice<int32_t>>(tables_);
  beginsOnDevice_ = std::make_unique<OnDevice<int32_t>>(tableBegins_);
  queries_ = std::make_unique<OnDevice<float>>(static_cast<size_t>(rows()) * columns());
}

CacheView AttentionCase::view() const {
  CacheView view = {};
  view.keys = keys_->get();
  view.values = valuesOnDevice_->get();
  view.tables = tablesOnDevice_->get();
  view.tableBegins = beginsOnDevice_->get();
  view.type = shape_.type;
  view.tilesPerBlock = tilesPerBlock_;
  view.headCount = shape_.headCount;
  view.kvHeadCount = shape_.kvHeadCount;
  view.headDim = shape_.headDim;
  view.tileBytes = tileBytes_;
  return view;
}

void AttentionCase::store() {
  const int heads = shape_.headCount + 2 * shape_.kvHeadCount;
  const int64_t rowFloats = static_cast<int64_t>(heads) * shape_.headDim;
  const OnDevice<float> qkv(qkv_), rotations(rotations_), queryNorm(queryNorm_), keyNorm(keyNorm_);
  StoreArgs args = {};
  args.cache = view();
  args.queryNorm = shape_.headNorms ? queryNorm.get() : nullptr;
  args.keyNorm = shape_.headNorms ? keyNorm.get() : nullptr;
  args.eps = kEps;
  args.ropeDim = shape_.ropeDim;
  args.ropeAxes = shape_.ropeAxes;
  args.ropeHalves = shape_.ropeHalves;
  const auto put = [&](int index, int sequence, const std::vector<int32_t>& slots, float* queries) {
    const std::vector<int32_t> sequences(slots.size(), sequence);
    const OnDevice<int32_t> slotOfRow(slots), sequenceOfRow(sequences);
    args.queries = queries;
    args.qkv = qkv.get() + index * rowFloats;
    args.rotations = rotations.get() + static_cast<int64_t>(index) * shape_.ropeDim;
    args.slotOfRow = slotOfRow.get();
    args.sequenceOfRow = sequenceOfRow.get();
    args.rows = static_cast<int>(slots.size());
    storeKeysValues(stream(), args);
  };
  int row = 0;
  for (size_t i = 0; i < shape_.sequences.size(); i++) {
    const auto& [before, count] = shape_.sequences[i];
    std::vector<int32_t> slots(before);
    for (int slot = 0; slot < before; slot++) slots[slot] = slot;
    const OnDevice<float> unused(static_cast<size_t>(before) * columns());
    if (before > 0) put(firstOfSequence_[i], static_cast<int>(i), slots, unused.get());
    slots.clear();
    for (int slot = before; slot < before + count; slot++) slots.push_back(slot);
    put(firstOfSequence_[i] + before, static_cast<int>(i), slots,
        queries_->get() + static_cast<int64_t>(row) * columns());
    row += count;
  }
}

int AttentionCase::mostRows(Path path) const {
  const bool wide = usesTensorCores(path, shape_.type, shape_.headDim);
  return attentionTaskRows(shape_.headCount, shape_.kvHeadCount, wide ? kWideTaskQueries : kTaskQueries);
}

std::vector<float> AttentionCase::attend(Path path, int first, int count, int taskRows,
                                         bool sideBySide) const {
  const int narrow = attentionTaskRows(shape_.headCount, shape_.kvHeadCount);
  const int most = std::min(taskRows, mostRows(path));
  std::vector<AttentionTask> tasks;
  int lastVisible = 0;
  int wide = 0;
  for (int row = first; row < first + count;) {
    const int32_t sequence = sequenceOfRow_[row];
    AttentionTask task = {row, 0, tableBegins_[sequence], 0};
    for (; row < first + count && task.rowCount < most && sequenceOfRow_[row] == sequence; row++) {
      task.rowCount++;
      task.lastVisible = std::max(task.lastVisible, lastVisibleOfRow_[row]);
    }
    lastVisible = std::max(lastVisible, task.lastVisible);
    if (task.rowCount > narrow) wide++;
    tasks.push_back(task);
  }
  const OnDevice<AttentionTask> tasksOnDevice(tasks);
  const OnDevice<int32_t> visible(lastVisibleOfRow_);
  const OnDevice<float> out(static_cast<size_t>(count) * columns());
  AttentionArgs args = {};
  args.cache = view();
  args.out = out.get();
  args.queries = queries_->get();
  args.tasks = tasksOnDevice.get();
  args.lastVisibleOfRow = visible.get();
  args.taskCount = static_cast<int>(tasks.size());
  args.wideTasks = wide;
  args.firstRow = first;
  args.rows = count;
  args.parts = lastVisible / kPartSlots + 1;
  const OnDevice<float> partials(
      static_cast<size_t>(partialFloats(count, shape_.headCount, shape_.headDim, args.parts)));
  if (sideBySide) args.partials = partials.get();
  attention(stream(), path, args);
  return out.read();
}

// A head after norm and rotation; no norm: a value, which is left as it is.
std::vector<double> AttentionCase::placed(const float* head, const std::vector<float>* norm,
                                          int index) const {
  std::vector<double> x(head, head + shape_.headDim);
  if (norm == nullptr) return x;
  if (shape_.headNorms) {
    double square = 0.0;
    for (double value : x) square += value * value;
    const double r = 1.0 / std::sqrt(square / shape_.headDim + static_cast<double>(kEps));
    for (int d = 0; d < shape_.headDim; d++) x[d] *= r * (*norm)[d];
  }
  const float* rotation = rotations_.data() + static_cast<size_t>(index) * shape_.ropeDim;
  const int width = shape_.ropeDim / shape_.ropeAxes;
  for (int axis = 0; axis < shape_.ropeAxes; axis++) {
    for (int pair = 0; pair < width / 2; pair++) {
      double& a = x[axis * width + (shape_.ropeHalves ? pair : 2 * pair)];
      double& b = x[axis * width + (shape_.ropeHalves ? width / 2 + pair : 2 * pair + 1)];
      const double cosine = rotation[axis * width + 2 * pair];
      const double sine = rotation[axis * width + 2 * pair + 1];
      const double turned = a * cosine - b * sine;
      b = b * cosine + a * sine;
      a = turned;
    }
  }
  return x;
}

std::vector<double> AttentionCase::stored(const std::vector<double>& head) const {
  std::vector<double> out;
  double largest = 0.0;
  for (double value : head) largest = std::max(largest, std::fabs(value));
  const float scale = halfToFloat(floatToHalf(static_cast<float>(largest / 127.0)));
  for (double value : head) {
    const float x = static_cast<float>(value);
    switch (shape_.type) {
      case KvType::kFloat32:
        out.push_back(x);
        break;
      case KvType::kFloat16:
        out.push_back(halfToFloat(floatToHalf(x)));
        break;
      case KvType::kBfloat16:
        out.push_back(bfloatToFloat(floatToBfloat(x)));
        break;
      case KvType::kInt8:
        out.push_back(std::clamp(std::nearbyint(value / scale), -127.0, 127.0) * scale);
        break;
    }
  }
  return out;
}

std::vector<double> AttentionCase::expectedQueries() const {
  const int heads = shape_.headCount + 2 * shape_.kvHeadCount;
  std::vector<double> all;
  for (int row = 0; row < rows(); row++) {
    for (int head = 0; head < shape_.headCount; head++) {
      const int64_t at = (static_cast<int64_t>(indexOfRow_[row]) * heads + head) * shape_.headDim;
      const std::vector<double> query = placed(qkv_.data() + at, &queryNorm_, indexOfRow_[row]);
      all.insert(all.end(), query.begin(), query.end());
    }
  }
  return all;
}

std::vector<double> AttentionCase::expected(const std::vector<float>& queries) const {
  const int headDim = shape_.headDim;
  const int heads = shape_.headCount + 2 * shape_.kvHeadCount;
  const int group = shape_.headCount / shape_.kvHeadCount;
  std::vector<double> all(static_cast<size_t>(rows()) * columns());
  for (size_t sequence = 0; sequence < shape_.sequences.size(); sequence++) {
    const int slots = shape_.sequences[sequence].first + shape_.sequences[sequence].second;
    for (int kvHead = 0; kvHead < shape_.kvHeadCount; kvHead++) {
      std::vector<std::vector<double>> keys, values;
      for (int slot = 0; slot < slots; slot++) {
        const int index = firstOfSequence_[sequence] + slot;
        const float* key =
            qkv_.data() + (static_cast<int64_t>(index) * heads + shape_.headCount + kvHead) * headDim;
        keys.push_back(stored(placed(key, &keyNorm_, index)));
        values.push_back(
            stored(placed(key + static_cast<int64_t>(shape_.kvHeadCount) * headDim, nullptr, index)));
      }
      for (int row = 0; row < rows(); row++) {
        if (sequenceOfRow_[row] != static_cast<int>(sequence)) continue;
        for (int head = kvHead * group; head < (kvHead + 1) * group; head++) {
          const size_t at = static_cast<size_t>(row) * columns() + static_cast<size_t>(head) * headDim;
          std::vector<double> scores;
          for (int slot = 0; slot <= lastVisibleOfRow_[row]; slot++) {
            double dot = 0.0;
            for (int d = 0; d < headDim; d++) dot += queries[at + d] * keys[slot][d];
            scores.push_back(dot / std::sqrt(static_cast<double>(headDim)));
          }
          const double max = *std::max_element(scores.begin(), scores.end());
          double total = 0.0;
          for (double& score : scores) total += score = std::exp(score - max);
          for (size_t slot = 0; slot < scores.size(); slot++) {
            for (int d = 0; d < headDim; d++) all[at + d] += scores[slot] / total * values[slot][d];
          }
        }
      }
    }
  }
  return all;
}

std::string AttentionCase::name() const {
  const char* types[] = {"float32", "float16", "bfloat16", "int8"};
  return std::string(types[static_cast<int>(shape_.type)]) + " cache, " + std::to_string(shape_.headCount) +
         "/" + std::to_string(shape_.kvHeadCount) + " heads of " + std::to_string(shape_.headDim) + ", " +
         std::to_string(shape_.sequences.size()) + " sequences";
}

}  // namespace glm_relay::cuda
