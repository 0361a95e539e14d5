// y [n] = x [n] * scale + offset, rounded once per operation: the smallest kernel there is. The driver's tests launch it,
// `doctor` does to see that a device runs kernels at all, and a chain of them in a graph is what a kernel boundary costs.
#include "args.cuh"
#include "device.cuh"

namespace {

__device__ void probe_body(const ProbeArgs& a) {
  dev::dependency_trigger();
  dev::dependency_wait();
  const float* const x = reinterpret_cast<const float*>(a.x);
  float* const y = reinterpret_cast<float*>(a.y);
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < a.count; i += stride)
    y[i] = dev::add_rn(dev::mul_rn(x[i], a.scale), a.offset);
}

}  // namespace

KERNEL(probe, ProbeArgs, 256, 1) { probe_body(a); }
