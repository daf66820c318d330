// A stand-in for libcuda: the driver calls that cudarc makes, over the emulator.
//
// Device memory is host memory, each allocation a heap block of exactly its size, filled with 0xFF. Streams run their
// work at once, in the order of the calls, or (cuda_on_cpu_set_lazy) not before the host waits for it, which is as late as a
// driver may; a capturing stream records it. Functions that are missing here make cudarc
// panic with their name, which is the intended answer to host code that uses something with no emulation.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>

#include "runtime.h"
#include "tensor_map.h"

namespace {

using namespace cuda_on_cpu;

// Values of CUresult.
enum Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidHandle = 400,
  kNotFound = 500,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
  kCaptureUnjoined = 904,
  kCaptureIsolation = 905,
};

// What went wrong last on this OS thread; cuGetErrorString gives it to the host.
std::string& last_error() {
  static thread_local std::string text;
  return text;
}
Result refuse(Result result, std::string text) {
  last_error() = std::move(text);
  return result;
}

using Work = std::function<Result()>;
struct Graph {
  std::vector<Work> work;
  int guests = 0;  // streams that were drawn into the capture and have not been waited for
};
struct Stream {
  std::shared_ptr<Graph> capture;  // null when not capturing
  bool started_capture = false;    // false for a stream that joined through an event
  std::vector<Work> branch;        // what such a stream has added
  std::deque<Work> waiting;        // work that the host has not waited for
  uint64_t done = 0;               // how many such works have run
};
struct Event {
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<Graph> capture;  // the graph it was recorded into
  std::vector<Work> branch;        // what a guest of that graph had added before
  bool by_guest = false;
  Stream* stream = nullptr;        // where it was recorded,
  uint64_t after = 0;              // and after how many works
};
struct Module {
  std::string stem;  // empty: any kernel
};
struct Function {
  const KernelEntry* kernel;
  size_t dynamic_shared_limit = 48 << 10;
};

Stream& stream_of(void* handle) {
  static Stream default_stream;
  // 0, 1 and 2 name the default streams.
  return reinterpret_cast<uintptr_t>(handle) < 3 ? default_stream : *static_cast<Stream*>(handle);
}
// Runs what waits in a stream, until so many works of it have run. The first failure is that of the stream.
Result catch_up(Stream& s, uint64_t until) {
  Result result = kSuccess;
  while (!s.waiting.empty() && s.done < until) {
    Work work = std::move(s.waiting.front());
    s.waiting.pop_front();
    s.done++;
    if (Result failed = work(); failed && !result) result = failed;
  }
  return result;
}
Result catch_up(Stream& s) { return catch_up(s, ~uint64_t(0)); }
Result catch_up(Event& e) { return e.stream ? catch_up(*e.stream, e.after) : kSuccess; }

thread_local bool lazy = false;
Result submit(void* stream, Work work) {
  Stream& s = stream_of(stream);
  if (s.capture) {
    (s.started_capture ? s.capture->work : s.branch).push_back(std::move(work));
    return kSuccess;
  }
  if (lazy) {
    s.waiting.push_back(std::move(work));
    return kSuccess;
  }
  // What a lazy time has left comes first.
  if (Result failed = catch_up(s)) return failed;
  return work();
}

class Memory {
 public:
  static Memory& device() {
    static Memory* memory = new Memory(kDeviceBytes);  // outlives every static destructor that frees into it
    return *memory;
  }
  static Memory& pinned() {
    static Memory* memory = new Memory(~size_t(0));
    return *memory;
  }
  static constexpr size_t kDeviceBytes = size_t(8) << 30;

