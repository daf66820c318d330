// Runs blocks: fibers, rendezvous, shared memory, and the errors they can end in.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "fiber.h"
#include "runtime.h"

namespace cuda_on_cpu {

constinit thread_local Thread* current_thread = nullptr;
constinit thread_local Block current_block = {};

Schedule& schedule() {
  static thread_local Schedule value;
  return value;
}

namespace {

enum class State { Ready, Waiting, Polling, Exited };

struct CudaThread {
  Fiber fiber;
  Thread view;
  State state = State::Exited;
  AsyncQueues queues;
  // What it waits for, when it does.
  Condition condition = nullptr;
  const void* object = nullptr;
  int argument = 0;
  const char* what = "";
  Location location;
};

struct Meeting : Rendezvous {
  bool open = false;
  unsigned key = 0;  // lane mask, or barrier number
  int members = 0, arrived = 0;
  const char* what = "";
  Location location;
  std::vector<void*> storage;
  std::vector<int> waiting;
  // ThreadSanitizer tags, alternating: a fast thread may be in the next round before a slow one has left this one.
  unsigned round = 0;
  char tags[2];

  void start(unsigned key_, int members_, size_t slot_count) {
    open = true;
    key = key_;
    members = members_;
    arrived = 0;
    round++;
    storage.assign(slot_count, nullptr);
    slots = storage.data();
    waiting.clear();
  }
  void* tag() { return &tags[round & 1]; }
};

struct SharedVariable {
  void* memory;
  size_t bytes;
};

class Shuffle {
 public:
  explicit Shuffle(uint64_t seed) : state_(seed * 2 + 1) {}
  void operator()(std::vector<unsigned>& items) {
    for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[next() % i]);
  }

 private:
  uint64_t next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return state_ >> 33;
  }
  uint64_t state_;
};

std::vector<unsigned> in_order(size_t count, const Schedule& schedule, uint64_t salt) {
  std::vector<unsigned> items(count);
  std::iota(items.begin(), items.end(), 0u);
  if (schedule.order == Order::Descending) std::vector<unsigned>(items.rbegin(), items.rend()).swap(items);
  if (schedule.order == Order::Shuffled) Shuffle(schedule.seed + salt)(items);
  return items;
}

__attribute__((format(printf, 1, 2))) std::string format(const char* text, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  return buffer;
}

constexpr char kOverlapping[] = "in a launch that may overlap the grids before it";
constexpr int kMeetingsPerWarp = 4;  // masks that may be pending in one warp at once
constexpr int kWarpSize = 32;
constexpr int kBarriers = kHardwareBarriers + kWarpgroupBarriers;

// Runs one block at a time; one per OS thread, reused so that stacks are.
class BlockRunner {
 public:
  ~BlockRunner() { free_shared(); }

  std::string run(const KernelEntry& kernel, const LaunchGeometry& geometry, void** parameters, uint64_t salt);

  Meeting* meet_warp(unsigned mask, void* slot, const char* what, Location location);
  Meeting* meet_block(int barrier, int members, void* slot, const char* what, Location location, Place place);
  void release(Meeting& meeting);
  void wait_until(Condition condition, const void* object, int argument, const char* what, Location location);
  void defer(std::function<void()> work) { deferred_.push_back(std::move(work)); }
  [[noreturn]] void abandon(const std::string& message);

  void* shared_variable(const void* key, size_t bytes, size_t alignment);
  bool is_shared(const void* address) const;
  char* dynamic_shared() { return dynamic_; }
  size_t dynamic_bytes() const { return dynamic_bytes_; }
  CudaThread& current() { return *threads_[current_]; }

  static BlockRunner* active() { return active_; }
  static BlockRunner& of_this_os_thread() {
    static thread_local BlockRunner runner;
    return runner;
  }

