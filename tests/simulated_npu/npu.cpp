// A device that torch dispatches to as it does to an Ascend, and that computes on the host: what can be tested on it is
// the path of a program, not the chip. Registered under PrivateUse1; Python renames that to 'npu'.
//
// Operators go three ways here. Those that deal in memory or views, and those that core hands to the device alone
// (convolution, the LSTM cell, batch norm's running statistics), have kernels of their own. Those that core would
// compute by their out= variant go to the fallback under their own name, as on a real device. All others get there if
// core knows no way to compose them. The fallback refuses what a real device refuses, then has the CPU compute.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

using namespace at; // the autocast lists of core name its types without a namespace

namespace {

using Shape = IntArrayRef;
using MaybeTensor = std::optional<Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

// ---------------------------------------------------------------------------------------------------------- devices

constexpr auto kNpu = DeviceType::PrivateUse1;
constexpr int kMostDevices = 16;
thread_local DeviceIndex current_device = 0;
std::atomic<pid_t> owner{0}; // the process that allocated first

DeviceIndex device_count() {
  static const int count = [] {
    const char* text = std::getenv("SIMULATED_NPU_COUNT");
    return std::clamp(text ? std::atoi(text) : 2, 0, kMostDevices);
  }();
  return static_cast<DeviceIndex>(count);
}

void set_device(int index) {
  TORCH_CHECK(0 <= index && index < device_count(), "npu:", index, " was asked for, there are ", int(device_count()));
  current_device = static_cast<DeviceIndex>(index);
}

DeviceIndex exchange_device(DeviceIndex index) {
  const DeviceIndex before = current_device;
  if (index >= 0) set_device(index);
  return before;
}

bool in_bad_fork() {
  return owner != 0 && owner != getpid();
}

// Every kernel has finished when it returns: a device has one stream, and events have always happened.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kNpu; }
  Device exchangeDevice(Device device) const override { return {kNpu, exchange_device(device.index())}; }
  Device getDevice() const override { return {kNpu, current_device}; }
  void setDevice(Device device) const override { exchange_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }

