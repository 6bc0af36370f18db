// Reads a matrix strip by strip, several at once, and lets go of the rows that have been read: a
// matrix that is being loaded takes its final size and little more.
#pragma once

#include <exception>
#include <functional>

#include "backend.h"
#include "model/thread_pool.h"

namespace glm_relay {

// Calls strip(i, thread) for every strip of the matrix. When strips throw, the error of the first of
// them is thrown again.
void loadStrips(const HostMatrix& matrix, ThreadPool& pool,
                const std::function<void(int strip, int thread)>& strip);

}  // namespace glm_relay