  Result allocate(void** pointer, size_t bytes) {
    std::lock_guard lock(mutex_);
    if (!bytes) return refuse(kInvalidValue, "an allocation of 0 bytes");
    if (bytes > limit_ - in_use_ || posix_memalign(pointer, 256, bytes))
      return refuse(kOutOfMemory, "out of device memory");
    std::memset(*pointer, kPoison, bytes);
    blocks_[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
    in_use_ += bytes;
    peak_ = max(peak_, in_use_);
    return kSuccess;
  }
  Result release(void* pointer) {
    std::lock_guard lock(mutex_);
    auto block = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    if (block == blocks_.end()) return refuse(kInvalidValue, "freed a pointer that no allocation returned");
    std::memset(pointer, kPoison, block->second);  // a use after free that no sanitizer watches should give NaN
    in_use_ -= block->second;
    blocks_.erase(block);
    std::free(pointer);
    return kSuccess;
  }
  bool holds(const void* pointer) {
    std::lock_guard lock(mutex_);
    auto block = blocks_.upper_bound(reinterpret_cast<uintptr_t>(pointer));
    return block != blocks_.begin() &&
           reinterpret_cast<uintptr_t>(pointer) < std::prev(block)->first + std::prev(block)->second;
  }
  Result check(const void* pointer, size_t bytes, const char* what) {
    std::lock_guard lock(mutex_);
    auto address = reinterpret_cast<uintptr_t>(pointer);
    auto block = blocks_.upper_bound(address);
    bool inside = block != blocks_.begin() && address + bytes <= std::prev(block)->first + std::prev(block)->second;
    if (inside || !bytes) return kSuccess;
    return refuse(kInvalidValue, std::string(what) + ": the range is not inside one allocation of device memory");
  }
  void hide([[maybe_unused]] bool hidden) {
#ifdef CUDA_ON_CPU_ASAN
    std::lock_guard lock(mutex_);
    if (hidden == std::exchange(hidden_, hidden)) return;
    for (auto [address, bytes] : blocks_)
      hidden ? __asan_poison_memory_region(reinterpret_cast<void*>(address), bytes)
             : __asan_unpoison_memory_region(reinterpret_cast<void*>(address), bytes);
#endif
  }
  size_t free_bytes() {
    std::lock_guard lock(mutex_);
    return limit_ - in_use_;
  }
  size_t in_use() {
    std::lock_guard lock(mutex_);
    return in_use_;
  }
  size_t peak() {
    std::lock_guard lock(mutex_);
    return peak_;
  }

 private:
  explicit Memory(size_t limit) : limit_(limit) {}
  std::mutex mutex_;
  std::map<uintptr_t, size_t> blocks_;
  size_t limit_, in_use_ = 0, peak_ = 0;
  [[maybe_unused]] bool hidden_ = false;
};

Result copy_work(void* stream, void* to, const void* from, size_t bytes) {
  return submit(stream, [=] {
    std::memmove(to, from, bytes);
    return kSuccess;
  });
}

// A launch owns copies of its parameters: those of the caller are gone when a captured launch is replayed.
class Launch {
 public:
  Launch(const KernelEntry& kernel, const LaunchGeometry& geometry, void** parameters)
      : kernel_(kernel), geometry_(geometry) {
    for (size_t i = 0; i < kernel.parameter_count; i++) {
      auto* bytes = static_cast<unsigned char*>(parameters[i]);
      // Parameters may be aligned up to 128 bytes (a tensor map).
      void* copy = std::aligned_alloc(128, (kernel.parameter_sizes[i] + 127) / 128 * 128);
      std::memcpy(copy, bytes, kernel.parameter_sizes[i]);
      parameters_.emplace_back(copy, &std::free);
    }
  }
  Result operator()() const {
    std::vector<void*> pointers;
    for (auto& parameter : parameters_) pointers.push_back(parameter.get());
    std::string error = launch(kernel_, geometry_, pointers.data());
    if (error.empty()) return kSuccess;
    error = std::string(kernel_.name) + ": " + error;
    std::fprintf(stderr, "cuda_on_cpu: %s\n", error.c_str());
    return refuse(kLaunchFailed, error);
  }

 private:
  const KernelEntry& kernel_;
  LaunchGeometry geometry_;
  std::vector<std::shared_ptr<void>> parameters_;
};

// A launch's attribute and configuration, as cuda.h declares them; of the values only those of one integer.
struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    int value;
    char bytes[64];
  };
};
static_assert(sizeof(LaunchAttribute) == 72);
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, dynamic_shared;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchConfig) == 56);

thread_local size_t overlapping_launches = 0;  // that this OS thread has made

Result launch_on(void* stream, const Function& f, const LaunchGeometry& geometry, void** parameters) {
  if (geometry.dynamic_shared_bytes > f.dynamic_shared_limit)
    return refuse(kInvalidValue, std::string(f.kernel->name) + ": " + std::to_string(geometry.dynamic_shared_bytes) +
                                     " bytes of dynamic shared memory, the function's limit is " +
                                     std::to_string(f.dynamic_shared_limit));
  return submit(stream, Launch(*f.kernel, geometry, parameters));
}

std::atomic<int> compute_capability = 90;  // ten times the major version and the minor one

