#include <algorithm>
#include <cstddef>
#include <cstring>

#include "cache/checksum.h"
#include "cache/weight_file.h"

namespace glm_relay {

namespace {

constexpr uint64_t kMagic = 0x3177656c61725f67ull;  // "g_ralew1"
constexpr uint64_t kMatrixAlignment = 4096;
// The largest layer has some hundred experts; its key and records take a few hundred bytes each.
constexpr uint64_t kHeaderBytesMax = 16 << 20;

struct Prefix {
  uint64_t magic;
  uint32_t layoutVersion;
  uint32_t matrixCount;
  uint64_t headerBytes;  // this included
  uint64_t fileBytes;
  uint64_t headerChecksum;  // of the header with zero in this place
  uint64_t unused[3];
};
static_assert(sizeof(Prefix) == 64, "one cache line");

// What is told of a matrix besides its role.
struct Fields {
  int32_t n;
  int32_t k;
  int32_t groupSize;
  uint8_t dtype;
  uint8_t type;
  uint8_t scales;
  uint8_t unused;
  double squaredError;
  double squaredWeight;
  uint64_t bytes;
  uint64_t offset;
  uint64_t checksum;
};
static_assert(sizeof(Fields) == 56, "no gaps");

uint64_t aligned(uint64_t offset) {
  return (offset + kMatrixAlignment - 1) / kMatrixAlignment * kMatrixAlignment;
}

uint64_t headerBytes(const WeightFileHeader& header) {
  uint64_t bytes = sizeof(Prefix) + sizeof(uint32_t) + header.key.size();
  for (const MatrixRecord& matrix : header.matrices) {
    bytes += sizeof(uint32_t) + matrix.role.size() + sizeof(Fields);
  }
  return bytes;
}

class Writer {
 public:
  explicit Writer(uint64_t bytes) { out.reserve(bytes); }
  void raw(const void* data, size_t bytes) {
    const auto* from = static_cast<const uint8_t*>(data);
    out.insert(out.end(), from, from + bytes);
  }
  void text(const std::string& value) {
    const auto length = static_cast<uint32_t>(value.size());
    raw(&length, sizeof(length));
    raw(value.data(), length);
  }
  std::vector<uint8_t> out;
};

class Reader {
 public:
  Reader(const uint8_t* data, uint64_t bytes) : data_(data), left_(bytes) {}
  void raw(void* to, uint64_t bytes) {
    if (bytes > left_) throw WeightFileError("its header ends early");
    std::memcpy(to, data_, bytes);
    data_ += bytes;
    left_ -= bytes;
  }
  std::string text() {
    uint32_t length;
    raw(&length, sizeof(length));
    if (length > left_) throw WeightFileError("its header ends early");
    std::string value(length, '\0');
    raw(value.data(), length);
    return value;
  }

 private:
  const uint8_t* data_;
  uint64_t left_;
};

uint64_t headerChecksum(std::vector<uint8_t> header) {
  std::memset(header.data() + offsetof(Prefix, headerChecksum), 0, sizeof(uint64_t));
  return checksum(header.data(), header.size());
}

MatrixRecord readMatrix(Reader& reader, uint64_t fileBytes) {
  MatrixRecord matrix;
  matrix.role = reader.text();
  Fields fields;
  reader.raw(&fields, sizeof(fields));
  if (fields.offset > fileBytes || fields.bytes > fileBytes - fields.offset ||
      fields.offset % kMatrixAlignment != 0) {
    throw WeightFileError(matrix.role + " lies beyond its end");
  }
  matrix.n = fields.n;
  matrix.k = fields.k;
  matrix.dtype = static_cast<DType>(fields.dtype);
  matrix.format = {static_cast<WeightType>(fields.type), fields.groupSize,
                   static_cast<ScaleChoice>(fields.scales)};
  matrix.rounding = {fields.squaredError, fields.squaredWeight};
  matrix.bytes = fields.bytes;
  matrix.offset = fields.offset;
  matrix.checksum = fields.checksum;
  return matrix;
}

}  // namespace

void WeightFileHeader::place() {
  fileBytes = headerBytes(*this);
  for (MatrixRecord& matrix : matrices) {
    matrix.offset = aligned(fileBytes);
    fileBytes = matrix.offset + matrix.bytes;
  }
}

std::vector<uint8_t> WeightFileHeader::encode() const {
  Prefix prefix = {};
  prefix.magic = kMagic;
  prefix.layoutVersion = kWeightLayoutVersion;
  prefix.matrixCount = static_cast<uint32_t>(matrices.size());
  prefix.headerBytes = headerBytes(*this);
  prefix.fileBytes = fileBytes;
  Writer writer(prefix.headerBytes);
  writer.raw(&prefix, sizeof(prefix));
  writer.text(key);
  for (const MatrixRecord& matrix : matrices) {
    writer.text(matrix.role);
    Fields fields = {};
    fields.n = matrix.n;
    fields.k = matrix.k;
    fields.groupSize = matrix.format.groupSize;
    fields.dtype = static_cast<uint8_t>(matrix.dtype);
    fields.type = static_cast<uint8_t>(matrix.format.type);
    fields.scales = static_cast<uint8_t>(matrix.format.scales);
    fields.squaredError = matrix.rounding.squaredError;
    fields.squaredWeight = matrix.rounding.squaredWeight;
    fields.bytes = matrix.bytes;
    fields.offset = matrix.offset;
    fields.checksum = matrix.checksum;
    writer.raw(&fields, sizeof(fields));
  }
  const uint64_t sum = headerChecksum(writer.out);
  std::memcpy(writer.out.data() + offsetof(Prefix, headerChecksum), &sum, sizeof(sum));
  return std::move(writer.out);
}

WeightFileHeader WeightFileHeader::decode(const uint8_t* data, uint64_t fileBytes) {
  Prefix prefix;
  if (fileBytes < sizeof(prefix)) throw WeightFileError("it is too short for a header");
  std::memcpy(&prefix, data, sizeof(prefix));
  if (prefix.magic != kMagic) throw WeightFileError("it is no finished file of weights");
  if (prefix.layoutVersion != kWeightLayoutVersion) {
    throw WeightFileError("its layout is version " + std::to_string(prefix.layoutVersion) + ", expected " +
                          std::to_string(kWeightLayoutVersion));
  }
  if (prefix.fileBytes != fileBytes) {
    throw WeightFileError("it has " + std::to_string(fileBytes) + " bytes, expected " +
                          std::to_string(prefix.fileBytes));
  }
  if (prefix.headerBytes < sizeof(prefix) || prefix.headerBytes > std::min(fileBytes, kHeaderBytesMax)) {
    throw WeightFileError("its header cannot have " + std::to_string(prefix.headerBytes) + " bytes");
  }
  if (headerChecksum({data, data + prefix.headerBytes}) != prefix.headerChecksum) {
    throw WeightFileError("its header has another checksum");
  }
  WeightFileHeader header;
  header.fileBytes = fileBytes;
  Reader reader(data + sizeof(prefix), prefix.headerBytes - sizeof(prefix));
  header.key = reader.text();
  for (uint32_t i = 0; i < prefix.matrixCount; i++) header.matrices.push_back(readMatrix(reader, fileBytes));
  return header;
}

}  // namespace glm_relay
