// Two ways to switch fibers: a few instructions on x86-64; ucontext elsewhere, which makes system calls.

#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_PORTABLE_SWITCH
#include <ucontext.h>
#endif

namespace simt {
namespace {

// Stacks are never freed: the next block uses them again.
char* new_stack(size_t bytes) {
  size_t page = sysconf(_SC_PAGESIZE);
  void* memory = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);  // guard page: a stack overflow stops here, not in another stack
  return static_cast<char*>(memory) + page;
}

Fiber* running = nullptr;

KnownStack scheduler_stack;

}  // namespace

#ifdef SIMT_PORTABLE_SWITCH

namespace {
ucontext_t scheduler;
void switch_to(void** save, void* load) {
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}
void* scheduler_context = &scheduler;
}  // namespace

void Fiber::prepare(Entry entry) {
  begin(entry);
  if (!context_) context_ = new ucontext_t;
  ucontext_t* context = static_cast<ucontext_t*>(context_);
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, enter, 0);
}

#else

// Pushes the registers a function must preserve, stores the stack pointer in *save and continues on stack `load`.
extern "C" void simt_switch(void** save, void* load) __asm__("simt_switch");
__asm__(
    ".text\n.globl simt_switch\nsimt_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n");

namespace {
void switch_to(void** save, void* load) { simt_switch(save, load); }
void* scheduler_context = nullptr;
}  // namespace

void Fiber::prepare(Entry entry) {
  begin(entry);
  // simt_switch will pop six registers and then `enter` as the return address. The ABI requires that the stack
  // pointer is 8 bytes off a multiple of 16 when a function begins.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(enter);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context_ = top;
}

#endif

void Fiber::begin(Entry entry) {
  if (!stack_) stack_ = new_stack(kStackBytes);
  allow(stack_, kStackBytes);  // a kernel that never returned left poisoned frames
  known_ = {stack_, kStackBytes};
  entry_ = entry;
}

void Fiber::enter() {
  arrive_on(running->known_, scheduler_stack);
  running->entry_();
}

void Fiber::resume() {
  KnownStack before;  // this fiber's stack, not needed: known_ has it
  running = this;
  leave_for(known_, scheduler_stack);
  switch_to(&scheduler_context, context_);
  arrive_on(scheduler_stack, before);
  running = nullptr;
}

void Fiber::suspend() {
  leave_for(scheduler_stack, running->known_);
  switch_to(&running->context_, scheduler_context);
  arrive_on(running->known_, scheduler_stack);
}

}  // namespace simt