// The attributes of an H100/H200 that host code has reason to ask for. Others are an error, not a zero.
std::optional<int> device_attribute(int attribute) {
  static const std::map<int, int> values = {
      {1, 1024},        // MAX_THREADS_PER_BLOCK
      {2, 1024},        // MAX_BLOCK_DIM_X
      {5, 0x7fffffff},  // MAX_GRID_DIM_X
      {6, 65535},       // MAX_GRID_DIM_Y
      {8, 48 << 10},    // MAX_SHARED_MEMORY_PER_BLOCK
      {10, 32},         // WARP_SIZE
      {12, 65536},      // MAX_REGISTERS_PER_BLOCK
      {13, 1980000},    // CLOCK_RATE, kHz
      {16, 4},          // MULTIPROCESSOR_COUNT: few, so that persistent kernels loop
      {36, 2619000},    // MEMORY_CLOCK_RATE, kHz
      {37, 5120},       // GLOBAL_MEMORY_BUS_WIDTH, bits
      {38, 50 << 20},   // L2_CACHE_SIZE
      {39, 2048},       // MAX_THREADS_PER_MULTIPROCESSOR
      {41, 1},          // UNIFIED_ADDRESSING
      {81, 228 << 10},  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
      {82, 65536},      // MAX_REGISTERS_PER_MULTIPROCESSOR
      {95, 0},          // COOPERATIVE_LAUNCH: not modelled
      {97, 227 << 10},  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
      {106, 32},        // MAX_BLOCKS_PER_MULTIPROCESSOR
      {115, 1},         // MEMORY_POOLS_SUPPORTED
  };
  if (attribute == 75) return compute_capability / 10;  // COMPUTE_CAPABILITY_MAJOR
  if (attribute == 76) return compute_capability % 10;  // COMPUTE_CAPABILITY_MINOR
  auto found = values.find(attribute);
  if (found == values.end()) return std::nullopt;
  return found->second;
}

// The images that modules are made of: what nvcc writes, or the text "stem:NAME", with which tests ask for the
// kernels of one file alone.
std::optional<Module> parse_image(const void* image) {
  constexpr uint32_t kFatbin = 0xba55ed50u, kElf = 0x464c457fu;
  constexpr char kStem[] = "stem:";
  uint32_t magic;
  std::memcpy(&magic, image, sizeof magic);
  if (magic == kFatbin || magic == kElf) return Module{};
  if (!std::strncmp(static_cast<const char*>(image), kStem, std::strlen(kStem)))
    return Module{static_cast<const char*>(image) + std::strlen(kStem)};
  return std::nullopt;
}

thread_local void* current_context = nullptr;
std::atomic<int> driver_version = 13000;
std::atomic<size_t> synchronisations = 0;  // how often the host has waited for a stream or the device
void* const kPrimaryContext = reinterpret_cast<void*>(0x10);
void* const kDefaultPool = reinterpret_cast<void*>(0x20);

}  // namespace

namespace cuda_on_cpu {
void hide_device_memory(bool hidden) { Memory::device().hide(hidden); }
}  // namespace cuda_on_cpu

extern "C" {

// ---- for the Rust side of this package

void cuda_on_cpu_set_schedule(int order, uint64_t seed) { schedule() = {Order(order), seed}; }
void cuda_on_cpu_last_error(char* text, size_t size) { std::snprintf(text, size, "%s", last_error().c_str()); }
// Streams that this OS thread fills run their work when the host waits for it.
void cuda_on_cpu_set_lazy(int on) { lazy = on != 0; }
void cuda_on_cpu_set_compute_capability(int capability) { compute_capability = capability; }
void cuda_on_cpu_set_driver_version(int version) { driver_version = version; }
size_t cuda_on_cpu_overlapping_launches() { return overlapping_launches; }
size_t cuda_on_cpu_synchronisations() { return synchronisations; }
void cuda_on_cpu_memory(size_t* in_use, size_t* peak) {
  *in_use = Memory::device().in_use();
  *peak = Memory::device().peak();
}

// ---- initialisation, devices, contexts, errors

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) { return *version = driver_version, kSuccess; }
int cuGetErrorName(int result, const char** name) {
  *name = result == kSuccess              ? "CUDA_SUCCESS"
          : result == kInvalidValue       ? "CUDA_ERROR_INVALID_VALUE"
          : result == kOutOfMemory        ? "CUDA_ERROR_OUT_OF_MEMORY"
          : result == kInvalidDevice      ? "CUDA_ERROR_INVALID_DEVICE"
          : result == kInvalidImage       ? "CUDA_ERROR_INVALID_IMAGE"
          : result == kInvalidHandle      ? "CUDA_ERROR_INVALID_HANDLE"
          : result == kNotFound           ? "CUDA_ERROR_NOT_FOUND"
          : result == kLaunchFailed       ? "CUDA_ERROR_LAUNCH_FAILED"
          : result == kCaptureUnsupported ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
          : result == kCaptureUnjoined    ? "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"
          : result == kCaptureIsolation   ? "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"
                                          : "CUDA_ERROR_UNKNOWN";
  return kSuccess;
}
int cuGetErrorString(int, const char** text) { return *text = last_error().c_str(), kSuccess; }
int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : refuse(kInvalidDevice, "there is one device");
}
int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size_t(size), "cuda_on_cpu"), kSuccess; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = Memory::kDeviceBytes, kSuccess; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  auto known = device_attribute(attribute);
  if (!known) return refuse(kInvalidValue, "device attribute " + std::to_string(attribute) + " is not modelled");
  return *value = *known, kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = kPrimaryContext, kSuccess; }
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
int cuCtxSetCurrent(void* context) { return current_context = context, kSuccess; }
int cuCtxGetCurrent(void** context) { return *context = current_context, kSuccess; }
int cuCtxSynchronize() {
  synchronisations++;
  return lazy ? refuse(kInvalidValue, "with lazy streams, synchronise streams, not the context") : kSuccess;
}

