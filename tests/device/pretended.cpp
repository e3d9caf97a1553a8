// A pretended CUDA device: memory of the host, kernels of the CPU, rules of a GPU.
//
// It registers itself for the dispatch key CUDA of a torch that was built without CUDA, so that everything in this
// project, in accelerate, in transformers and in torch that asks for `device.type == "cuda"` runs. As a GPU does, it
//   - refuses operators whose tensors are on different devices, writes to tensors of the CPU, and generators of the CPU;
//   - has random numbers of its own, and a capacity beyond which an allocation raises OutOfMemoryError;
//   - waits: every copy between host and device, and every operator that has to look at data, is reported to Python.
// Nothing happens before `start`: importing the module changes nothing.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/histc.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

namespace {
using at::IntArrayRef;
using at::Tensor;
constexpr auto CUDA = c10::DeviceType::CUDA;

int devices = 1;
thread_local c10::DeviceIndex current = 0;
thread_local int depth = 0;  // > 0 while a kernel of the CPU works for the device: what it copies is no transfer
struct Inside {
  Inside() { ++depth; }
  ~Inside() { --depth; }
};

// ---------------------------------------------------------------- what Python is told

py::object* listener = nullptr;  // listener(kind, operator, bytes); never freed, since threads outlive the interpreter
bool counting = false;
std::mutex counts_lock;
std::map<std::string, int64_t> launches;

void report(const char* kind, const std::string& op, int64_t bytes) {
  if (depth > 0 || listener == nullptr) return;
  py::gil_scoped_acquire gil;
  (*listener)(kind, op, bytes);
}

void count_launch(const std::string& op) {
  if (depth > 0 || !counting) return;
  std::lock_guard<std::mutex> guard(counts_lock);
  ++launches[op];
}

// ---------------------------------------------------------------- memory

std::atomic<int64_t> used{0}, peak{0}, capacity{int64_t(8) << 30};

struct Block {
  void* data;
  int64_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  used -= block->size;
  c10::free_cpu(block->data);
  delete block;
}

struct DeviceMemory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    const auto size = static_cast<int64_t>((bytes + 511) / 512 * 512);  // as CUDA's allocator rounds
    TORCH_CHECK_WITH(OutOfMemoryError, used + size <= capacity, "CUDA out of memory. Tried to allocate ", size >> 10,
                     " KiB. GPU 0 has a total capacity of ", capacity.load() >> 10, " KiB of which ",
                     (capacity - used) >> 10, " KiB is free.");
    used += size;
    for (int64_t seen = peak; used > seen && !peak.compare_exchange_weak(seen, used);) {
    }
    auto* block = new Block{bytes > 0 ? c10::alloc_cpu(bytes) : nullptr, size};
    return {block->data, block, &release, c10::Device(CUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* each : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes}) {
      (*each)[0].current = used;
      (*each)[0].peak = peak;
    }
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override { peak = used.load(); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) { return {capacity - used, capacity.load()}; }
};
DeviceMemory device_memory;

// Memory of the host that a copy needs no staging for. It is plain memory that is remembered.
std::mutex pinned_lock;
std::map<const char*, size_t> pinned;  // by its start

void unpin(void* data) {
  {
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.erase(static_cast<char*>(data));
  }
  c10::free_cpu(data);
}

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes > 0 ? c10::alloc_cpu(bytes) : nullptr;
    if (data != nullptr) {
      std::lock_guard<std::mutex> guard(pinned_lock);
      pinned[static_cast<char*>(data)] = bytes;
    }
    return {data, data, &unpin, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
PinnedMemory pinned_memory;

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  auto after = pinned.upper_bound(static_cast<const char*>(data));
  if (after == pinned.begin()) return false;
  --after;
  return static_cast<const char*>(data) < after->first + after->second;
}

// ---------------------------------------------------------------- devices, streams, random numbers

