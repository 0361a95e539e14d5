// A stand-in for NVIDIA's driver library: device memory is the host's, everything is done at once, and kernels do nothing. The tests of
// the driver load it in place of libcuda.so.1. FAKE_CUDA names what is wrong with the machine. What a real library would answer with
// undefined behaviour ends the process here: a context that is not current, a handle that is not live, a leak at the end.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, STUB = 34, NO_DEVICE = 100, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

static _Thread_local void* current;
static int context, live, capturing, launched, events_live, after_kernel;
static const size_t DEVICE_BYTES = 1 << 20;

static int is(const char* mode) {
    const char* set = getenv("FAKE_CUDA");
    return set && !strcmp(set, mode);
}
static void die(const char* what) {
    fprintf(stderr, "fake libcuda: %s\n", what);
    abort();
}
static void need_context(void) {
    if (current != &context) die("the context is not current");
}
// What a faulty or hanging device answers once a kernel has run.
static int state(void) {
    if (launched && is("fault")) return ILLEGAL_ADDRESS;
    if (launched && is("hang")) return NOT_READY;
    return OK;
}
static int call(void) {
    need_context();
    return launched && is("fault") ? ILLEGAL_ADDRESS : OK;
}

int cuDriverGetVersion(int* v) { *v = is("old") ? 12040 : 13000; return OK; }
int cuInit(unsigned flags) { return flags ? INVALID : is("empty") ? NO_DEVICE : is("stub") ? STUB : OK; }
int cuGetErrorString(int code, const char** s) {
    *s = code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : code == NO_MEMORY ? "out of memory" : "some error";
    return OK;
}
int cuDeviceGetCount(int* n) { *n = 1; return OK; }
int cuDeviceGet(int* d, int ordinal) { *d = 7; return ordinal ? INVALID : OK; }
int cuDeviceGetName(char* name, int len, int d) { (void)d; strncpy(name, "Fake GPU", len); return OK; }
int cuDeviceTotalMem_v2(size_t* bytes, int d) { (void)d; *bytes = DEVICE_BYTES; return OK; }
int cuDeviceGetAttribute(int* value, int which, int d) {
    if (d != 7) return INVALID;
    switch (which) {
        case 75: *value = is("other") ? 12 : 9; return OK;
        case 76: *value = 0; return OK;
        case 16: *value = 132; return OK;
        case 97: *value = 232448; return OK;
        case 38: *value = 52428800; return OK;
    }
    return INVALID;
}
int cuDevicePrimaryCtxRetain(void** c, int d) { *c = &context; return d == 7 ? OK : INVALID; }
int cuDevicePrimaryCtxRelease_v2(int d) {
    if (live) die("something was not freed");
    fprintf(stderr, "fake libcuda: released\n");
    return d == 7 ? OK : INVALID;
}
int cuCtxSetCurrent(void* c) { current = c; return OK; }
int cuStreamCreate(void** s, unsigned flags) { need_context(); live++; *s = (void*)0x51; return flags == 1 ? OK : INVALID; }
int cuStreamDestroy_v2(void* s) { need_context(); live--; return s == (void*)0x51 ? OK : INVALID; }

int cuModuleLoadData(void** m, const void* image) {
    need_context();
    if (memcmp(image, "\177ELF", 4)) die("not machine code");
    live++;
    *m = (void*)0x30;
    return OK;
}
int cuModuleUnload(void* m) { (void)m; need_context(); live--; return OK; }
int cuModuleGetFunction(void** f, void* m, const char* name) {
    (void)m;
    need_context();
    *f = (void*)0xf0;
    return strncmp(name, "fake_", 5) ? NOT_FOUND : OK;
}
int cuFuncLoad(void* f) { (void)f; return OK; }
int cuFuncGetAttribute(int* v, int which, void* f) { (void)f; *v = which == 0 ? 256 : which == 1 ? 1024 : 0; return OK; }
int cuFuncSetAttribute(void* f, int which, int v) { (void)f; return which == 8 && v == 232448 - 1024 ? OK : INVALID; }
int cuFuncGetParamInfo(void* f, size_t index, size_t* offset, size_t* size) {
    (void)f;
    *offset = 0, *size = 32;
    return index ? INVALID : OK;
}

