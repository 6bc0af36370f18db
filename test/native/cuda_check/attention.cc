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

}  // namespace

void checkAttention(Check& check) {
  uint64_t seed = 1;
  for (KvType type : kTypes) {
    // Around the borders of tiles of 16 and 32 slots; groups of 1, 2, 16 and 17 heads; heads of 8 to 128.
    checkCase(check, {type, 4, 4, 8, {{0, 5}, {14, 3}, {31, 1}}, 0, 8}, seed++);
    checkCase(check, {type, 4, 2, 40, {{0, 33}, {15, 1}}, 0, 16, 2}, seed++);
    checkCase(check, {type, 16, 1, 64, {{47, 2}, {0, 1}}, 0, 64, 1, true, true}, seed++);
    checkCase(check, {type, 17, 1, 128, {{16, 1}, {33, 2}}, 0, 64}, seed++);
    // A context that sees all of itself, and a row behind it.
    checkCase(check, {type, 2, 1, 32, {{0, 37}, {36, 1}}, 37, 32, 1, true}, seed++);
  }
  // Parts of 512 slots: on their borders and behind them.
  checkCase(check, {KvType::kFloat16, 2, 1, 16, {{510, 4}, {1100, 1}, {3, 1}}, 0}, seed++);
  checkCase(check, {KvType::kInt8, 2, 2, 16, {{1023, 2}}, 0}, seed++);
}

}  // namespace glm_relay::cuda
