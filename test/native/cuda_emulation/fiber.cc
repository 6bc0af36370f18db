#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstring>
#include <new>

namespace glm_relay::emulation {

namespace {

// Kernels keep their data in shared memory and registers; an emulated one needs some kilobytes.
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kGuardBytes = 4096;

thread_local Fiber* running = nullptr;

}  // namespace

#if defined(__x86_64__)

// Saves what a function must keep, and goes on where `to` was saved.
extern "C" void glmRelaySwitchFiber(void** from, void* to);
asm(R"(
.text
.type glmRelaySwitchFiber,@function
glmRelaySwitchFiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size glmRelaySwitchFiber,.-glmRelaySwitchFiber
)");

struct Fiber::Context {
  void* fiber;
  void* scheduler;
};

void Fiber::reset(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  auto* top = reinterpret_cast<void**>(stack_ + kGuardBytes + kStackBytes);
  // Six saved registers, the address that `ret` goes to, and one word that keeps the stack aligned.
  top -= 8;
  std::memset(top, 0, 8 * sizeof(void*));
  top[6] = reinterpret_cast<void*>(&Fiber::enter);
  context_->fiber = top;
}

void Fiber::resume() {
  running = this;
  glmRelaySwitchFiber(&context_->scheduler, context_->fiber);
}

void Fiber::suspend() { glmRelaySwitchFiber(&context_->fiber, context_->scheduler); }

#else

struct Fiber::Context {
  ucontext_t fiber;
  ucontext_t scheduler;
};

void Fiber::reset(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  getcontext(&context_->fiber);
  context_->fiber.uc_stack.ss_sp = stack_ + kGuardBytes;
  context_->fiber.uc_stack.ss_size = kStackBytes;
  context_->fiber.uc_link = nullptr;
  makecontext(&context_->fiber, &Fiber::enter, 0);
}

void Fiber::resume() {
  running = this;
  swapcontext(&context_->scheduler, &context_->fiber);
}

void Fiber::suspend() { swapcontext(&context_->fiber, &context_->scheduler); }

#endif

Fiber::Fiber() : context_(new Context()) {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<uint8_t*>(memory);
  mprotect(stack_, kGuardBytes, PROT_NONE);
}

Fiber::~Fiber() {
  munmap(stack_, kGuardBytes + kStackBytes);
  delete context_;
}

void Fiber::enter() {
  Fiber* self = running;
  self->entry_(self->argument_);
  // The entry has told the scheduler that it is over, which never resumes it.
  for (;;) self->suspend();
}

}  // namespace glm_relay::emulation
