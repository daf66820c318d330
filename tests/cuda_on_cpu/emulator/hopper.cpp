// mbarriers, TMA loads and wgmma.
#include <algorithm>
#include <cstring>

#include "runtime.h"
#include "tensor_map.h"

namespace cuda_on_cpu {

// ---- mbarriers

namespace {

// The 64-bit object in shared memory.
struct Mbarrier {
  uint16_t phase : 1, expected : 15;
  uint16_t pending;
  int32_t transaction_bytes;
};
static_assert(sizeof(Mbarrier) == 8);

Mbarrier& checked(uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) fail("mbarrier: misaligned address");
  if (*barrier == ~0ull) fail("mbarrier: used before mbar_init");
  return *reinterpret_cast<Mbarrier*>(barrier);
}
// One ThreadSanitizer tag per phase.
void* phase_tag(Mbarrier& barrier, unsigned phase) { return reinterpret_cast<char*>(&barrier) + phase; }

void complete_phase_if_due(Mbarrier& barrier) {
  if (barrier.pending || barrier.transaction_bytes) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
}

}  // namespace

void mbarrier_init(uint64_t* barrier, int arrivals) {
  if (arrivals < 1 || arrivals > 0x7fff) fail("mbarrier: %d arrivals", arrivals);
  Mbarrier fresh = {0, uint16_t(arrivals), uint16_t(arrivals), 0};
  std::memcpy(barrier, &fresh, sizeof fresh);
}

void mbarrier_arrive(uint64_t* address, int transaction_bytes) {
  Mbarrier& barrier = checked(address);
  if (!barrier.pending) fail("mbarrier: more arrivals than expected");
  happens_before(phase_tag(barrier, barrier.phase));
  barrier.transaction_bytes += transaction_bytes;
  barrier.pending--;
  complete_phase_if_due(barrier);
}

void mbarrier_wait(uint64_t* address, int parity, Location location) {
  Mbarrier& barrier = checked(address);
  auto completed = [](const void* object, int phase) {
    return static_cast<const Mbarrier*>(object)->phase != unsigned(phase);
  };
  wait_until(completed, &barrier, parity, "mbarrier wait", location);
  happens_after(phase_tag(barrier, unsigned(parity)));
}

// ---- TMA

namespace {

unsigned swizzled(unsigned address, unsigned mode) {
  static constexpr unsigned kRowMask[] = {0, 1, 3, 7};  // none, 32, 64, 128 bytes
  return address ^ ((address >> 7 & kRowMask[mode]) << 4);
}

void check_destination(const TensorMap& map, int rank, unsigned address) {
  if (int(map.rank) != rank) fail("TMA: the tensor map has rank %u, the load %d", map.rank, rank);
  if (address % 128) fail("TMA: the destination is not aligned to 128 bytes");
  unsigned row = map.loaded(0) * map.element_bytes;
  unsigned widest = 16u << map.swizzle;
  if (map.swizzle && row > widest) fail("TMA: rows of %u bytes under a swizzle of %u", row, widest);
  if (map.swizzle && address % (widest * 8)) fail("TMA: a swizzled tile must be aligned to %u bytes", widest * 8);
}

struct TmaLoad {
  TensorMap map;
  int64_t origin[5];
  unsigned address;

  unsigned bytes() const {
    unsigned total = map.element_bytes;
    for (unsigned d = 0; d < map.rank; d++) total *= map.loaded(d);
    return total;
  }
  // Coordinates outside the tensor give zeros; that is how a load pads.
  const char* source(const uint32_t* offset) const {
    const char* pointer = map.base;
    for (unsigned d = 0; d < map.rank; d++) {
      int64_t coordinate = origin[d] + int64_t(offset[d]) * map.step[d];
      if (coordinate < 0 || uint64_t(coordinate) >= map.extent[d]) return nullptr;
      pointer += uint64_t(coordinate) * map.stride[d];
    }
    return pointer;
  }
  void deliver() const {
    uint32_t offset[5] = {};
    const unsigned size = map.element_bytes;
    for (unsigned element = 0; element < bytes() / size; element++) {
      void* to = shared_pointer(swizzled(address + element * size, map.swizzle));
      if (const char* from = source(offset))
        std::memcpy(to, from, size);
      else
        std::memset(to, 0, size);
      for (unsigned d = 0; d < map.rank && ++offset[d] == map.loaded(d); d++) offset[d] = 0;
    }
  }
};

}  // namespace

void tma_load(void* destination, const CUtensorMap* map, const int* coordinates, int rank, uint64_t* barrier) {
  TmaLoad load{TensorMap::from(*map), {}, shared_address(destination)};
  check_access(load.map.base);
  check_destination(load.map, rank, load.address);
  for (int d = 0; d < rank; d++) load.origin[d] = coordinates[d];
  Mbarrier& complete = checked(barrier);
  HiddenFromRaceCheck hidden;
  shared_pointer(load.address + load.bytes() - 1);
  std::memset(destination, kPoison, load.bytes());
  defer([load, &complete] {
    HiddenFromRaceCheck hidden;
    load.deliver();
    complete.transaction_bytes -= int(load.bytes());
    complete_phase_if_due(complete);
  });
}