// Streams and events are there, and everything is done by the time that it is asked for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = current;
    if (device.has_index()) current = device.index();
    return {CUDA, before};
  }
  c10::Device getDevice() const override { return {CUDA, current}; }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(devices); }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    static int one;
    *event = &one;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { report("sync", "stream.synchronize", 0); }
  void synchronizeEvent(void*) const override { report("sync", "event.synchronize", 0); }
  void synchronizeDevice(const c10::DeviceIndex) const override { report("sync", "synchronize", 0); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct DeviceGenerator final : at::CPUGeneratorImpl {
  explicit DeviceGenerator(uint64_t seed = c10::default_rng_seed_val) : at::CPUGeneratorImpl(seed) {
    device_ = c10::Device(CUDA, 0);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  }
};

const at::Generator& default_generator() {
  static at::Generator made = at::make_generator<DeviceGenerator>();
  return made;
}

// Puts a generator of the device in the place of the CPU's, whose kernels draw, until the end of the block.
struct Drawing {
  std::lock_guard<std::mutex> alone;
  at::Generator ours, theirs;
  Tensor before;
  static std::mutex& lock() {
    static std::mutex one;
    return one;
  }
  explicit Drawing(at::Generator generator)
      : alone(lock()), ours(std::move(generator)), theirs(at::detail::getDefaultCPUGenerator()) {
    before = theirs.get_state();
    theirs.set_state(ours.get_state());
  }
  ~Drawing() {
    ours.set_state(theirs.get_state());
    theirs.set_state(before);
  }
};

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return devices; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(devices); }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override { current = index; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    std::swap(index, current);
    return index;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  at::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<DeviceGenerator>(); }
};
Hooks hooks;

// ---------------------------------------------------------------- tensors

bool on_device(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == CUDA; }

Tensor as_cpu(const Tensor& tensor) {  // the same memory as a tensor of the CPU
  if (!on_device(tensor)) return tensor;
  return at::from_blob(tensor.numel() > 0 ? tensor.data_ptr() : nullptr, tensor.sizes(), tensor.strides(),
                       [keep = tensor](void*) {}, tensor.options().device(at::kCPU));
}

c10::IValue as_cpu(const c10::IValue& value) {
  if (value.isTensor()) return as_cpu(value.toTensor());
  if (!value.isList()) return value;
  c10::impl::GenericList out(value.toList().elementType());
  for (const auto& each : value.toListRef()) out.push_back(as_cpu(each));
  return out;
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  Guard().uncheckedSetDevice(device.value_or(Guard().getDevice()));
  return at::detail::empty_generic(size, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  Guard().uncheckedSetDevice(device.value_or(Guard().getDevice()));
  return at::detail::empty_strided_generic(size, stride, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}

// What a copy costs the host. Only one between the device and pinned memory that was asked not to block costs nothing:
// from or to pageable memory CUDA stages it, and waits.
const char* kind_of_copy(const Tensor& to, const Tensor& from, bool non_blocking) {
  if (on_device(to) == on_device(from)) return nullptr;
  const auto& host = on_device(to) ? from : to;
  if (non_blocking && is_pinned(host.storage().data())) return "async";
  return on_device(to) ? "h2d" : "d2h";
}

Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  count_launch("aten::copy_");
  const char* kind = kind_of_copy(self, from, non_blocking);
  if (kind != nullptr && self.numel() > 0) report(kind, "aten::copy_", static_cast<int64_t>(self.nbytes()));
  Inside inside;
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard below_autograd(c10::autograd_dispatch_keyset);
  as_cpu(self).copy_(as_cpu(from));
  return self;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  Tensor self = to;
  return copy_(self, from, non_blocking);
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& self) {
  count_launch("aten::_local_scalar_dense");
  report("item", "aten::_local_scalar_dense", static_cast<int64_t>(self.nbytes()));
  return at::_local_scalar_dense(as_cpu(self));
}

void resize_storage(c10::StorageImpl* storage, int64_t bytes) {
  auto data = device_memory.allocate(bytes);
  const auto kept = std::min<int64_t>(bytes, static_cast<int64_t>(storage->nbytes()));
  if (kept > 0) std::memcpy(data.get(), storage->data(), kept);
  storage->set_data_ptr_noswap(std::move(data));
  storage->set_nbytes(bytes);
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const int64_t need =
      at::detail::computeStorageNbytesContiguous(sizes, self.itemsize(), self.storage_offset());
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (static_cast<int64_t>(storage->nbytes()) < need) resize_storage(storage, need);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  if (format && *format != at::MemoryFormat::Preserve) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return self;
}

Tensor& set_tensor(Tensor& self, const Tensor& from) {
  return set_storage(self, from.storage(), from.storage_offset(), from.sizes(), from.strides());
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  const auto size = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {size}, {1});
}

void record_stream(Tensor&, at::Stream) {}

// ---------------------------------------------------------------- all other operators

