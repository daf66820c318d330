// Barriers and warp collectives.
//
// A collective is a rendezvous: every member brings a pointer to its own locals and waits; the last to arrive computes
// for all and releases the others. Members must stand at the same place in the source: two different places are a
// divergent barrier, which is an error here and undefined on a device.
#pragma once
#include "arithmetic.h"
#include "execution.h"

namespace cuda_on_cpu {

struct Rendezvous {
  void** slots;  // by lane or by thread of the block; null where nobody arrived
};
enum class Place { Same, Any };  // whether members must stand at one place in the source

// The calling thread joins and waits. Only the last to arrive gets the rendezvous back, and must release it; the
// others get null once that has happened.
Rendezvous* meet_warp(unsigned mask, void* slot, const char* what, Location location);
Rendezvous* meet_block(int barrier, int members, void* slot, const char* what, Location location, Place place);
void release(Rendezvous* rendezvous);

// Barrier numbers beyond the sixteen of the hardware belong to the warpgroups.
constexpr int kAllThreads = 0;
constexpr int kHardwareBarriers = 16;
constexpr int kWarpgroupBarriers = 8;

template <class Slot, class Compute>
void warp_collective(unsigned mask, Slot* slot, const char* what, Location location, Compute compute) {
  if (Rendezvous* all = meet_warp(mask, slot, what, location)) {
    compute(reinterpret_cast<Slot**>(all->slots));
    release(all);
  }
}
// Lanes of the mask that exist: the last warp of a block may be partial.
template <class Slot, class Visit>
void for_each_lane(unsigned mask, Slot** slots, Visit visit) {
  for (unsigned rest = mask; rest; rest &= rest - 1)
    if (int lane = std::countr_zero(rest); slots[lane]) visit(lane);
}

// Lane i of a shuffle reads the value of lane source(i).
template <class T, class Source>
T shuffle(unsigned mask, T value, Source source, const char* what, Location location) {
  struct Slot {
    T value, result;
    int source;
  } slot{value, value, source(current_thread->lane)};
  warp_collective(mask, &slot, what, location, [mask](Slot** slots) {
    for_each_lane(mask, slots, [&](int lane) {
      int from = slots[lane]->source;
      if (!(mask >> from & 1) || !slots[from])
        fail("shuffle: lane %d reads lane %d, which takes no part (mask %08x)", lane, from, mask);
      slots[lane]->result = slots[from]->value;
    });
  });
  return slot.result;
}

template <class T, class Combine>
T warp_reduce(unsigned mask, T value, Combine combine, const char* what, Location location) {
  struct Slot {
    T value;
  } slot{value};
  warp_collective(mask, &slot, what, location, [mask, combine](Slot** slots) {
    int first = std::countr_zero(mask);
    T result = slots[first]->value;
    for_each_lane(mask & (mask - 1), slots, [&](int lane) { result = combine(result, slots[lane]->value); });
    for_each_lane(mask, slots, [&](int lane) { slots[lane]->value = result; });
  });
  return slot.value;
}

// __syncthreads_count, _and, _or differ in what they make of the number of true predicates.
template <class Result>
int vote_of_block(int predicate, Result result, const char* what, Location location) {
  if (Rendezvous* all = meet_block(kAllThreads, 0, &predicate, what, location, Place::Same)) {
    int threads = int(current_block.size.x * current_block.size.y * current_block.size.z), present = 0, votes = 0;
    for (int i = 0; i < threads; i++)
      if (auto* vote = static_cast<int*>(all->slots[i])) present++, votes += *vote != 0;
    for (int i = 0; i < threads; i++)
      if (auto* vote = static_cast<int*>(all->slots[i])) *vote = result(votes, present);
    release(all);
  }
  return predicate;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_HERE ::cuda_on_cpu::Location here = ::cuda_on_cpu::Location::current()

inline void __syncthreads(CUDA_ON_CPU_HERE) {
  using namespace cuda_on_cpu;
  if (auto* all = meet_block(kAllThreads, 0, nullptr, "__syncthreads", here, Place::Same)) release(all);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::vote_of_block(predicate, [](int votes, int) { return votes; }, "__syncthreads_count", here);
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::vote_of_block(
      predicate, [](int votes, int present) { return int(votes == present); }, "__syncthreads_and", here);
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::vote_of_block(predicate, [](int votes, int) { return int(votes > 0); }, "__syncthreads_or", here);
}
inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_HERE) {
  if (auto* all = cuda_on_cpu::meet_warp(mask, nullptr, "__syncwarp", here)) cuda_on_cpu::release(all);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_HERE) {
  auto from = [=](int lane) { return (lane & ~(width - 1)) | (source & (width - 1)); };
  return cuda_on_cpu::shuffle(mask, value, from, "__shfl_sync", here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CUDA_ON_CPU_HERE) {
  auto from = [=](int lane) {
    int other = lane ^ lane_mask;
    return other < (lane & ~(width - 1)) + width ? other : lane;
  };
  return cuda_on_cpu::shuffle(mask, value, from, "__shfl_xor_sync", here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_HERE) {
  auto from = [=](int lane) { return (lane & (width - 1)) + int(delta) < width ? lane + int(delta) : lane; };
  return cuda_on_cpu::shuffle(mask, value, from, "__shfl_down_sync", here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_HERE) {
  auto from = [=](int lane) { return (lane & (width - 1)) >= int(delta) ? lane - int(delta) : lane; };
  return cuda_on_cpu::shuffle(mask, value, from, "__shfl_up_sync", here);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  unsigned own = predicate ? 1u << cuda_on_cpu::current_thread->lane : 0u;
  return cuda_on_cpu::warp_reduce(mask, own, [](unsigned a, unsigned b) { return a | b; }, "__ballot_sync", here);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return __ballot_sync(mask, predicate, here) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return __ballot_sync(mask, predicate, here) == mask;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::warp_reduce(mask, value, [](unsigned a, unsigned b) { return a + b; }, "__reduce_add_sync", here);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::warp_reduce(
      mask, value, [](unsigned a, unsigned b) { return max(a, b); }, "__reduce_max_sync", here);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::warp_reduce(
      mask, value, [](unsigned a, unsigned b) { return min(a, b); }, "__reduce_min_sync", here);
}
// __activemask() is absent on purpose: its value depends on scheduling.

// The threads of a launch share one OS thread, so only the compiler could reorder. A forgotten fence is not seen.
inline void __threadfence() { asm volatile("" ::: "memory"); }
inline void __threadfence_block() { asm volatile("" ::: "memory"); }
[[noreturn]] inline void __trap() { cuda_on_cpu::fail("__trap()"); }

namespace ptx {
// bar.sync: producers and consumers may stand at different places.
inline void named_barrier(int barrier, int threads, CUDA_ON_CPU_HERE) {
  using namespace cuda_on_cpu;
  if (barrier < 1 || barrier >= kHardwareBarriers) fail("named barrier %d: the hardware has 1 to 15", barrier);
  if (threads % 32) fail("named barrier %d: %d threads are not whole warps", barrier, threads);
  if (auto* all = meet_block(barrier, threads, nullptr, "named barrier", here, Place::Any)) release(all);
}
}  // namespace ptx