 private:
  static void thread_main();
  void prepare(const LaunchGeometry& geometry, uint64_t salt);
  void prepare_thread(unsigned linear, const LaunchGeometry& geometry);
  void reserve_dynamic_shared(size_t bytes);
  void free_shared();
  void thread_exits();
  void run_next(bool dying = false);
  CudaThread* find_ready();
  bool run_deferred();
  Meeting* join(Meeting& meeting, unsigned slot_index, void* slot, const char* what, Location location, Place place);
  std::string describe_deadlock() const;

  static constinit thread_local BlockRunner* active_;
  Fiber os_thread_;
  std::vector<std::unique_ptr<CudaThread>> threads_;
  std::vector<unsigned> order_, position_;  // order_[position_[t]] == t
  unsigned count_ = 0, live_ = 0, current_ = 0;
  std::vector<Meeting> warp_meetings_, barriers_;
  std::vector<std::function<void()>> deferred_;
  const KernelEntry* kernel_ = nullptr;
  void** parameters_ = nullptr;
  std::string error_;
  char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0, static_bytes_ = 0;
  std::map<const void*, SharedVariable> shared_;
  char start_tag_, end_tag_;
};

constinit thread_local BlockRunner* BlockRunner::active_ = nullptr;

void BlockRunner::thread_main() {
  BlockRunner& runner = *active_;
  runner.current().fiber.entered();
  happens_after(&runner.start_tag_);
  runner.kernel_->call(runner.parameters_);
  if (runner.current().view.early) fail("ends without griddepcontrol.wait, %s", kOverlapping);
  happens_before(&runner.end_tag_);
  runner.thread_exits();
  std::abort();  // nobody continues a thread that has exited
}

void BlockRunner::thread_exits() {
  CudaThread& thread = current();
  thread.state = State::Exited;
  live_--;
  // The hardware counts an exited thread as arrived at __syncthreads.
  Meeting& all = barriers_[kAllThreads];
  if (all.open && --all.members == all.arrived && live_) release(all);
  run_next(true);
}

// Threads take turns round the order, starting behind the one that stops.
CudaThread* BlockRunner::find_ready() {
  unsigned start = position_[current_];
  for (unsigned step = 1; step <= count_; step++) {
    CudaThread& thread = *threads_[order_[(start + step) % count_]];
    if (thread.state == State::Polling && thread.condition(thread.object, thread.argument)) thread.state = State::Ready;
    if (thread.state == State::Ready) return &thread;
  }
  return nullptr;
}

void BlockRunner::run_next(bool dying) {
  CudaThread& from = current();
  CudaThread* to = find_ready();
  while (!to && run_deferred()) to = find_ready();
  if (to == &from) return;
  if (!to) return Fiber::switch_to(from.fiber, os_thread_, dying);  // all have finished, or none can
  current_ = unsigned(to->view.linear);
  current_thread = &to->view;
  Fiber::switch_to(from.fiber, to->fiber, dying);
}

bool BlockRunner::run_deferred() {
  auto work = std::move(deferred_);
  deferred_.clear();
  for (auto& item : work) item();
  return !work.empty();
}

void BlockRunner::abandon(const std::string& message) {
  const uint3 b = current_block.index;
  error_ = format("block (%u,%u,%u) thread %u: ", b.x, b.y, b.z, current_) + message;
  Fiber::switch_to(current().fiber, os_thread_);
  std::abort();  // an abandoned block is not continued
}

Meeting* BlockRunner::join(Meeting& meeting, unsigned slot_index, void* slot, const char* what, Location location,
                           Place place) {
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.location = location;
  } else if (place == Place::Same &&
             (location.line() != meeting.location.line() || location.column() != meeting.location.column() ||
              std::strcmp(what, meeting.what))) {
    abandon(format("divergent barrier: this thread is at %s (%s:%u), others wait at %s (%s:%u)", what,
                   location.file_name(), location.line(), meeting.what, meeting.location.file_name(),
                   meeting.location.line()));
  }
  meeting.storage[slot_index] = slot;
  void* tag = meeting.tag();
  happens_before(tag);
  if (++meeting.arrived == meeting.members) {
    happens_after(tag);
    return &meeting;
  }
  CudaThread& thread = current();
  thread.state = State::Waiting;
  thread.what = what;
  thread.location = location;
  meeting.waiting.push_back(thread.view.linear);
  run_next();
  happens_after(tag);
  return nullptr;
}