// ---- streams, graphs, events

int cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, kSuccess; }
int cuStreamCreateWithPriority(void** stream, unsigned, int) { return *stream = new Stream, kSuccess; }
int cuStreamDestroy_v2(void* stream) {
  Result result = catch_up(*static_cast<Stream*>(stream));
  delete static_cast<Stream*>(stream);
  return result;
}
int cuStreamSynchronize(void* stream) {
  synchronisations++;
  Stream& s = stream_of(stream);
  return s.capture ? refuse(kCaptureUnsupported, "a capturing stream was synchronised") : catch_up(s);
}
int cuStreamBeginCapture_v2(void* stream, int) {
  Stream& s = stream_of(stream);
  if (reinterpret_cast<uintptr_t>(stream) < 3) return refuse(kCaptureUnsupported, "the default stream cannot capture");
  if (s.capture) return refuse(kCaptureUnsupported, "the stream is capturing already");
  s.capture = std::make_shared<Graph>();
  s.started_capture = true;
  return kSuccess;
}
int cuStreamEndCapture(void* stream, void** graph) {
  Stream& s = stream_of(stream);
  if (!s.capture || !s.started_capture) return refuse(kInvalidValue, "the stream did not start a capture");
  auto captured = std::exchange(s.capture, nullptr);
  s.started_capture = false;
  if (captured->guests) return refuse(kCaptureUnjoined, "the capture has not waited for a stream that it drew in");
  *graph = new std::shared_ptr<Graph>(std::move(captured));
  return kSuccess;
}
int cuStreamIsCapturing(void* stream, int* status) { return *status = stream_of(stream).capture ? 1 : 0, kSuccess; }
// Waiting for an event of a capture draws the stream into it. When the origin waits for an event of a guest, the guest's
// work joins the graph: as late as a device may run it.
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  auto& e = *static_cast<Event*>(event);
  Stream& s = stream_of(stream);
  if (e.stream != &s) catch_up(e);
  if (!e.capture) return s.capture ? refuse(kCaptureIsolation, "the event was recorded outside the capture") : kSuccess;
  if (!s.capture) {
    s.capture = e.capture;
    s.capture->guests++;
  }
  if (s.capture != e.capture) return refuse(kCaptureIsolation, "the event belongs to another capture");
  if (s.started_capture && e.by_guest) {
    s.capture->guests--;
    for (auto& work : std::exchange(e.branch, {})) s.capture->work.push_back(std::move(work));
  }
  return kSuccess;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  *executable = new std::shared_ptr<Graph>(*static_cast<std::shared_ptr<Graph>*>(graph));
  return kSuccess;
}
int cuGraphLaunch(void* executable, void* stream) {
  if (stream_of(stream).capture) return refuse(kCaptureUnsupported, "a graph launch was captured");
  return submit(stream, [graph = *static_cast<std::shared_ptr<Graph>*>(executable)] {
    for (auto& work : graph->work)
      if (Result result = work()) return result;
    return kSuccess;
  });
}
int cuGraphUpload(void*, void*) { return kSuccess; }
int cuGraphDestroy(void* graph) { return delete static_cast<std::shared_ptr<Graph>*>(graph), kSuccess; }
int cuGraphExecDestroy(void* graph) { return delete static_cast<std::shared_ptr<Graph>*>(graph), kSuccess; }

