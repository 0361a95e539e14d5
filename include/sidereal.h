/*
 * Sidereal in the process of a server in another language: create, submit, poll, cancel, free.
 *
 * Requests, items and answers are JSON in the native form, the same as over HTTP and in the library. Build the library with
 *
 *     cargo rustc --release --lib --crate-type cdylib --no-default-features --features capi
 *
 * which gives target/release/libsidereal.so (staticlib instead of cdylib: libsidereal.a). An engine may be used by any number of
 * threads; a stream by one at a time. No function prints, aborts or unwinds.
 */
#ifndef SIDEREAL_H
#define SIDEREAL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sidereal_engine sidereal_engine;
typedef struct sidereal_stream sidereal_stream;

/* Kinds of events. */
enum {
    SIDEREAL_TIMEOUT = 0, /* nothing came in time; poll again */
    SIDEREAL_TEXT = 1,    /* {"text": "..."}: more text */
    SIDEREAL_ITEM = 2,    /* an item inside text, whole */
    SIDEREAL_DONE = 3,    /* the whole answer; nothing but the end follows */
    SIDEREAL_ERROR = 4,   /* {"error": {"type": "...", "message": "..."}}; nothing but the end follows */
    SIDEREAL_END = 5      /* the end: the stream can be freed */
};

typedef struct {
    int kind;
    const char *json; /* len bytes of UTF-8, not terminated; until the next call with this stream */
    size_t len;
} sidereal_event;

/*
 * Starts an engine. options is null (the built-in demonstration) or a JSON object with any of
 *   "model": folder, "catalog": file, "layout": file, "dtype": "f32" | "bf16" | "f16", "threads", "cache_mib", "max_rows", "max_requests".
 * Null if that fails; *error (if error is not null) then holds a sentence, to be given to sidereal_free_error.
 */
sidereal_engine *sidereal_create(const char *options, char **error);

/* Gives an engine back; answers that are being made are finished for the streams that still wait for them. */
void sidereal_free(sidereal_engine *engine);

/* Hands a request of len bytes of JSON to the engine, without waiting. Null if it is refused; *error as above names the field and the bound. */
sidereal_stream *sidereal_submit(const sidereal_engine *engine, const char *request, size_t len, char **error);

/* Waits for the next event, at most timeout_ms milliseconds (less than 0: without end); returns its kind. event may be null. */
int sidereal_poll(sidereal_stream *stream, int timeout_ms, sidereal_event *event);

/* Cancels the rest of an answer; the stream only gives SIDEREAL_END from now on. */
void sidereal_cancel(sidereal_stream *stream);

/* Gives a stream back, and cancels the rest of its answer. */
void sidereal_free_stream(sidereal_stream *stream);

/* Gives the text of an error back. */
void sidereal_free_error(char *error);

#ifdef __cplusplus
}
#endif

#endif