// Those that look at data: their result's size depends on it, or is a number of Python.
const std::set<std::string> LOOK_AT_DATA = {
    "aten::nonzero", "aten::masked_select",      "aten::_unique",   "aten::_unique2", "aten::unique_dim",
    "aten::equal",   "aten::unique_consecutive", "aten::bincount", "aten::is_nonzero"};
const std::set<std::string> TAKE_INDICES = {"aten::index", "aten::index_put", "aten::_index_put_impl_"};
const std::string READ = "aten::index";  // whose indices torch has made ready by then, and waited for if need be

[[noreturn]] void refuse(const std::string& op, const std::string& why) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ",
              Guard().getDevice(), " and cpu! (", op, ": ", why, ")");
}

std::vector<Tensor> tensors_of(const c10::IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  if (value.isTensorList()) return value.toTensorVector();
  std::vector<Tensor> found;
  if (value.isList())  // of tensors that may be missing
    for (const auto& each : value.toListRef())
      if (each.isTensor()) found.push_back(each.toTensor());
  return found;
}

void check_devices(const c10::FunctionSchema& schema, const std::string& name, c10::ArrayRef<c10::IValue> args) {
  bool ours = false;
  for (const auto& arg : args)
    for (const auto& tensor : tensors_of(arg)) ours = ours || on_device(tensor);
  for (size_t i = 0; ours && i < args.size(); ++i) {
    const auto& declared = schema.arguments()[i];
    const bool indices = declared.name() == "indices" && TAKE_INDICES.count(name) > 0;
    const bool one_number = args.size() > 2 && args[2].isTensor() && args[2].toTensor().numel() == 1;
    const bool ready = name == READ || one_number;  // `x[mask] = 0` fills, and does not look for places
    const bool written = declared.alias_info() != nullptr && declared.alias_info()->isWrite();
    for (const auto& tensor : tensors_of(args[i])) {
      if (!tensor.defined()) continue;
      if (indices && !ready && on_device(tensor) && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte))
        report("sync", name + " by a mask", 0);
      if (on_device(tensor) || tensor.device().type() != at::kCPU) continue;
      if (indices && name == READ) continue;
      if (indices)  // which writing copies, as CUDA's does
        report("h2d", name + " by indices of the CPU", static_cast<int64_t>(tensor.nbytes()));
      else if (written)
        refuse(name, declared.name() + " is written to");
      else if (name == "aten::where")  // which copies even a single number of the CPU
        report("h2d", name + " with a number of the CPU", static_cast<int64_t>(tensor.nbytes()));
      else if (tensor.dim() > 0)  // a single number of the CPU is an argument of a kernel
        refuse(name, declared.name() + " has shape " + c10::str(tensor.sizes()));
    }
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.operator_name().name;
  const auto args = torch::jit::last(*stack, schema.arguments().size());
  check_devices(schema, name, args);
  if (LOOK_AT_DATA.count(name) > 0) report("sync", name, 0);
  if (name == "aten::_grouped_mm" && args[0].toTensor().scalar_type() != at::kBFloat16)
    report("d2h", name + " in a type that CUDA has no kernel for", 0);
  if (name == "aten::repeat_interleave" && args.back().isNone()) report("sync", name + " without output_size", 0);
  count_launch(name);
  Inside inside;
  if (name == "aten::histc" && !args[0].toTensor().is_floating_point()) {  // CUDA counts integers, the CPU does not
    const auto self = args[0].toTensor();
    auto made = at::histc(as_cpu(self).to(at::kDouble), args[1].toInt(), args[2].toScalar(), args[3].toScalar());
    torch::jit::drop(*stack, args.size());
    return torch::jit::push(*stack, made.to(self.options()));
  }
  if (!op.hasTag(at::Tag::nondeterministic_seeded)) return at::native::cpu_fallback(op, stack);
  at::Generator generator = default_generator();
  for (size_t i = 0, n = args.size(); i < n; ++i) {
    auto& arg = torch::jit::peek(*stack, i, n);
    if (!arg.isGenerator()) continue;
    if (arg.toGenerator().defined()) generator = arg.toGenerator();
    TORCH_CHECK(generator.device().type() == CUDA, "Expected a 'cuda' device type for generator but found '",
                generator.device().type(), "' (", name, ")");
    arg = c10::IValue();
  }
  Drawing drawing(generator);
  at::native::cpu_fallback(op, stack);
}