int cuEventCreate(void** event, unsigned) { return *event = new Event, kSuccess; }
int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), kSuccess; }
int cuEventRecord(void* event, void* stream) {
  auto* e = static_cast<Event*>(event);
  Stream& s = stream_of(stream);
  e->capture = s.capture;
  e->time = std::chrono::steady_clock::now();
  e->stream = s.capture ? nullptr : &s;
  e->after = s.done + s.waiting.size();
  e->by_guest = s.capture && !s.started_capture;
  if (e->by_guest) {
    // A guest that reports back has done its part.
    e->branch = std::exchange(s.branch, {});
    s.capture = nullptr;
  }
  return kSuccess;
}
int cuEventSynchronize(void* event) { return catch_up(*static_cast<Event*>(event)); }
int cuEventQuery(void* event) { return catch_up(*static_cast<Event*>(event)); }
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  auto span = static_cast<Event*>(end)->time - static_cast<Event*>(start)->time;
  return *milliseconds = std::chrono::duration<float, std::milli>(span).count(), kSuccess;
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}

// ---- memory

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  *total = Memory::kDeviceBytes;
  return *free_bytes = Memory::device().free_bytes(), kSuccess;
}
int cuMemAlloc_v2(void** pointer, size_t bytes) { return Memory::device().allocate(pointer, bytes); }
int cuMemFree_v2(void* pointer) { return Memory::device().release(pointer); }
int cuMemAllocAsync(void** pointer, size_t bytes, void* stream) {
  if (stream_of(stream).capture) return refuse(kCaptureUnsupported, "an allocation inside a capture");
  return Memory::device().allocate(pointer, bytes);
}
int cuMemFreeAsync(void* pointer, void* stream) {
  if (stream_of(stream).capture) return refuse(kCaptureUnsupported, "memory was freed inside a capture");
  return submit(stream, [=] { return Memory::device().release(pointer); });
}
int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) { return Memory::pinned().allocate(pointer, bytes); }
int cuMemFreeHost(void* pointer) { return Memory::pinned().release(pointer); }
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = kDefaultPool, kSuccess; }
int cuDeviceGetMemPool(void** pool, int) { return *pool = kDefaultPool, kSuccess; }
int cuMemPoolSetAttribute(void*, int, void*) { return kSuccess; }
int cuMemPoolTrimTo(void*, size_t) { return kSuccess; }

int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  if (Result bad = Memory::device().check(to, bytes, "copy to the device")) return bad;
  if (!lazy || stream_of(stream).capture || Memory::pinned().holds(from)) return copy_work(stream, to, from, bytes);
  // Ordinary memory is read before the call returns.
  auto* first = static_cast<const char*>(from);
  return submit(stream, [to, staged = std::vector<char>(first, first + bytes)] {
    std::memcpy(to, staged.data(), staged.size());
    return kSuccess;
  });
}
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  if (Result bad = Memory::device().check(from, bytes, "copy from the device")) return bad;
  return copy_work(stream, to, from, bytes);
}
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  if (Result bad = Memory::device().check(to, bytes, "copy on the device")) return bad;
  if (Result bad = Memory::device().check(from, bytes, "copy on the device")) return bad;
  return copy_work(stream, to, from, bytes);
}
int cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr); }
int cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) {
  if (int bad = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr)) return bad;
  return catch_up(stream_of(nullptr));
}
int cuMemcpyDtoD_v2(void* to, const void* from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  return submit(stream, [=] {
    function(data);
    return kSuccess;
  });
}
int cuMemsetD8Async(void* to, unsigned char value, size_t bytes, void* stream) {
  if (Result bad = Memory::device().check(to, bytes, "memset")) return bad;
  return submit(stream, [=] {
    std::memset(to, value, bytes);
    return kSuccess;
  });
}
int cuMemsetD8_v2(void* to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }
int cuMemsetD32Async(void* to, unsigned value, size_t count, void* stream) {
  if (Result bad = Memory::device().check(to, count * 4, "memset")) return bad;
  return submit(stream, [=] {
    for (size_t i = 0; i < count; i++) static_cast<unsigned*>(to)[i] = value;
    return kSuccess;
  });
}

// ---- modules, functions, launches