Meeting* BlockRunner::meet_warp(unsigned mask, void* slot, const char* what, Location location) {
  const Thread& self = current().view;
  if (!(mask >> self.lane & 1))
    abandon(format("%s: lane %d calls with mask %08x, which leaves it out (%s:%u)", what, self.lane, mask,
                   location.file_name(), location.line()));
  int lanes = std::min<int>(kWarpSize, int(count_) - self.warp * kWarpSize);
  unsigned present = lanes == kWarpSize ? mask : mask & ((1u << lanes) - 1);
  Meeting* meeting = nullptr;
  for (int i = 0; i < kMeetingsPerWarp && !(meeting && meeting->open); i++) {
    Meeting& candidate = warp_meetings_[size_t(self.warp * kMeetingsPerWarp + i)];
    if (candidate.open ? candidate.key == present : !meeting) meeting = &candidate;
  }
  if (!meeting) abandon(format("%s: more than %d different masks pending in one warp", what, kMeetingsPerWarp));
  if (!meeting->open) meeting->start(present, std::popcount(present), kWarpSize);
  return join(*meeting, unsigned(self.lane), slot, what, location, Place::Same);
}

Meeting* BlockRunner::meet_block(int barrier, int members, void* slot, const char* what, Location location,
                                 Place place) {
  Meeting& meeting = barriers_[size_t(barrier)];
  if (!meeting.open) meeting.start(unsigned(barrier), members ? members : int(live_), count_);
  if (members && members != meeting.members)
    abandon(format("%s %d: this thread expects %d threads, others %d", what, barrier, members, meeting.members));
  return join(meeting, current_, slot, what, location, place);
}

void BlockRunner::release(Meeting& meeting) {
  happens_before(meeting.tag());
  meeting.open = false;
  for (int waiting : meeting.waiting) threads_[size_t(waiting)]->state = State::Ready;
}

void BlockRunner::wait_until(Condition condition, const void* object, int argument, const char* what,
                             Location location) {
  run_deferred();
  if (condition(object, argument)) return;
  CudaThread& thread = current();
  thread.condition = condition;
  thread.object = object;
  thread.argument = argument;
  thread.what = what;
  thread.location = location;
  thread.state = State::Polling;
  run_next();
}

void* BlockRunner::shared_variable(const void* key, size_t bytes, size_t alignment) {
  HiddenFromRaceCheck hidden;
  auto [entry, is_new] = shared_.try_emplace(key);
  if (is_new) {
    static_bytes_ += bytes;
    if (static_bytes_ > kMaxStaticShared)
      abandon(format("%zu bytes of static shared memory, the limit is %zu", static_bytes_, kMaxStaticShared));
    if (posix_memalign(&entry->second.memory, alignment, bytes)) std::abort();
    entry->second.bytes = bytes;
    std::memset(entry->second.memory, kPoison, bytes);
  }
  return entry->second.memory;
}

bool BlockRunner::is_shared(const void* address) const {
  const auto inside = [address](const void* begin, size_t bytes) {
    return address >= begin && address < static_cast<const char*>(begin) + bytes;
  };
  for (auto& [key, variable] : shared_)
    if (inside(variable.memory, variable.bytes)) return true;
  return inside(dynamic_, dynamic_bytes_);
}

void BlockRunner::free_shared() {
  for (auto& [key, variable] : shared_) std::free(variable.memory);
  shared_.clear();
  static_bytes_ = 0;
  std::free(dynamic_);
  dynamic_ = nullptr;
  dynamic_bytes_ = 0;
}

void BlockRunner::reserve_dynamic_shared(size_t bytes) {
  dynamic_bytes_ = bytes;
  if (!bytes) return;
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, bytes)) std::abort();
  std::memset(memory, kPoison, bytes);
  dynamic_ = static_cast<char*>(memory);
}