  Stream getStream(Device device) const override {
    return Stream(Stream::DEFAULT, Device(kNpu, device.has_index() ? device.index() : current_device));
  }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream getNewStream(Device device, int) const override { return getStream(device); }
  Stream getStreamFromGlobalPool(Device device, bool) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const override { return getStream(stream.device()); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  double elapsedTime(void*, void*, const DeviceIndex) const override { return 0; }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// ----------------------------------------------------------------------------------------------------------- memory

constexpr int64_t kTotalBytes = int64_t(32) << 30;
constexpr int kFresh = 0x7f; // a huge float32, a NaN in float16: it shows where memory is read that nobody wrote

struct Usage {
  int64_t current = 0, peak = 0;
};
std::mutex usage_mutex;
Usage usage[kMostDevices];

struct Block {
  void* data;
  int64_t bytes;
  DeviceIndex device;
};

void release(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  std::free(block->data);
  const std::lock_guard lock(usage_mutex);
  usage[block->device].current -= block->bytes;
}

struct NpuAllocator final : Allocator {
  DataPtr allocate(size_t size) override {
    TORCH_CHECK(!in_bad_fork(), "Cannot re-initialize NPU in forked subprocess: use the 'spawn' start method");
    owner = getpid();
    const Device device(kNpu, current_device);
    if (size == 0) return {nullptr, device};
    const auto bytes = static_cast<int64_t>(size);
    {
      const std::lock_guard lock(usage_mutex);
      Usage& mine = usage[current_device];
      TORCH_CHECK_WITH(OutOfMemoryError, mine.current + bytes <= kTotalBytes, "NPU out of memory: ", bytes, " bytes");
      mine.current += bytes;
      mine.peak = std::max(mine.peak, mine.current);
    }
    void* data = std::aligned_alloc(64, (size + 63) / 64 * 64);
    TORCH_CHECK(data, "the host has no ", bytes, " bytes");
    std::memset(data, kFresh, size);
    return {data, new Block{data, bytes, current_device}, &release, device};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

NpuAllocator allocator;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &allocator)

// Memory of the host that counts as page-locked. DistributedDataParallel insists on some.
std::mutex pinned_mutex;
std::map<uintptr_t, size_t> pinned; // start and length

void unpin(void* data) {
  const std::lock_guard lock(pinned_mutex);
  pinned.erase(reinterpret_cast<uintptr_t>(data));
  std::free(data);
}

bool is_pinned(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const std::lock_guard lock(pinned_mutex);
  const auto next = pinned.upper_bound(address);
  return next != pinned.begin() && address - std::prev(next)->first < std::prev(next)->second;
}

struct PinnedAllocator final : Allocator {
  DataPtr allocate(size_t size) override {
    void* data = std::aligned_alloc(64, (size / 64 + 1) * 64);
    TORCH_CHECK(data, "the host has no ", size, " bytes");
    const std::lock_guard lock(pinned_mutex);
    pinned[reinterpret_cast<uintptr_t>(data)] = std::max<size_t>(size, 1);
    return {data, data, &unpin, DeviceType::CPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

PinnedAllocator pinned_allocator;

// -------------------------------------------------------------------------------------------- random numbers, hooks

// A generator that says it is the device's. Where none is given, the device draws from the CPU's default generator.
struct NpuGenerator final : CPUGeneratorImpl {
  explicit NpuGenerator(DeviceIndex index) {
    device_ = Device(kNpu, index < 0 ? current_device : index);
    key_set_ = DispatchKeySet(DispatchKey::PrivateUse1);
  }

 private:
  NpuGenerator* clone_impl() const override {
    auto* copy = new NpuGenerator(device_.index());
    copy->set_state(*get_state());
    return copy;
  }
};

struct Hooks final : PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return owner != 0; }
  DeviceIndex deviceCount() const override { return device_count(); }
  void setCurrentDevice(DeviceIndex index) const override { set_device(index); }
  DeviceIndex getCurrentDevice() const override { return current_device; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return exchange_device(index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchange_device(index); }
  Device getDeviceFromPtr(void*) const override { return {kNpu, current_device}; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex index) const override { return make_generator<NpuGenerator>(index); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    const c10::DeviceGuard guard(storage.device());
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), bytes);
  }
};

[[maybe_unused]] const bool hooks_are_registered = (RegisterPrivateUse1HooksInterface(new Hooks()), true);

// ---------------------------------------------------------------------------------------------- recorder and guards

std::mutex record_mutex;
std::atomic<bool> recording{false};
std::set<std::string> recorded;
thread_local int depth = 0;

// Lives as long as a kernel runs. What a kernel calls in turn is the simulation's business and not recorded.
struct Dispatched {
  explicit Dispatched(const std::string& name) {
    if (depth++ > 0 || !recording) return;
    const std::lock_guard lock(record_mutex);
    recorded.insert(name);
  }
  Dispatched(const Dispatched&) = delete;
  ~Dispatched() { --depth; }
};

void refuse_double(const std::string& name, ScalarType dtype, int64_t dim) {
  // single numbers pass: torch's GradScaler inverts its scale in float64, which Ascends leave to their AI CPU
  const bool refused = dim > 0 && (dtype == kDouble || dtype == kComplexDouble);
  TORCH_CHECK(!refused, name, ": the npu has no ", dtype, "; use float32");
}

// Sees the arguments of one call and raises where a real device would.
struct Guards {
  const std::string& name;
  std::optional<Device> device{};

  // `from_host`: the operator moves such an argument to the device itself, as indexing does with its indices
  void see(const Tensor& tensor, bool written = false, bool from_host = false) {
    if (!tensor.defined()) return;
    if (tensor.device().type() != kNpu) {
      const bool number = tensor.dim() == 0 && !written;
      TORCH_CHECK(tensor.is_cpu() && (number || from_host), complaint(), "an npu and ", tensor.device());
      return;
    }
    refuse_double(name, tensor.scalar_type(), tensor.dim());
    TORCH_CHECK(!device || *device == tensor.device(), complaint(), *device, " and ", tensor.device());
    device = tensor.device();
  }
  void see(const MaybeTensor& tensor) { see(tensor.value_or(Tensor())); }
  template <class Other>
  void see(const Other&) {}
  std::string complaint() const { return name + ": expected all tensors on one device, but found "; }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string name = c10::toString(op.operator_name());
  const Dispatched dispatched(name);
  Guards guards{name};
  Generator theirs, ours;
  const auto& arguments = op.schema().arguments();
  const size_t first = stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    IValue& value = (*stack)[first + i];
    const bool written = arguments[i].alias_info() && arguments[i].alias_info()->isWrite();
    if (value.isTensor()) {
      guards.see(value.toTensor(), written);
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) guards.see(tensor, written);
    } else if (value.isOptionalTensorList()) { // only indexing takes such lists
      for (const MaybeTensor& index : value.toOptionalTensorVector()) guards.see(index.value_or(Tensor()), false, true);
    } else if (value.isDevice() && !guards.device) {
      guards.device = value.toDevice();
    } else if (value.isGenerator()) {
      theirs = value.toGenerator();
      TORCH_CHECK(theirs.device().type() == kNpu, name, ": expected a generator of npu, but found ", theirs.device());
      ours = at::detail::createCPUGenerator();
      ours.set_state(theirs.get_state());
      value = ours;
    }
  }
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
  if (theirs.defined()) theirs.set_state(ours.get_state());
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
    IValue& value = (*stack)[i]; // core leaves the result on the host where the first argument is a number there
    if (guards.device && value.isTensor() && value.toTensor().defined() && value.toTensor().is_cpu()) {
      value = value.toTensor().to(*guards.device);
    }
  }
}

