#include <cmath>
#include <limits>

#include "attention_case.h"

namespace glm_relay::cuda {

namespace {

constexpr double kQueryBound = 2e-6;
// Rounded keys may fall to the other side of a border when the reference rotates in float64.
constexpr double kBound = 2e-3;

constexpr KvType kTypes[] = {KvType::kFloat32, KvType::kFloat16, KvType::kBfloat16, KvType::kInt8};

void checkRows(Check& check, const AttentionCase& attention, const std::vector<float>& got,
               const std::vector<double>& expected, const std::string& what) {
  for (int row = 0; row < attention.rows(); row++) {
    const int64_t begin = static_cast<int64_t>(row) * attention.columns();
    const int64_t end = begin + attention.columns();
    check.near({got.begin() + begin, got.begin() + end}, {expected.begin() + begin, expected.begin() + end},
               kBound, what + ", row " + std::to_string(row));
  }
}

void checkCase(Check& check, AttentionShape shape, uint64_t seed) {
  AttentionCase attention(std::move(shape), seed);
  attention.store();
  const std::vector<float> queries = attention.queries();
  check.near(queries, attention.expectedQueries(), kQueryBound, attention.name() + ", queries");
  const std::vector<double> expected = attention.expected(queries);
  const int rows = attention.rows();
  for (Path path : kPaths) {
    const std::string what = std::string(nameOf(path)) + " attention, " + attention.name();
    const std::vector<float> got = attention.attend(path, 0, rows, rows, false);
    checkRows(check, attention, got, expected, what);
    check.equal(attention.attend(path, 0, rows, rows, true), got, what + ", parts side by side");
    check.equal(attention.attend(path, 0, rows, 1, false), got, what + ", a row per task");
    check.equal(attention.attend(path, 0, rows, 3, true), got, what + ", three rows per task");
    for (int row : {0, rows / 2, rows - 1}) {
      const auto begin = got.begin() + static_cast<int64_t>(row) * attention.columns();
      check.equal(attention.attend(path, row, 1, 1, row % 2 == 0), {begin, begin + attention.columns()},
                  what + ", row " + std::to_string(row) + " alone");
    }
  }
}

// A query that is not finite gives no numbers, and its neighbours do not care.
void checkNotFinite(Check& check, Path path, KvType type) {
  AttentionCase attention({type, 4, 2, 32, {{20, 12}}, 0}, 9);
  attention.store();
  const std::vector<float> queries = attention.queries();
  const std::vector<float> good = attention.attend(path, 0, 12, 12, false);
  const size_t head = 5 * static_cast<size_t>(attention.columns());
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> broken = queries;
    broken[head + 7] = bad;
    attention.setQueries(broken);
    const std::vector<float> got = attention.attend(path, 0, 12, 12, false);
    std::vector<float> others = good;
    for (size_t i = head; i < head + 32; i++) {
      check.that(!std::isfinite(got[i]),
                 [] { return std::string("a query with NaN or infinity gives numbers"); });
      others[i] = got[i];
    }
    check.equal(got, others, "the queries beside one that is not finite");
  }
}

}  // namespace

void checkAttention(Check& check) {
  for (Path path : kPaths) prepareAttention(path);
  uint64_t seed = 1;
  for (KvType type : kTypes) {
    // Around the borders of tiles of 16 and 32 slots; groups of 1, 2, 16 and 17 heads; heads of 8 to 128.
    checkCase(check, {type, 4, 4, 8, {{0, 5}, {14, 3}, {31, 1}}, 0, 8}, seed++);
    checkCase(check, {type, 4, 2, 40, {{0, 33}, {15, 1}}, 0, 16, 2}, seed++);
    checkCase(check, {type, 16, 1, 64, {{47, 2}, {0, 1}}, 0, 64, 1, true, true}, seed++);
    checkCase(check, {type, 16, 1, 128, {{27, 7}, {62, 1}}, 0}, seed++);
    checkCase(check, {type, 17, 1, 128, {{16, 1}, {33, 2}}, 0, 64}, seed++);
    checkCase(check, {type, 3, 3, 80, {{0, 65}}, 0}, seed++);
    // A context that sees all of itself, and a row behind it.
    checkCase(check, {type, 2, 1, 32, {{0, 37}, {36, 1}}, 37, 32, 1, true}, seed++);
    // Parts of 256 slots: on their borders and behind them, tasks of few rows and of many.
    checkCase(check, {type, 2, 1, 16, {{254, 4}, {255, 1}, {256, 1}, {1100, 1}, {3, 1}}, 0}, seed++);
    checkCase(check, {type, 2, 2, 32, {{490, 50}}, 0}, seed++);
    checkCase(check, {type, 2, 1, 16, {{240, 40}}, 270}, seed++);
    AttentionShape growing = {type, 4, 1, 64, {{0, 100}, {299, 1}}, 0};
    growing.growingKeys = true;
    checkCase(check, growing, seed++);
    for (Path path : kPaths) checkNotFinite(check, path, type);
  }
}

}  // namespace glm_relay::cuda