void BlockRunner::prepare_thread(unsigned linear, const LaunchGeometry& geometry) {
  const dim3 block = geometry.block;
  if (threads_.size() <= linear) threads_.push_back(std::make_unique<CudaThread>());
  CudaThread& thread = *threads_[linear];
  thread.fiber.restart(&thread_main);
  thread.state = State::Ready;
  thread.queues.clear();
  thread.view.index = {linear % block.x, linear / block.x % block.y, linear / (block.x * block.y)};
  thread.view.linear = int(linear);
  thread.view.lane = int(linear % kWarpSize);
  thread.view.warp = int(linear / kWarpSize);
  thread.view.early = geometry.overlaps;
}

void BlockRunner::prepare(const LaunchGeometry& geometry, uint64_t salt) {
  count_ = live_ = geometry.block.x * geometry.block.y * geometry.block.z;
  error_.clear();
  deferred_.clear();
  warp_meetings_.resize((count_ + kWarpSize - 1) / kWarpSize * kMeetingsPerWarp);
  barriers_.resize(kBarriers);
  for (auto& meeting : warp_meetings_) meeting.open = false;
  for (auto& meeting : barriers_) meeting.open = false;
  order_ = in_order(count_, schedule(), salt);
  position_.resize(count_);
  for (unsigned i = 0; i < count_; i++) position_[order_[i]] = i;
  for (unsigned i = 0; i < count_; i++) prepare_thread(i, geometry);
  free_shared();
  reserve_dynamic_shared(geometry.dynamic_shared_bytes);
}

std::string BlockRunner::describe_deadlock() const {
  std::map<std::string, std::vector<unsigned>> by_place;
  for (unsigned i = 0; i < count_; i++) {
    const CudaThread& thread = *threads_[i];
    std::string place = thread.state == State::Exited
                            ? "exited"
                            : format("at %s (%s:%u)", thread.what, thread.location.file_name(), thread.location.line());
    by_place[place].push_back(i);
  }
  const uint3 b = current_block.index;
  std::string text = format("block (%u,%u,%u): deadlock, %u of %u threads never finish:", b.x, b.y, b.z, live_, count_);
  for (auto& [place, threads] : by_place)
    text +=
        format("\n  %zu thread(s) %s, from %u to %u", threads.size(), place.c_str(), threads.front(), threads.back());
  return text;
}

std::string BlockRunner::run(const KernelEntry& kernel, const LaunchGeometry& geometry, void** parameters,
                             uint64_t salt) {
  BlockRunner* outer = std::exchange(active_, this);
  kernel_ = &kernel;
  parameters_ = parameters;
  prepare(geometry, salt);
  os_thread_.adopt_os_thread();
  current_ = order_[0];
  current_thread = &threads_[current_]->view;
  happens_before(&start_tag_);
  if (geometry.overlaps) hide_device_memory(true);
  Fiber::switch_to(os_thread_, threads_[current_]->fiber);
  if (geometry.overlaps) hide_device_memory(false);
  happens_after(&end_tag_);
  if (error_.empty() && live_) error_ = describe_deadlock();
  active_ = outer;
  current_thread = nullptr;
  return error_;
}

BlockRunner& running() {
  BlockRunner* runner = BlockRunner::active();
  if (!runner) {
    std::fprintf(stderr, "cuda_on_cpu: device code was called outside a launch\n");
    std::abort();
  }
  return *runner;
}

}  // namespace

Rendezvous* meet_warp(unsigned mask, void* slot, const char* what, Location location) {
  return running().meet_warp(mask, slot, what, location);
}
Rendezvous* meet_block(int barrier, int members, void* slot, const char* what, Location location, Place place) {
  return running().meet_block(barrier, members, slot, what, location, place);
}
void release(Rendezvous* rendezvous) { running().release(*static_cast<Meeting*>(rendezvous)); }
void wait_until(Condition condition, const void* object, int argument, const char* what, Location location) {
  running().wait_until(condition, object, argument, what, location);
}
void defer(std::function<void()> work) { running().defer(std::move(work)); }
AsyncQueues& async_queues() { return running().current().queues; }