// ---------------------------------------------------------------------------------------------------- memory, views

DispatchKeySet keys() {
  return DispatchKeySet(DispatchKey::PrivateUse1);
}

Tensor empty(
    Shape size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device> device,
    std::optional<bool> pinned, std::optional<MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "only memory of the CPU can be pinned");
  refuse_double("aten::empty.memory_format", c10::dtype_or_default(dtype), static_cast<int64_t>(size.size()));
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &allocator, keys(), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    Shape size, Shape stride, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device> device,
    std::optional<bool> pinned) {
  TORCH_CHECK(!pinned.value_or(false), "only memory of the CPU can be pinned");
  refuse_double("aten::empty_strided", c10::dtype_or_default(dtype), static_cast<int64_t>(size.size()));
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys(), c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& self, Shape size, std::optional<MemoryFormat> format) {
  const c10::DeviceGuard guard(self.device());
  return at::native::resize_(self, size, format);
}

Tensor& set_storage_(Tensor& self, Storage source) {
  return at::native::set_(self, std::move(source));
}

Tensor& set_nothing_(Tensor& self) {
  const c10::DeviceGuard guard(self.device());
  Storage nothing(Storage::use_byte_size_t(), 0, &allocator, /*resizable=*/true);
  return at::native::set_storage_cpu_(self, std::move(nothing), 0, {0}, {});
}

// A tensor of the CPU over the same memory.
Tensor host(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kNpu) return tensor;
  const auto options = tensor.options().device(DeviceType::CPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

MaybeTensor host(const MaybeTensor& tensor) {
  return tensor ? MaybeTensor(host(*tensor)) : tensor;
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  host(self).copy_(host(source));
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& destination, bool) {
  host(destination).copy_(host(self));
  return destination;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& destination) {
  if (self.sizes() != destination.sizes()) destination.resize_(self.sizes());
  return copy_from(self, destination, false);
}

void record_stream(Tensor&, Stream) {}

// ---------------------------------------------------------------------------- what core hands to the device, whole

// Reduced precision is computed in float32 and rounded once, which every CPU can.
Tensor wide(const Tensor& tensor) {
  const Tensor here = host(tensor);
  return here.defined() && isReducedFloatingType(here.scalar_type()) ? here.to(kFloat) : here;
}

MaybeTensor wide(const MaybeTensor& tensor) {
  return tensor ? MaybeTensor(wide(*tensor)) : tensor;
}

Tensor back(const Tensor& computed, const Tensor& like) {
  return computed.defined() ? computed.to(like.device(), like.scalar_type()) : computed;
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const MaybeTensor& bias, Shape stride, Shape padding, Shape dilation,
    bool transposed, Shape output_padding, int64_t groups) {
  const Tensor output = at::convolution(
      wide(input), wide(weight), wide(bias), stride, padding, dilation, transposed, output_padding, groups);
  return back(output, input);
}

ThreeTensors convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, Shape stride, Shape padding, Shape dilation,
    bool transposed, Shape output_padding, int64_t groups, std::array<bool, 3> mask) {
  const int64_t channels[] = {grad.size(1)};
  const auto [to_input, to_weight, to_bias] = at::convolution_backward(
      wide(grad), wide(input), wide(weight), OptionalIntArrayRef(channels), stride, padding, dilation, transposed,
      output_padding, groups, mask);
  return {back(to_input, input), back(to_weight, weight), back(to_bias, weight)};
}

