/* A CUDA runtime without a GPU: the functions with which ONNX Runtime's CUDA provider runs models.
 *
 * Device memory is host memory, and zero at first. Copies happen immediately; kernels do nothing.
 * Each call is written as a line to the file that FAKE_CUDA_LOG names. While a stream captures, the
 * calls that CUDA forbids fail as they would on a GPU. There is one device, with the properties of
 * an H200. If FAKE_CUDA_NO_CAPTURE is set, no stream can capture. Signatures leave out trailing
 * arguments that the function does not use.
 */
#include <driver_types.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector_types.h>

static int capturing = 0;

static void record(const char *what, const char *which, long number) {
  static FILE *log;
  if (!log) {
    const char *path = getenv("FAKE_CUDA_LOG");
    if (!path || !(log = fopen(path, "a"))) return;
    setvbuf(log, NULL, _IOLBF, 0);
  }
  fprintf(log, "%s%s %s %ld\n", capturing ? "captured: " : "", what, which, number);
}

static cudaError_t unless_capturing(const char *what, long number) {
  record(what, "", number);
  return capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

/* Kernels are identified by the address of their host function, and logged by the name of their
 * device function. */

enum { MOST_KERNELS = 1 << 19 };
static const void *functions[MOST_KERNELS];
static const char *names[MOST_KERNELS];
static int known;

static cudaError_t launch(const void *function, dim3 grid) {
  const char *name = "unknown";
  for (int i = 0; i < known; i++)
    if (functions[i] == function) name = names[i];
  if (!grid.x || !grid.y || !grid.z) {
    record("empty launch", name, 0);
    return cudaErrorInvalidConfiguration;
  }
  record("launch", name, (long)grid.x * grid.y * grid.z);
  return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  (void)binary;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
void __cudaRegisterVar(void **handle) { (void)handle; }
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name) {
  (void)handle, (void)device;
  if (known < MOST_KERNELS) functions[known] = host, names[known++] = name;
}

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} pushed[16];
static __thread int depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  int top = depth++ & 15;
  pushed[top].grid = grid, pushed[top].block = block;
  pushed[top].shared = shared, pushed[top].stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  int top = --depth & 15;
  *grid = pushed[top].grid, *block = pushed[top].block, *shared = pushed[top].shared;
  *(void **)stream = pushed[top].stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid) { return launch(kernel, grid); }
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
  (void)block, (void)arguments, (void)shared, (void)stream;
  return launch(function, grid);
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block,
                                        void **arguments, size_t shared, cudaStream_t stream) {
  (void)block, (void)arguments, (void)shared, (void)stream;
  return launch(function, grid);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *function, void **a) {
  (void)a;
  return launch(function, how->gridDim);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  (void)stream;
  record("host function", "", 0);
  function(data);
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *result, const void *function) {
  (void)function;
  memset(result, 0, sizeof *result);
  result->maxThreadsPerBlock = 1024, result->numRegs = 32;
  result->binaryVersion = result->ptxVersion = 90;
  result->maxDynamicSharedSizeBytes = 232448;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) {
  *blocks = 2;
  return cudaSuccess;
}

/* Memory. */

static const char *directions[] = {"host to host", "host to device", "device to host",
                                   "device to device", "by address"};

static cudaError_t give(const char *what, void **memory, size_t size) {
  cudaError_t error = unless_capturing(what, (long)size);
  if (error) return error;
  if (posix_memalign(memory, 256, size ? size : 1)) return cudaErrorMemoryAllocation;
  memset(*memory, 0, size);
  return cudaSuccess;
}
static cudaError_t take(const char *what, void *memory) {
  cudaError_t error = unless_capturing(what, 0);
  if (!error) free(memory);
  return error;
}
cudaError_t cudaMalloc(void **memory, size_t size) { return give("allocate", memory, size); }
cudaError_t cudaMallocHost(void **memory, size_t size) {
  return give("allocate pinned", memory, size);
}
cudaError_t cudaHostAlloc(void **memory, size_t size) {
  return give("allocate pinned", memory, size);
}
cudaError_t cudaFree(void *memory) { return take("free", memory); }
cudaError_t cudaFreeHost(void *memory) { return take("free pinned", memory); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  record("copy", directions[kind], (long)size);
  if (capturing) return cudaErrorStreamCaptureUnsupported;
  memmove(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  record("queue a copy", directions[kind], (long)size);
  memmove(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind) {
  record("queue a copy", directions[kind], (long)(width * height));
  for (size_t row = 0; row < height; row++)
    memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *memory, int value, size_t size) {
  memset(memory, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t size) {
  record("queue a fill", "", (long)size);
  memset(memory, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *all) {
  *unused = *all = (size_t)16 << 30;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *result, const void *memory) {
  memset(result, 0, sizeof *result);
  result->type = cudaMemoryTypeDevice, result->devicePointer = (void *)memory;
  return cudaSuccess;
}

/* The device. */

cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *result, int device) {
  (void)device;
  memset(result, 0, sizeof *result);
  strcpy(result->name, "none");
  result->major = 9, result->warpSize = 32, result->multiProcessorCount = 132;
  result->maxThreadsPerBlock = 1024, result->maxThreadsPerMultiProcessor = 2048;
  result->sharedMemPerBlock = 49152, result->sharedMemPerBlockOptin = 232448;
  result->sharedMemPerMultiprocessor = 233472, result->regsPerBlock = 65536;
  result->maxGridSize[0] = 2147483647, result->maxGridSize[1] = result->maxGridSize[2] = 65535;
  result->maxThreadsDim[0] = result->maxThreadsDim[1] = 1024, result->maxThreadsDim[2] = 64;
  result->totalGlobalMem = (size_t)141 << 30, result->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
  struct cudaDeviceProp all;
  cudaGetDeviceProperties(&all, device);
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = all.major; break;
    case cudaDevAttrMultiProcessorCount: *value = all.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = all.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = all.sharedMemPerBlock; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = all.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = all.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrWarpSize: *value = all.warpSize; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return unless_capturing("wait for the device", 0); }
const char *cudaGetErrorName(cudaError_t error) { return error ? "an error" : "no error"; }
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorStreamCaptureUnsupported ? "not permitted while a stream captures"
                                                    : cudaGetErrorName(error);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function) {
  (void)symbol;
  *function = NULL;
  return cudaErrorSymbolNotFound;
}

/* Streams, events and graphs are numbers. */

static intptr_t last_handle = 4096;

static cudaError_t handle_in(void *handle) {
  *(intptr_t *)handle = last_handle += 16;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return handle_in(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream) { return handle_in(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return unless_capturing("wait for stream", (long)(intptr_t)stream);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  (void)stream;
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream) {
  if (getenv("FAKE_CUDA_NO_CAPTURE")) return cudaErrorStreamCaptureUnsupported;
  record("capture on stream", "", (long)(intptr_t)stream);
  capturing = 1;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  capturing = 0;
  record("captured on stream", "", (long)(intptr_t)stream);
  return handle_in(graph);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *graph) { return handle_in(graph); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  (void)graph;
  record("graph on stream", "", (long)(intptr_t)stream);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return handle_in(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event) { return handle_in(event); }
cudaError_t cudaEventSynchronize(void) { return unless_capturing("wait for an event", 0); }
cudaError_t cudaEventElapsedTime(float *milliseconds) { return *milliseconds = 0, cudaSuccess; }
