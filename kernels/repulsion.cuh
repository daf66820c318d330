// The repulsion losses as functions of one number, the weighted squared distance; used by repulsion.cu and
// optimizer.cu.
#pragma once
#include "slab.cuh"

enum RepulsionKind : int32_t {
  kRepulsionNone = 0,
  kRepulsionExponential = 1,
  kRepulsionNegative = 2,
  kRepulsionInverse = 3
};

struct RepulsionParams {
  double models;  // k
  double spread;  // sum_j sum_t w_t |theta_{j,t} - centroid_t|^2, a constant of the adapted models
  float gamma, alpha;
  RepulsionKind kind;
  int32_t padding;
};
static_assert(sizeof(RepulsionParams) == 32, "keep in step with src/ops/optimizer/cuda.rs");

// In device memory, so that no step waits for the host.
struct RepulsionState {
  double distance;       // V
  double loss;           // R(V)
  float gradient_scale;  // dR/dV dV/d(w_t |theta_t - centroid_t|^2) 2: times w_t (theta - centroid) it is dR/dtheta
  int32_t padding;
};
static_assert(sizeof(RepulsionState) == 24, "keep in step with src/ops/optimizer/cuda.rs");

// The inverse loss has a pole where the model is an adapted model; closer than this counts as this close.
constexpr double kSmallestDistance = 1e-12;

__device__ __forceinline__ void update_repulsion(RepulsionState* state, const RepulsionParams& p, double sum) {
  const double distance = p.models * sum + p.spread;
  const double bounded = max(distance, kSmallestDistance);
  double loss = 0, slope = 0;
  if (p.kind == kRepulsionExponential) {
    loss = p.gamma * exp(-double(p.alpha) * distance);
    slope = -double(p.alpha) * loss;
  } else if (p.kind == kRepulsionNegative) {
    loss = -double(p.gamma) * distance;
    slope = -double(p.gamma);
  } else if (p.kind == kRepulsionInverse) {
    loss = p.gamma / bounded;
    slope = -loss / bounded;
  }
  state->distance = distance;
  state->loss = loss;
  state->gradient_scale = float(2 * p.models * slope);
}