// Gates are (input, forget, cell, output), side by side in the last dimension. The workspace keeps them activated.
ThreeTensors lstm_cell(
    const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& cx, const MaybeTensor& input_bias,
    const MaybeTensor& hidden_bias) {
  Tensor gates = wide(input_gates) + wide(hidden_gates);
  for (const MaybeTensor& bias : {input_bias, hidden_bias}) {
    if (bias && bias->defined()) gates = gates + wide(*bias);
  }
  const auto parts = gates.chunk(4, 1);
  const Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(), o = parts[3].sigmoid();
  const Tensor cy = f * wide(cx) + i * g;
  return {back(o * cy.tanh(), input_gates), back(cy, cx), back(at::cat({i, f, g, o}, 1), input_gates)};
}

ThreeTensors lstm_cell_backward(
    const MaybeTensor& grad_hy, const MaybeTensor& grad_cy, const Tensor& cx, const Tensor& cy, const Tensor& workspace,
    bool has_bias) {
  const bool from_h = grad_hy && grad_hy->defined(), from_c = grad_cy && grad_cy->defined();
  if (!from_h && !from_c) return {};
  const auto gates = wide(workspace).chunk(4, 1);
  const Tensor &i = gates[0], &f = gates[1], &g = gates[2], &o = gates[3];
  const Tensor squashed = wide(cy).tanh();
  const Tensor to_h = from_h ? wide(*grad_hy) : at::zeros_like(squashed);
  Tensor to_c = to_h * o * (1 - squashed * squashed);
  if (from_c) to_c = to_c + wide(*grad_cy);
  const Tensor to_i = to_c * g * i * (1 - i), to_f = to_c * wide(cx) * f * (1 - f);
  const Tensor to_g = to_c * i * (1 - g * g), to_o = to_h * squashed * o * (1 - o);
  const Tensor to_gates = at::cat({to_i, to_f, to_g, to_o}, 1);
  const Tensor to_bias = has_bias ? to_gates.sum(0) : Tensor();
  return {back(to_gates, workspace), back(to_c * f, cx), back(to_bias, workspace)};
}

// The schema does not say that the running statistics are written: the fallback would lose them.
ThreeTensors batch_norm(
    const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& running_mean,
    const MaybeTensor& running_var, bool training, double momentum, double eps) {
  const auto [output, mean, inverse_deviation] = at::native_batch_norm(
      host(input), host(weight), host(bias), host(running_mean), host(running_var), training, momentum, eps);
  const Device device = input.device();
  return {output.to(device), mean.to(device), inverse_deviation.to(device)};
}

// ----------------------------------------------------------------------------------------------------- registration

template <size_t LENGTH>
struct Name {
  char text[LENGTH];
  constexpr Name(const char (&name)[LENGTH]) { std::copy_n(name, LENGTH, text); }
};

// The kernel as the dispatcher gets it: recorded, and guarded unless bringing devices together is what it is for.
template <Name NAME, bool GUARDED, auto COMPUTE>
struct Own;