int cuModuleLoadData(void** module, const void* image) {
  auto parsed = parse_image(image);
  if (!parsed) return refuse(kInvalidImage, "neither a fatbin nor a cubin");
  return *module = new Module(*parsed), kSuccess;
}
int cuModuleUnload(void* module) { return delete static_cast<Module*>(module), kSuccess; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  const std::string& stem = static_cast<Module*>(module)->stem;
  const KernelEntry* kernel = find_kernel(name);
  if (!kernel || (!stem.empty() && stem != kernel->stem))
    return refuse(kNotFound, "no kernel " + std::string(name) + (stem.empty() ? "" : " in " + stem + ".cu"));
  return *function = new Function{kernel}, kSuccess;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  constexpr int kMaxDynamicShared = 8, kPreferredCarveout = 9;
  if (attribute == kPreferredCarveout) return kSuccess;
  if (attribute != kMaxDynamicShared || value < 0 || size_t(value) > kMaxSharedPerBlock)
    return refuse(kInvalidValue, "function attribute " + std::to_string(attribute) + " = " + std::to_string(value));
  return static_cast<Function*>(function)->dynamic_shared_limit = size_t(value), kSuccess;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  constexpr int kMaxThreads = 0, kPtxVersion = 5;
  // As if compiled for the very device.
  if (attribute == kPtxVersion) return *value = compute_capability, kSuccess;
  if (attribute != kMaxThreads) return refuse(kInvalidValue, "this function attribute is known to a compiler only");
  return *value = static_cast<Function*>(function)->kernel->max_threads, kSuccess;
}
// One block per multiprocessor: enough for host code that sizes a persistent grid.
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int, size_t) { return *blocks = 1, kSuccess; }

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned dynamic_shared, void* stream, void** parameters,
                   void**) {
  LaunchGeometry geometry{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared};
  return launch_on(stream, *static_cast<Function*>(function), geometry, parameters);
}
int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** parameters, void**) {
  constexpr int kIgnore = 0, kProgrammaticStreamSerialization = 6;
  LaunchGeometry geometry{{c->grid_x, c->grid_y, c->grid_z}, {c->block_x, c->block_y, c->block_z}, c->dynamic_shared};
  for (unsigned i = 0; i < c->attribute_count; i++) {
    const LaunchAttribute& attribute = c->attributes[i];
    if (attribute.id == kProgrammaticStreamSerialization)
      geometry.overlaps = attribute.value != 0;
    else if (attribute.id != kIgnore)
      return refuse(kInvalidValue, "launch attribute " + std::to_string(attribute.id) + " is not modelled");
  }
  overlapping_launches += geometry.overlaps;
  return launch_on(c->stream, *static_cast<Function*>(function), geometry, parameters);
}

int cuTensorMapEncodeTiled(void* out, int type, unsigned rank, void* base, const uint64_t* extent,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                           int interleave, int swizzle, int, int) {
  static constexpr uint8_t kElementBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  if (type < 0 || type > 9 || rank < 1 || rank > 5 || swizzle < 0 || swizzle > 3 || interleave)
    return refuse(kInvalidValue, "tensor map: a type, rank, swizzle or interleave that is not modelled");
  if (reinterpret_cast<uintptr_t>(base) % 16) return refuse(kInvalidValue, "tensor map: base not aligned to 16 bytes");
  TensorMap map{};
  map.base = static_cast<char*>(base);
  map.rank = uint8_t(rank);
  map.element_bytes = kElementBytes[type];
  map.swizzle = uint8_t(swizzle);
  map.stride[0] = map.element_bytes;
  for (unsigned d = 0; d < rank; d++) {
    map.extent[d] = extent[d];
    map.box[d] = box[d];
    if (d) map.stride[d] = strides[d - 1];
    if (!extent[d] || !box[d] || box[d] > 256) return refuse(kInvalidValue, "tensor map: extent or box out of range");
    if (element_strides[d] < 1 || element_strides[d] > 8)
      return refuse(kInvalidValue, "tensor map: an element stride out of 1 to 8");
    // Without interleaving the device ignores the stride of the first dimension: asking for one is a mistake.
    if (!d && element_strides[d] != 1) return refuse(kInvalidValue, "tensor map: an element stride along the rows");
    map.step[d] = uint8_t(element_strides[d]);
    if (d && map.stride[d] % 16) return refuse(kInvalidValue, "tensor map: strides must be multiples of 16 bytes");
  }
  if (box[0] * map.element_bytes % 16)
    return refuse(kInvalidValue, "tensor map: box rows must be multiples of 16 bytes");
  std::memcpy(out, &map, sizeof map);
  return kSuccess;
}

}  // extern "C"
