// A CUDA device whose memory is the host's: every operator on its tensors runs by torch's kernel for CPUs on the same
// bytes. To be loaded before torch itself, which asks for its hooks once. `python benchmarks/host_gpu` builds it.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/csrc/profiler/stubs/base.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <set>
#include <string>

namespace {
constexpr auto kDevice = c10::DeviceType::CUDA;
std::atomic<int64_t> held{0}, peak{0};

struct Block { void* bytes; int64_t size; };
void release(void* context) {
  auto* block = static_cast<Block*>(context);
  held -= block->size;
  std::free(block->bytes);
  delete block;
}
struct HostAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{std::aligned_alloc(64, (size + 64) / 64 * 64), static_cast<int64_t>(size)};
    int64_t now = held += block->size, before = peak;
    while (now > before && !peak.compare_exchange_weak(before, now)) {}
    return {block->bytes, block, &release, c10::Device(kDevice, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};
HostAllocator allocator;

thread_local c10::Stream current(c10::Stream::DEFAULT, c10::Device(kDevice, 0));
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kDevice> {
  c10::Device getDevice() const override { return {kDevice, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return {kDevice, 0}; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const noexcept override { return current; }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { auto old = current; current = stream; return old; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  bool isPinnedPtr(const void*) const override { return false; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  at::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
};

bool is_ours(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDevice; }

at::Tensor on_host(const at::Tensor& tensor) {
  if (!is_ours(tensor)) return tensor;
  auto options = tensor.options().device(at::kCPU).requires_grad(false).memory_format(std::nullopt);
  at::Tensor keep = tensor;
  auto found = at::for_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes())
                   .strides(tensor.strides()).options(options).deleter([keep](void*) {}).make_tensor();
  if (tensor.is_conj()) found._set_conj(true);
  if (tensor.is_neg()) found._set_neg(true);
  return found;
}
at::Tensor on_device(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != at::kCPU) return tensor;
  at::Tensor out = at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), &allocator,
                                               c10::DispatchKeySet(c10::DispatchKey::CUDA), tensor.scalar_type());
  if (tensor.numel()) on_host(out).copy_(tensor);
  return out;
}
// Where the host's tensor was resized or moved, the device's takes its form.
void take_over(const at::Tensor& ours, const at::Tensor& host) {
  bool same = ours.sizes() == host.sizes() && ours.strides() == host.strides() &&
              (ours.numel() == 0 || ours.const_data_ptr() == host.const_data_ptr());
  if (same) return;
  auto made = on_device(host);
  auto* impl = ours.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(made.storage());
  impl->set_sizes_and_strides(made.sym_sizes(), made.sym_strides(), c10::SymInt(0));
}

// A GPU takes a CPU's tensors of more than one element here alone.
const std::set<std::string> mixed = {"aten::copy_", "aten::_foreach_copy_", "aten::index", "aten::index_put_",
                                     "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put"};

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size(), begin = stack->size() - count;
  std::vector<std::pair<at::Tensor, at::Tensor>> written;
  std::string strangers;
  auto convert = [&](const at::Tensor& one, bool writes) {
    if (one.defined() && !is_ours(one) && one.dim() > 0) strangers = one.toString();
    if (!is_ours(one)) return one;
    auto host = writes && one.numel() == 0 ? at::empty(one.sizes(), one.options().device(at::kCPU)) : on_host(one);
    if (writes) written.emplace_back(one, host);
    return host;
  };
  for (size_t number = 0; number < count; ++number) {
    auto& value = (*stack)[begin + number];
    const auto* alias = schema.arguments()[number].alias_info();
    const bool writes = alias && alias->isWrite();
    if (value.isTensor()) {
      value = c10::IValue(convert(value.toTensor(), writes));
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& one : value.toTensorVector()) list.push_back(convert(one, writes));
      value = c10::IValue(c10::List<at::Tensor>(list));
    } else if (value.isList() && value.toListRef().size() && value.toListRef()[0].isTensorList()) {
      c10::List<c10::List<at::Tensor>> outer;
      for (const c10::IValue& inner : value.toListRef()) {
        std::vector<at::Tensor> list;
        for (const at::Tensor& one : inner.toTensorVector()) list.push_back(convert(one, false));
        outer.push_back(c10::List<at::Tensor>(list));
      }
      value = c10::IValue(outer);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector())
        list.push_back(one ? std::optional<at::Tensor>(convert(*one, writes)) : std::nullopt);
      value = c10::IValue(list);
    } else if (value.isDevice() && value.toDevice().type() == kDevice) {
      value = c10::IValue(c10::Device(at::kCPU));
    } else if (value.isGenerator()) {
      value = c10::IValue();
    }
  }
  TORCH_CHECK(strangers.empty() || mixed.count(schema.name()), schema.name(), " got a ", strangers,
              " beside the device's tensors");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [ours, host] : written) take_over(ours, host);
  const auto returns = schema.returns().size(), first = stack->size() - returns;
  size_t next = 0;
  for (size_t number = 0; number < returns; ++number) {
    auto& value = (*stack)[first + number];
    const auto* alias = schema.returns()[number].alias_info();
    if (value.isTensor()) {
      if (alias && alias->isWrite() && next < written.size()) {
        value = c10::IValue(written[next++].first);
      } else {
        value = c10::IValue(on_device(value.toTensor()));
      }
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& one : value.toTensorVector()) {
        auto same = std::find_if(written.begin(), written.end(), [&](auto& pair) { return pair.second.is_same(one); });
        list.push_back(same == written.end() ? on_device(one) : same->first);
      }
      value = c10::IValue(c10::List<at::Tensor>(list));
    }
  }
}