void fail(const char* text, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  running().abandon(buffer);
}

void early_access(const void* address) {
  if (!running().is_shared(address)) fail("accesses global memory before griddepcontrol.wait, %s", kOverlapping);
}
void grids_waited() {
  bool& early = running().current().view.early;
  if (early) hide_device_memory(false);
  early = false;
}

void* shared_variable(const void* key, size_t bytes, size_t alignment) {
  return running().shared_variable(key, bytes, alignment);
}
void* dynamic_shared() {
  if (!running().dynamic_shared()) fail("the kernel uses dynamic shared memory and was launched with 0 bytes of it");
  return running().dynamic_shared();
}
unsigned shared_address(const void* pointer) {
  const char* base = running().dynamic_shared();
  auto* address = static_cast<const char*>(pointer);
  if (address < base || address >= base + running().dynamic_bytes()) fail("not an address in dynamic shared memory");
  return unsigned(address - base);
}
void* shared_pointer(unsigned address) {
  if (address >= running().dynamic_bytes())
    fail("shared address %u is outside the %zu bytes of this block", address, running().dynamic_bytes());
  return running().dynamic_shared() + address;
}

void issue_async_copy(const AsyncCopy& copy) { async_queues().open_copies.push_back(copy); }
void commit_async_copies() {
  AsyncQueues& queues = async_queues();
  queues.copy_groups.push_back(std::exchange(queues.open_copies, {}));
}
bool next_due_async_copy(int pending, AsyncCopy& copy) {
  AsyncQueues& queues = async_queues();
  while (queues.due_copies.empty()) {
    if (int(queues.copy_groups.size()) <= pending) return false;
    queues.due_copies = std::move(queues.copy_groups.front());
    queues.copy_groups.pop_front();
  }
  copy = queues.due_copies.back();
  queues.due_copies.pop_back();
  return true;
}

static std::map<std::string, const KernelEntry*>& kernels() {
  static std::map<std::string, const KernelEntry*> table;
  return table;
}
Registration::Registration(const KernelEntry& entry) {
  if (!kernels().emplace(entry.name, new KernelEntry(entry)).second) {
    std::fprintf(stderr, "cuda_on_cpu: two kernels are named %s\n", entry.name);
    std::abort();
  }
}
const KernelEntry* find_kernel(const std::string& name) {
  auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

static std::string check_geometry(const KernelEntry& kernel, const LaunchGeometry& g) {
  uint64_t threads = uint64_t(g.block.x) * g.block.y * g.block.z, blocks = uint64_t(g.grid.x) * g.grid.y * g.grid.z;
  if (!threads || threads > kMaxThreadsPerBlock) return format("a block of %llu threads", (unsigned long long)threads);
  if (threads > uint64_t(kernel.max_threads))
    return format("a block of %llu threads, __launch_bounds__ says %d", (unsigned long long)threads,
                  kernel.max_threads);
  if (!blocks || g.grid.x > 0x7fffffffu || g.grid.y > 0xffff || g.grid.z > 0xffff)
    return format("a grid of %u x %u x %u blocks", g.grid.x, g.grid.y, g.grid.z);
  if (g.dynamic_shared_bytes > kMaxSharedPerBlock)
    return format("%zu bytes of dynamic shared memory, a block has %zu", g.dynamic_shared_bytes, kMaxSharedPerBlock);
  return "";
}

std::string launch(const KernelEntry& kernel, const LaunchGeometry& geometry, void** parameters) {
  if (std::string error = check_geometry(kernel, geometry); !error.empty()) return error;
  const dim3 grid = geometry.grid;
  const size_t blocks = size_t(grid.x) * grid.y * grid.z;
  current_block.grid = grid;
  current_block.size = geometry.block;
  for (unsigned b : in_order(blocks, schedule(), 0)) {
    current_block.index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    std::string error = BlockRunner::of_this_os_thread().run(kernel, geometry, parameters, b);
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace cuda_on_cpu