struct config { unsigned grid[3], block[3], shared; void* stream; int* attrs; unsigned count; };
int cuLaunchKernelEx(const struct config* c, void* f, void** params, void** extra) {
    if (f != (void*)0xf0 || extra || c->stream != (void*)0x51 || c->block[1] != 1 || c->block[2] != 1) die("a wrong launch");
    // The tests ask for overlap with every launch; only a kernel can be overlapped with.
    if (c->count != (unsigned)after_kernel || (c->count == 1 && (c->attrs[0] != 6 || c->attrs[2] != 1))) die("wrong attributes");
    if (((const unsigned char*)params[0])[31] != 31) die("wrong arguments");
    int code = call();
    launched++;
    after_kernel = 1;
    return code;
}

int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    int code = call();
    if (code) return code;
    if (bytes > DEVICE_BYTES) return NO_MEMORY;
    live++;
    *at = (uint64_t)(uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    return OK;
}
int cuMemFree_v2(uint64_t at) { need_context(); live--; free((void*)(uintptr_t)at); return OK; }
int cuMemGetInfo_v2(size_t* unused, size_t* total) { *unused = DEVICE_BYTES / 2, *total = DEVICE_BYTES; return call(); }
int cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
    if (call()) return call();
    live++;
    *at = malloc(bytes);
    memset(*at, 0xff, bytes);
    return flags || !bytes ? INVALID : OK;
}
int cuMemFreeHost(void* at) { need_context(); live--; free(at); return OK; }
static int copy(void* to, const void* from, size_t bytes, void* stream) {
    if (stream != (void*)0x51 || !bytes) die("a wrong copy");
    after_kernel = 0;
    if (!capturing) memcpy(to, from, bytes);
    return call();
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t n, void* s) { return copy((void*)(uintptr_t)to, from, n, s); }
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t n, void* s) { return copy(to, (void*)(uintptr_t)from, n, s); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void* s) { return copy((void*)(uintptr_t)to, (void*)(uintptr_t)from, n, s); }
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t n, void* s) {
    (void)s;
    after_kernel = 0;
    memset((void*)(uintptr_t)to, byte, n);
    return call();
}

int cuEventCreate(void** e, unsigned flags) {
    if (call()) return call();
    live++, events_live++;
    if (events_live > 1024) die("more events than the ring holds");
    *e = malloc(sizeof(int));
    return flags ? INVALID : OK;
}
int cuEventDestroy_v2(void* e) { need_context(); live--; free(e); return OK; }
int cuEventRecord(void* e, void* s) { *(int*)e = launched; return s == (void*)0x51 ? call() : INVALID; }
int cuEventQuery(void* e) { (void)e; need_context(); return capturing ? INVALID : state(); }
int cuEventElapsedTime_v2(float* ms, void* a, void* b) { *ms = 0.5f + (float)(*(int*)b - *(int*)a); return call(); }

int cuStreamBeginCapture_v2(void* s, int mode) { (void)s; capturing = 1, after_kernel = 0; return mode == 1 ? call() : INVALID; }
int cuStreamEndCapture(void* s, void** g) { (void)s; capturing = 0; live++; *g = (void*)0x60; return call(); }
int cuGraphInstantiateWithFlags(void** x, void* g, unsigned long long flags) { (void)g; live++; *x = (void*)0x61; return flags ? INVALID : call(); }
int cuGraphDestroy(void* g) { live--; return g == (void*)0x60 ? OK : INVALID; }
int cuGraphExecDestroy(void* x) { live--; return x == (void*)0x61 ? OK : INVALID; }
int cuGraphUpload(void* x, void* s) { (void)s; return x == (void*)0x61 ? call() : INVALID; }
int cuGraphLaunch(void* x, void* s) { (void)s; launched++, after_kernel = 0; return x == (void*)0x61 ? OK : INVALID; }

int cuTensorMapEncodeTiled(uint64_t* map, int type, uint32_t rank, void* base, const uint64_t* dims, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* steps, int interleave, int swizzle, int promotion, int fill) {
    if ((uintptr_t)map % 64) die("a tensor map that is not aligned");
    if (rank != 2 || interleave || swizzle != 3 || fill || steps[0] != 1 || steps[1] != 1 || promotion < 0) return INVALID;
    map[0] = (uintptr_t)base, map[1] = dims[0], map[2] = dims[1], map[3] = strides[0], map[4] = box[0], map[5] = box[1], map[6] = (uint64_t)type;
    return OK;
}
