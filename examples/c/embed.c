/*
 * The engine inside a C program: a ranked list, then an answer that is cancelled half-way.
 *
 *     cargo rustc --release --lib --crate-type cdylib --no-default-features --features capi
 *     cc -Iinclude examples/c/embed.c -Ltarget/release -lsidereal -Wl,-rpath,target/release -o target/embed
 *     target/embed ['{"model": "DIR", "catalog": "items.sidcat"}']
 */
#include <stdio.h>
#include <string.h>

#include "sidereal.h"

static sidereal_stream *submit(const sidereal_engine *engine, const char *request) {
    char *error = NULL;
    sidereal_stream *stream = sidereal_submit(engine, request, strlen(request), &error);
    if (stream == NULL) {
        fprintf(stderr, "refused: %s\n", error);
        sidereal_free_error(error);
    }
    return stream;
}

int main(int argc, char **argv) {
    char *error = NULL;
    sidereal_engine *engine = sidereal_create(argc > 1 ? argv[1] : NULL, &error);
    if (engine == NULL) {
        fprintf(stderr, "%s\n", error);
        sidereal_free_error(error);
        return 1;
    }

    int kind;
    sidereal_event event;
    sidereal_stream *list = submit(engine, "{\"prompt\": \"hello\", \"output\": \"items\", \"n\": 3}");
    if (list == NULL) {
        sidereal_free(engine);
        return 1;
    }
    while ((kind = sidereal_poll(list, 1000, &event)) != SIDEREAL_END) {
        if (kind != SIDEREAL_TIMEOUT) {
            printf("%.*s\n", (int)event.len, event.json);
        }
    }
    sidereal_free_stream(list);

    sidereal_stream *text = submit(engine, "{\"prompt\": \"hello\", \"max_tokens\": 1000, \"ignore_eos\": true}");
    if (text == NULL) {
        sidereal_free(engine);
        return 1;
    }
    for (int pieces = 0; pieces < 3 && sidereal_poll(text, -1, &event) == SIDEREAL_TEXT; pieces++) {
        printf("%.*s\n", (int)event.len, event.json);
    }
    sidereal_cancel(text);
    printf("cancelled: %s\n", sidereal_poll(text, -1, NULL) == SIDEREAL_END ? "ended" : "still there");
    sidereal_free_stream(text);
    sidereal_free(engine);
    return 0;
}
