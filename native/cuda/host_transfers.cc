#include "cuda/host_transfers.h"

#include <cstring>

namespace glm_relay::cuda {

void HostTransfers::reserve(uint64_t bytes) {
  in_.grow(bytes);
  out_.grow(bytes);
}

uint8_t* HostTransfers::take(const PinnedMemory& memory, uint64_t& used, uint64_t bytes) {
  if (used + bytes > memory.bytes()) return nullptr;
  uint8_t* piece = memory.data() + used;
  used += bytes;
  return piece;
}

void HostTransfers::in(void* to, const void* from, uint64_t bytes, cudaStream_t stream) {
  uint8_t* piece = take(in_, usedIn_, bytes);
  if (piece != nullptr) std::memcpy(piece, from, bytes);
  check(cudaMemcpyAsync(to, piece == nullptr ? from : piece, bytes, cudaMemcpyHostToDevice, stream),
        "copying in");
}

void HostTransfers::out(void* to, const void* from, uint64_t bytes, cudaStream_t stream) {
  uint8_t* piece = take(out_, usedOut_, bytes);
  if (piece != nullptr) arriving_.push_back({to, piece, bytes});
  check(cudaMemcpyAsync(piece == nullptr ? to : piece, from, bytes, cudaMemcpyDeviceToHost, stream),
        "copying out");
}

void HostTransfers::finish() {
  for (const Arriving& piece : arriving_) std::memcpy(piece.to, piece.from, piece.bytes);
  arriving_.clear();
  usedIn_ = 0;
  usedOut_ = 0;
}

}  // namespace glm_relay::cuda