// ---- wgmma

namespace {

constexpr int kWarpgroup = 128;

// An operand tile as its descriptor places it: row r, element k of bf16.
//   k contiguous      rows of 128 bytes, eight of them every `eight_` bytes
//   rows contiguous   each k has 128 bytes of 64 rows; eight k every `eight_` bytes, the next 64 rows after `block_`
class Tile {
 public:
  explicit Tile(const WgmmaOperand& operand)
      : start_(unsigned(operand.descriptor & 0x3fff) << 4),
        block_(unsigned(operand.descriptor >> 16 & 0x3fff) << 4),
        eight_(unsigned(operand.descriptor >> 32 & 0x3fff) << 4),
        transposed_(operand.transposed) {
    static constexpr unsigned kSwizzleOfField[] = {0, 3, 2, 1};
    swizzle_ = kSwizzleOfField[operand.descriptor >> 62];
    if (swizzle_ != 3) fail("wgmma: only descriptors with 128-byte swizzle are modelled");
    if ((operand.descriptor >> 49 & 7) != 0) fail("wgmma: a base offset in the descriptor is not modelled");
  }
  float at(int row, int k) const {
    const unsigned line = unsigned(transposed_ ? k : row), along = unsigned(transposed_ ? row : k);
    const unsigned address = start_ + along / 64 * block_ + line / 8 * eight_ + line % 8 * 128 + along % 64 * 2;
    uint16_t bits;
    std::memcpy(&bits, shared_pointer(swizzled(address, swizzle_)), 2);
    return std::bit_cast<float>(uint32_t(bits) << 16);
  }

 private:
  unsigned start_, block_, eight_, swizzle_;
  bool transposed_;
};

void execute(WarpgroupProduct& product) {
  if (std::exchange(product.done, true)) return;
  constexpr int kRows = 64, kDepth = 16, kMostColumns = 256;
  static thread_local float a[kRows][kDepth], b[kDepth][kMostColumns], sums[kRows][kMostColumns];
  const Tile tile_a(product.a), tile_b(product.b);
  for (int i = 0; i < kRows; i++)
    for (int k = 0; k < kDepth; k++) a[i][k] = tile_a.at(i, k);
  for (int j = 0; j < product.n; j++)
    for (int k = 0; k < kDepth; k++) b[k][j] = tile_b.at(j, k);
  for (int i = 0; i < kRows; i++) std::fill_n(sums[i], product.n, 0.0f);
  const auto element = [&](int thread, int i) -> float& {
    return sums[thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8][thread % 4 * 2 + i % 2 + i / 4 * 8];
  };
  const auto for_each = [&](auto visit) {
    for (int thread = 0; thread < kWarpgroup; thread++)
      for (int i = 0; i < product.n / 2; i++) visit(element(thread, i), product.accumulators[thread][i]);
  };
  if (product.accumulate) for_each([](float& sum, float d) { sum = d; });
  for (int i = 0; i < kRows; i++)
    for (int k = 0; k < kDepth; k++)
      for (int j = 0; j < product.n; j++) sums[i][j] += a[i][k] * b[k][j];
  for_each([](float sum, float& d) { d = sum; });
}

}  // namespace

void wgmma_issue(float* d, int n, WgmmaOperand a, WgmmaOperand b, bool accumulate, Location location) {
  struct Slot {
    float* d;
    WgmmaOperand a, b;
    std::shared_ptr<WarpgroupProduct> product;
  } slot{d, a, b, {}};
  const int group = current_thread->linear / kWarpgroup;
  if (int(current_block.size.x * current_block.size.y * current_block.size.z) < (group + 1) * kWarpgroup)
    fail("wgmma: a warpgroup of fewer than %d threads", kWarpgroup);
  if (auto* all = meet_block(kHardwareBarriers + group, kWarpgroup, &slot, "wgmma", location, Place::Same)) {
    auto product = std::make_shared<WarpgroupProduct>(WarpgroupProduct{{}, n, a, b, accumulate});
    for (int i = 0; i < kWarpgroup; i++) {
      auto* member = static_cast<Slot*>(all->slots[group * kWarpgroup + i]);
      if (member->a.descriptor != a.descriptor || member->b.descriptor != b.descriptor)
        fail("wgmma: the descriptors differ within the warpgroup");
      product->accumulators[i] = member->d;
      member->product = product;
    }
    release(all);
  }
  async_queues().open_products.push_back(slot.product);
}

void wgmma_commit() {
  AsyncQueues& queues = async_queues();
  queues.product_groups.push_back(std::exchange(queues.open_products, {}));
}

void wgmma_wait(int pending) {
  HiddenFromRaceCheck hidden;
  auto& groups = async_queues().product_groups;
  for (; int(groups.size()) > pending; groups.pop_front())
    for (auto& product : groups.front()) execute(*product);
}

}  // namespace cuda_on_cpu