at::Tensor empty_memory_format(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                               std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(type), format);
}
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(type));
}
const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto bytes = at::detail::computeStorageNbytesContiguous(size, self.itemsize(), self.storage_offset());
  if (self.storage().nbytes() < bytes) {
    at::Tensor made = at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), self.scalar_type(), std::nullopt);
    std::memcpy(made.mutable_data_ptr(), self.const_data_ptr(), std::min<int64_t>(self.nbytes(), made.nbytes()));
    self.unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}
at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  if (stride.data() == nullptr || (stride.empty() && !size.empty())) {
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    self.unsafeGetTensorImpl()->set_storage_offset(offset);
  } else {
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
  auto count = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {count}, {1});
}
void record_stream(at::Tensor&, at::Stream) {}
int64_t choose_math(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double,
                    bool, std::optional<double>, bool) { return 0; }
at::Tensor view(const at::Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); }
at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}
at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}
at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}
struct Timer final : c10d::Timer {
  explicit Timer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override { return getTimeRef(end) - getTimeRef(start); }
};

// A CPU build's kineto knows no GPU: the profiler has torch record events around each operator instead, and in that build
// each is an error that is caught once its C++ stack has been spelled out. A step of a thousand operators does not end.
struct Moments final : torch::profiler::impl::ProfilerStubs {
  using Moment = torch::profiler::impl::ProfilerVoidEventStub;
  void record(c10::DeviceIndex* device, Moment* event, int64_t* cpu_ns) const override {
    const std::chrono::nanoseconds now = std::chrono::steady_clock::now().time_since_epoch();
    if (device) *device = 0;
    if (cpu_ns) *cpu_ns = now.count();
    *event = std::make_shared<int64_t>(now.count());
  }
  float elapsed(const Moment* begin, const Moment* end) const override {
    auto at = [](const Moment* one) { return *static_cast<const int64_t*>(one->get()); };
    return static_cast<float>(at(end) - at(begin)) / 1000;
  }
  void mark(const char*) const override {}
  void rangePush(const char*) const override {}
  void rangePop() const override {}
  bool enabled() const override { return true; }
  void onEachDevice(std::function<void(int)> action) const override { action(0); }
  void synchronize() const override {}
} moments;

auto boxed() { return torch::CppFunction::makeFromBoxedFunction<&fallback>(); }
}  // namespace

namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, Guard) }
namespace at { C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks) }

namespace c10d { C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, ::Timer) }

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(boxed()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("view", &view);
  m.impl("as_strided", &as_strided);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &unfold);
  m.impl("record_stream", &record_stream);
  m.impl("_fused_sdp_choice", &choose_math);
  // These choose a kernel by the device: a GPU's would be none for a CPU.
  for (const char* name : {"copy_", "convolution", "convolution_backward", "_foreach_copy_"}) m.impl(name, boxed());
}
extern "C" void host_gpu_collectives() {
  static std::vector<torch::Library> kept;
  kept.emplace_back(torch::Library::IMPL, "c10d", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const char* name : {"allreduce_", "allreduce_coalesced_", "broadcast_", "reduce_", "allgather_", "_allgather_base_",
                           "allgather_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_", "_reduce_scatter_base_",
                           "reduce_scatter_tensor_coalesced_", "gather_", "scatter_", "alltoall_", "alltoall_base_", "barrier",
                           "send", "recv_"})
    kept.back().impl(name, boxed());
}
extern "C" int64_t host_gpu_held() { return held; }
extern "C" int64_t host_gpu_peak() { return peak; }
extern "C" void host_gpu_reset_peak() { peak = held.load(); }
static const bool allocates = (c10::SetAllocator(kDevice, &allocator), true);
static const bool profiles = (torch::profiler::impl::registerCUDAMethods(&moments), true);