template <Name NAME, bool GUARDED, class Result, class... Arguments, Result (*COMPUTE)(Arguments...)>
struct Own<NAME, GUARDED, COMPUTE> {
  static Result call(Arguments... arguments) {
    const std::string name = std::string("aten::") + NAME.text;
    const Dispatched dispatched(name);
    if constexpr (GUARDED) {
      [[maybe_unused]] Guards guards{name};
      (guards.see(arguments), ...);
    }
    return COMPUTE(std::forward<Arguments>(arguments)...);
  }
};

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
#define OWN(NAME, COMPUTE) m.impl(NAME, &Own<NAME, true, &COMPUTE>::call);
#define BRIDGE(NAME, COMPUTE) m.impl(NAME, &Own<NAME, false, &COMPUTE>::call);
  OWN("empty.memory_format", empty)
  OWN("empty_strided", empty_strided)
  OWN("view", native::view)
  OWN("as_strided", native::as_strided_tensorimpl)
  OWN("_reshape_alias", native::_reshape_alias)
  OWN("unfold", native::unfold)
  OWN("view_as_real", native::view_as_real)
  OWN("view_as_complex", native::view_as_complex)
  OWN("resize_", resize_)
  OWN("set_.source_Storage_storage_offset", native::set_storage_cpu_)
  OWN("set_.source_Storage", set_storage_)
  OWN("set_.source_Tensor", native::set_tensor_)
  OWN("set_", set_nothing_)
  BRIDGE("copy_", copy_)
  BRIDGE("_copy_from", copy_from)
  BRIDGE("_copy_from_and_resize", copy_from_and_resize)
  OWN("record_stream", record_stream)
  OWN("convolution_overrideable", convolution)
  OWN("convolution_backward_overrideable", convolution_backward)
  OWN("_thnn_fused_lstm_cell", lstm_cell)
  OWN("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward)
  OWN("native_batch_norm", batch_norm)

  // core would compute a.add(b) as at::add_out(...), and the recorder would never see aten::add.Tensor
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    if (name.name.rfind("aten::", 0) == 0 && op && op->hasSchema() &&
        op->hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional) &&
        op->hasKernelForDispatchKey(DispatchKey::CPU) && !op->hasKernelForDispatchKey(DispatchKey::PrivateUse1)) {
      m.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
    }
  }
}

Tensor refuse_binary_cross_entropy(const Tensor&, const Tensor&, const MaybeTensor&, int64_t) {
  TORCH_CHECK(false, "binary_cross_entropy is unsafe to autocast: use binary_cross_entropy_with_logits");
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define REDUCED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_BY_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define FULL_BY_OVERLOAD(...) KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE(__VA_ARGS__)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(REDUCED)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_BY_DTYPE)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(FULL_BY_OVERLOAD)
  AT_FORALL_PROMOTE(WIDEST)
  m.impl("binary_cross_entropy", &refuse_binary_cross_entropy);
}

} // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("device_count", [] { return int(device_count()); });
  m.def("current_device", [] { return int(current_device); });
  m.def("set_device", &set_device);
  m.def("in_bad_fork", &in_bad_fork);
  m.def("total_bytes", [] { return kTotalBytes; });
  m.def("backward", [](int device) { // of tensors that Python never sees: no thread needs its lock to let them go
    const pybind11::gil_scoped_release unlocked;
    ones({1}, TensorOptions().device(kNpu, DeviceIndex(device))).requires_grad_().sum().backward();
  });
  m.def("bytes", [](int device) { // current, peak
    const std::lock_guard lock(usage_mutex);
    return std::pair(usage[device].current, usage[device].peak);
  });
  m.def("reset_peak", [](int device) {
    const std::lock_guard lock(usage_mutex);
    usage[device].peak = usage[device].current;
  });
  m.def("start_recording", [] {
    const std::lock_guard lock(record_mutex);
    recorded.clear();
    recording = true;
  });
  m.def("stop_recording", [] { recording = false; });
  m.def("recorded", [] {
    const std::lock_guard lock(record_mutex);
    return std::vector<std::string>(recorded.begin(), recorded.end());
  });
}