// A collective of NCCL: gloo's, in the same memory.
void collective(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  count_launch(op.schema().operator_name().name);
  for (size_t i = 0, n = op.schema().arguments().size(); i < n; ++i) {
    auto& arg = torch::jit::peek(*stack, i, n);
    arg = as_cpu(arg);
  }
  Inside inside;
  op.callBoxed(*stack);
}

// Fused attention is there as its parts. They are counted too.
int64_t choose_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                         std::optional<double>, bool) {
  count_launch("scaled_dot_product_attention");
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

struct NoTimes final : c10d::Timer {  // DDP asks for one
  explicit NoTimes(c10::Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};

struct Silent final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void start() {
  c10::SetAllocator(CUDA, &device_memory);
  Silent silent;  // torch warns that its own kernels of this key are replaced
  c10::WarningUtils::WarningHandlerGuard quietly(&silent);
  using torch::Library;
  const auto key = c10::make_optional(c10::DispatchKey::CUDA);
  static Library aten(Library::IMPL, "aten", key, __FILE__, __LINE__);
  aten.impl("empty.memory_format", empty);
  aten.impl("empty_strided", empty_strided);
  aten.impl("copy_", copy_);
  aten.impl("_copy_from", copy_from);
  aten.impl("_copy_from_and_resize", copy_from_and_resize);
  aten.impl("_local_scalar_dense", item);
  aten.impl("resize_", resize_);
  aten.impl("set_.source_Tensor", set_tensor);
  aten.impl("set_.source_Storage", set_whole_storage);
  aten.impl("set_.source_Storage_storage_offset", set_storage);
  aten.impl("as_strided", at::native::as_strided_tensorimpl);
  aten.impl("view", at::native::view);
  aten.impl("_reshape_alias", at::native::_reshape_alias);
  aten.impl("unfold", at::native::unfold);
  aten.impl("view_as_real", at::native::view_as_real);
  aten.impl("view_as_complex", at::native::view_as_complex);
  aten.impl("record_stream", record_stream);
  for (const auto* name : {"_grouped_mm", "silu_backward", "mish_backward", "native_layer_norm", "native_group_norm"})
    aten.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());  // else their parts would run
  static Library c10d(Library::IMPL, "c10d", key, __FILE__, __LINE__);
  for (const auto* name :
       {"allreduce_", "allreduce_coalesced_", "allgather_", "_allgather_base_", "allgather_coalesced_",
        "allgather_into_tensor_coalesced_", "reduce_", "reduce_scatter_", "_reduce_scatter_base_",
        "reduce_scatter_tensor_coalesced_", "broadcast_", "gather_", "scatter_", "barrier", "send", "recv_"})
    c10d.impl(name, torch::CppFunction::makeFromBoxedFunction<&collective>());
  static Library others(Library::IMPL, "_", key, __FILE__, __LINE__);
  others.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
  // torch has made its hooks by now, of a build without CUDA: an object without fields. It gets our virtual functions.
  auto* held = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (!held->hasCUDA()) *reinterpret_cast<void**>(held) = *reinterpret_cast<void**>(&hooks);
}
}  // namespace

namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::DeviceType::CUDA, NoTimes);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", &start);
  m.def("listen", [](py::object f) { listener = new py::object(std::move(f)); });
  m.def("count", [](bool on) { counting = on; });
  m.def("launches", [] {
    std::lock_guard<std::mutex> guard(counts_lock);
    return launches;
  });
  m.def("devices", [] { return devices; });
  m.def("set_devices", [](int count) { devices = count; });
  m.def("used", [] { return used.load(); });
  m.def("peak", [] { return peak.load(); });
  m.def("reset_peak", [] { peak = used.load(); });
  m.def("capacity", [] { return capacity.load(); });
  m.def("set_capacity", [](int64_t bytes) { capacity = bytes; });
  m.def("device", [] { return static_cast<int>(current); });
  m.def("set_device", [](int index) { current = static_cast<c10::DeviceIndex>(index); });
  m.def("random_state", [] { return default_generator().get_state(); });
  m.def("set_random_state", [](const Tensor& state) {
    auto generator = default_generator();
    generator.set_state(state);
  });
  m.def("seed", [](int64_t seed) {
    auto generator = default_generator();
    generator.set_current_seed(static_cast<uint64_t>(seed));
  });
  m.def("resize_storage", [](const Tensor& tensor, int64_t bytes) {
    resize_storage(tensor.storage().unsafeGetStorageImpl(), bytes);
  });
}
