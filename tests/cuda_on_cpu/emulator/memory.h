// Atomics, cached loads and stores, and cp.async.
#pragma once
#include "execution.h"
#include <atomic>
#include <cstring>

template <class T, class Update>
T cuda_on_cpu_atomic_update(T* address, Update update) {
  cuda_on_cpu::check_access(address);
  std::atomic_ref<T> cell(*address);
  T old = cell.load(std::memory_order_relaxed);
  while (!cell.compare_exchange_weak(old, update(old), std::memory_order_relaxed)) {
  }
  return old;
}
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu_atomic_update(address, [value](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu_atomic_update(address, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu_atomic_update(address, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  cuda_on_cpu::check_access(address);
  return std::atomic_ref<T>(*address).exchange(value);
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  cuda_on_cpu::check_access(address);
  return std::atomic_ref<T>(*address).fetch_or(value);
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  cuda_on_cpu::check_access(address);
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, value);
  return expected;
}
// Wraps to zero past `limit`, as atomicInc on the device.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return cuda_on_cpu_atomic_update(address, [limit](unsigned old) { return old >= limit ? 0u : old + 1; });
}

// A vector access must be aligned to its size on the device; on the host only the instruction set decides.
template <class T>
const T* cuda_on_cpu_aligned(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T))
    cuda_on_cpu::fail("misaligned address %p", (const void*)address);
  cuda_on_cpu::check_access(address);
  return address;
}
template <class T>
T __ldca(const T* address) {
  return *cuda_on_cpu_aligned(address);
}
template <class T>
T __ldcs(const T* address) {
  return *cuda_on_cpu_aligned(address);
}
template <class T>
T __ldcg(const T* address) {
  return *cuda_on_cpu_aligned(address);
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *const_cast<T*>(cuda_on_cpu_aligned(address)) = value;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *const_cast<T*>(cuda_on_cpu_aligned(address)) = value;
}

namespace cuda_on_cpu {
struct AsyncCopy {
  void* destination;
  const void* source;
  int bytes, source_bytes;  // the rest is filled with zeros
};
// The queue of the calling thread. The copies of the oldest groups become due when a wait allows only `pending` more.
void issue_async_copy(const AsyncCopy& copy);
void commit_async_copies();
bool next_due_async_copy(int pending, AsyncCopy& copy);
}  // namespace cuda_on_cpu

namespace ptx {

inline unsigned smem_u32(const void* pointer) { return cuda_on_cpu::shared_address(pointer); }

// The data lands as late as the model allows, at the wait. Until then the destination is NaN, so a forgotten wait is
// seen. Data is moved here, in code that the sanitizers instrument.
template <int kBytes>
void cp_async(void* destination, const void* source, bool valid) {
  if (reinterpret_cast<uintptr_t>(destination) % kBytes || (valid && reinterpret_cast<uintptr_t>(source) % kBytes))
    cuda_on_cpu::fail("cp.async of %d bytes: misaligned address", kBytes);
  if (valid) cuda_on_cpu::check_access(source);
  std::memset(destination, 0xff, kBytes);
  cuda_on_cpu::issue_async_copy({destination, source, kBytes, valid ? kBytes : 0});
}
inline void cp_async16(void* destination, const void* source, bool valid = true) {
  cp_async<16>(destination, source, valid);
}
inline void cp_async4(void* destination, const void* source, bool valid = true) {
  cp_async<4>(destination, source, valid);
}
inline void cp_async_commit() { cuda_on_cpu::commit_async_copies(); }
template <int kPending>
void cp_async_wait() {
  for (cuda_on_cpu::AsyncCopy copy; cuda_on_cpu::next_due_async_copy(kPending, copy);) {
    auto* to = static_cast<unsigned char*>(copy.destination);
    auto* from = static_cast<const unsigned char*>(copy.source);
    for (int i = 0; i < copy.bytes; i++) to[i] = i < copy.source_bytes ? from[i] : 0;
  }
}

}  // namespace ptx
